"""YAML text from outside: plain data in bounded time, every mistake a sentence."""

from __future__ import annotations

import random
import string
import time
from pathlib import Path

import pytest

from common.hrda.checks import SettingsError
from common.plain_yaml import DEEPEST, LONGEST_FIELD, LONGEST_FILE, read_field, read_yaml, settings_text

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "anchors"),
        ("0x_", "line 1, column 1: the value is not of the kind int"),
        ("a: 2020-13-45", "line 1, column 4: the value is not of the kind timestamp"),
        ("!!int x", "not of the kind int"),
        ("!!float y", "not of the kind float"),
        ("!!bool maybe", "not of the kind bool"),
        ("a: " + "9" * 5000, "the number is too long"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"more than {DEEPEST} levels"),
        ("a: [1", "line 2"),
        ("? {a: 1}\n: 2", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("x" * (LONGEST_FILE + 1), "at most 65536 bytes"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2, column 17: this key is given twice"),
        ("data: {a: 1}\nb: 2\ndata: {c: 3}", "line 3, column 1: this key is given twice"),
        ("010: 1\n'010': 2", "this key is given twice"),
        ("a: 0100", "line 1, column 4: write the number in plain digits"),
        ("a: 10:30", "line 1, column 4: write the number in plain digits"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(text, message) -> None:
    began = time.process_time()
    with pytest.raises(SettingsError) as caught:
        read_yaml(text)
    assert message in str(caught.value) and len(str(caught.value)) < 300
    assert time.process_time() - began < 5


def test_file_of_settings_is_short_text(tmp_path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("a: 0.5 # é", encoding="utf-8")
    assert read_yaml(settings_text(file)) == {"a": 0.5}
    for content, message in (("a: é".encode("utf-16"), "text in UTF-8"), (b"#" * (LONGEST_FILE + 1), "at most 65536")):
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=message):
            settings_text(file)
    with pytest.raises(SettingsError, match="at most 65536"):
        settings_text(Path("/dev/zero"))
    with pytest.raises(SettingsError, match=r"cannot be read: Is a directory\.$"):
        settings_text(tmp_path)


def test_a_field_is_shorter_than_a_file_and_named() -> None:
    with pytest.raises(SettingsError, match=r"window cannot be read as YAML: expected at most 4096 bytes"):
        read_field("window", "1" * (LONGEST_FIELD + 1))
    assert read_field("window", "[128, 1e-3]") == [128, 1e-3]


def test_whatever_the_text_nothing_but_our_error_leaves() -> None:
    rng = random.Random(0)
    words = ["&a", "*a", "!!int", "!!set", "!!timestamp", "0x", "0b", "1_0", "- ", ": ", "{", "}", "[", "]", "\n", "  "]
    words += ["'", '"', "|", ">", "#", "%YAML 9.9\n", "---\n", "2020-01-01", "1:60", "~", "<<: ", "? ", ".inf", "\t"]
    for _ in range(3000):
        parts = [rng.choice(words + [rng.choice(string.printable)]) for _ in range(rng.randint(1, 12))]
        try:
            read_yaml("".join(parts))
        except SettingsError as error:
            assert len(str(error)) < 300
