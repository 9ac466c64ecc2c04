"""The examples of --help, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from serve.__main__ import EPILOG as SERVE
from serve.__main__ import build_parser, parse_arguments
from serve.batch.command import build_parser as build_batch_parser
from train.__main__ import EPILOG as TRAIN
from train.__main__ import IMPORT, parse, read_settings
from train.importing.command import parse as parse_import
from train.suggest import parse as parse_suggest

ROOT = Path(__file__).resolve().parents[1]


def examples(text: str, program: str) -> list[list[str]]:
    """The words behind `python -m PROGRAM` of each example."""
    lines = re.sub(r"\\\n\s+", "", text).splitlines()
    return [shlex.split(line)[3:] for line in lines if line.startswith(f"  python -m {program} ")]


@pytest.mark.parametrize("words", examples(TRAIN, "train"), ids=" ".join)
def test_example_of_training_asks_for_what_there_is(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "suggest":
        assert parse_suggest(words[1:]).run == Path("runs/first")
        return
    if words[0] == IMPORT:
        assert parse_import(words[1:]).out == Path("photos")
        return
    given = parse(words)
    settings = read_settings(given)
    assert settings.mode == (given.mode or "uda")


@pytest.mark.parametrize("words", examples(SERVE, "serve"), ids=" ".join)
def test_example_of_serving_is_accepted(words, tmp_path, monkeypatch):
    from serve.batch.local import settings_of_words
    from serve.model.settings import read_settings as read_serve_settings

    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "model.pth", "model.onnx"):
        Path(name).write_bytes(b"there")
    Path("photos").mkdir()
    if words[0] == "batch":
        assert build_batch_parser().parse_args(words[1:]).workers == 2
        return
    given = parse_arguments(words)
    read_serve_settings(settings_of_words(given.settings or []))


def test_every_part_of_the_command_line_has_an_example():
    [modes] = [action.choices for action in build_parser()._actions if action.dest == "mode"]
    assert {words[0] for words in examples(SERVE, "serve")} == {*modes, "batch"}
    assert {"--mode", "--resume", "--labelled-target", "--settings", "--set"} <= set(sum(examples(TRAIN, "train"), []))
