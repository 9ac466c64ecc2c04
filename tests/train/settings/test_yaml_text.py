import copy

import pytest
import yaml

from common.hrda import SettingsError
from common.plain_yaml import read_yaml
from train.settings.training import DEFAULT_YAML
from train.settings.yaml_text import set_value, set_values

DEFAULT = DEFAULT_YAML.read_text(encoding="utf-8")


def paths(data, before=""):
    for key, value in data.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}.")


def get(text, path):
    data = read_yaml(text)
    for name in path.split("."):
        data = data[name]
    return data


def expected(text, path, value):
    data = copy.deepcopy(read_yaml(text)) or {}
    *parents, last = path.split(".")
    place = data
    for name in parents:
        if not isinstance(place, list) and place.get(name) is None:
            place[name] = {}
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    return data


@pytest.mark.parametrize("path", list(paths(yaml.safe_load(DEFAULT))))
def test_every_value_of_the_default_file_can_be_changed_alone(path):
    for value in (7, [256, 512]):
        edited = set_value(DEFAULT, path, value)
        assert read_yaml(edited) == expected(DEFAULT, path, value)
        before, after = DEFAULT.splitlines(), edited.splitlines()
        if len(before) == len(after):
            [(old, new)] = [pair for pair in zip(before, after, strict=True) if len(set(pair)) > 1]
            assert old.partition(" # ")[2] == new.partition(" # ")[2], "the comment must stay"
        else:
            assert isinstance(get(DEFAULT, path), dict), "only what held several lines may shrink"


def test_comments_order_and_blank_lines_stay():
    text = "# head\n\na: 1   # one\nb:\n  # about c\n  c: 'x' # see\n\n# tail\nd: 2\n"
    assert set_value(text, "b.c", 3) == text.replace("'x'", "3")
    assert set_value(text, "b.e", 3) == text.replace("'x' # see\n", "'x' # see\n  e: 3\n")
    assert set_value(text, "b", 3) == "# head\n\na: 1   # one\nb: 3\n  # about c\n\n# tail\nd: 2\n"


@pytest.mark.parametrize(
    ("text", "path", "value", "result"),
    [
        ("", "a.b", 1, "a: {b: 1}\n"),
        ("# only a comment", "a", 1, "# only a comment\na: 1\n"),
        ("---\n", "a", 1, "---\n {a: 1}"),
        ("a: 1", "b", 2, "a: 1\nb: 2\n"),
        ("a: 1\r\nb: 2\r\n", "c", 3, "a: 1\r\nb: 2\r\nc: 3\r\n"),
        ("a: # later\nb: 2\n", "a", 1, "a: 1 # later\nb: 2\n"),
        ("a:\nb: 2\n", "a.c", 1, "a: {c: 1}\nb: 2\n"),
        ("a: null # c\n", "a", [1, 2], "a: [1, 2] # c\n"),
        ("a: [1, 2] # c\n", "a", None, "a: null # c\n"),
        ("a: {b: 1, c: [2, 3]} # c\n", "a.c", 4, "a: {b: 1, c: 4} # c\n"),
        ("a: {b: 1} # c\n", "a.d.e", 4, "a: {b: 1, d: {e: 4}} # c\n"),
        ("a: {} # c\n", "a.d", 4, "a: {d: 4} # c\n"),
        ("a: {\n  b: 1, # one\n}\n", "a.d", 4, "a: {\n  b: 1, d: 4, # one\n}\n"),
        ("{a: 1}\n", "b", 2, "{a: 1, b: 2}\n"),
        ("a:\n- 1\n- 2 # two\nb: 3\n", "a", [4], "a: [4]\nb: 3\n"),
        ("a: |\n  long\n  text\nb: 1\n", "a", "short", "a: short\nb: 1\n"),
        ("a:\n  b:\n    c: 1\n\n# about d\nd: 2\n", "a.b.e", 3, "a:\n  b:\n    c: 1\n    e: 3\n\n# about d\nd: 2\n"),
        ("a: 'it''s' # c\n", "a", "off", "a: 'off' # c\n"),
        ("a: 1\n", "a", "1e-4", "a: '1e-4'\n"),
        ("a: 1\n", "a", 6e-5, "a: 6.0e-5\n"),
        ("a: 1\n", "a", (0.0001, 1e22), "a: [0.0001, 1.0e+22]\n"),
        ("a: 1\n", "a", "two\nlines: #", 'a: "two\\nlines: #"\n'),
        ("é: ü # ä\nb: 1\n", "b", "ö", "é: ü # ä\nb: ö\n"),
    ],
)  # fmt: skip
def test_one_value_is_changed_and_nothing_else(text, path, value, result):
    edited = set_value(text, path, value)
    assert edited == result
    plain = list(value) if isinstance(value, tuple) else value
    assert read_yaml(edited) == yaml.safe_load(edited) == expected(text, path, plain)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("a: [1", "a", "not valid YAML: line"),
        ("a: 1\n\tb: 2\n", "a", "not valid YAML: line 2"),
        ("a: 1\n---\nb: 2\n", "a", "not valid YAML"),
        ("a: 2001-99-99\n", "b", "not valid YAML"),
        ("a: 1\n", "a.b", "no 'b' in 1"),
        ("a: [1]\n", "a.1", "no '1' in"),
        ("- 1\n", "a", "no 'a' in"),
        ("a: &x {b: 1}\nc: *x\n", "a.b", "anchors"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "c.b", "anchors"),
        ("a: 1\na: 2\n", "a", "line 2, column 1: this key is given twice"),
    ],
)
def test_text_that_cannot_be_changed_safely_is_refused(text, path, message):
    with pytest.raises(SettingsError, match=message):
        set_value(text, path, 5)


def test_several_values_are_set_together_or_not_at_all():
    edited = set_values(DEFAULT, {"iterations": 5, "data.augmentation.scale": (0.5, 2.0), "model.encoder": "mit_b0"})
    data = read_yaml(edited)
    assert (data["iterations"], data["data"]["augmentation"]["scale"]) == (5, [0.5, 2.0])
    assert edited.count("#") == DEFAULT.count("#")
    with pytest.raises(SettingsError):
        set_values("a: 1\n", {"b": 2, "a.c": 3})
