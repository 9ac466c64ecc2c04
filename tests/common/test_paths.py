"""Paths as people and programs send them."""

import argparse
from pathlib import Path

import pytest

from common.paths import at_home, is_file, is_folder
from common.ports import port


@pytest.mark.parametrize("path", ["x" * 3000, "x/" * 3000, "a\0b", "\ud800", "", "nowhere"])
def test_names_that_no_file_can_have_are_no_files(path):
    assert not is_file(path) and not is_folder(path + "/nothing")


def test_files_and_folders_are_told_apart(tmp_path):
    (tmp_path / "a").touch()
    assert is_file(tmp_path / "a") and not is_folder(tmp_path / "a")
    assert is_folder(str(tmp_path)) and not is_file(str(tmp_path))


def test_home_of_nobody_stays_as_it_is_written(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert at_home("~/weights.pth") == Path("/somewhere/weights.pth")
    assert at_home("~no_such_user/weights.pth") == Path("~no_such_user/weights.pth")


@pytest.mark.parametrize("text", ["-1", "65536", "99999", "8000.0", "x", "", "9" * 5000])
def test_port_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="0 to 65535"):
        port(text)
    assert port("0") == 0 and port("65535") == 65535
