"""Files that are written in one step: what a full disk, a kill or an error leaves behind."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from common.hrda.files import WriteError, remove_halves, replacing
from tests.full_disk import SmallDisk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def test_new_content_takes_the_place_of_the_old_and_is_flushed_with_its_name(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, Path.replace

    def noted_fsync(descriptor):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def noted_replace(path, target):
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write(tmp_path / "new" / "file", b"old")
    write(tmp_path / "new" / "file", b"new")
    assert (tmp_path / "new" / "file").read_bytes() == b"new"
    assert names(tmp_path / "new") == ["file"]
    assert calls == ["file", "rename", "folder"] * 2


def test_full_disk_leaves_the_old_file_and_is_named_with_numbers(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    with replacing(path) as file:
        torch.save({"old": torch.zeros(10)}, file)
    before = path.read_bytes()
    disk = SmallDisk(monkeypatch, tmp_path)
    disk.capacity = disk.used + 2**20
    content = {"new": torch.zeros(2**20), "more": torch.zeros(2**20)}
    with pytest.raises(WriteError) as caught, replacing(path, size=2**23) as file:
        torch.save(content, file)
    assert caught.value.is_disk_full
    assert str(caught.value).startswith(f"{path} was not written: the disk is full (8.0 MiB needed, ")
    assert str(caught.value).endswith(" free).")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize(("number", "is_full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_disk_that_reports_only_when_flushed_is_heard(tmp_path, monkeypatch, number, is_full):
    write(tmp_path / "file", b"old")

    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="the disk is full" if is_full else "input/output error") as caught:
        write(tmp_path / "file", b"new")
    assert caught.value.is_disk_full is is_full
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "mount"), (errno.EACCES, "the right to write"), (errno.EIO, "see to")],
)
def test_remedy_is_that_of_the_cause(tmp_path, number, remedy):
    with pytest.raises(WriteError) as caught, replacing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert remedy in caught.value.remedy


def test_folder_that_cannot_be_made_is_a_write_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"was not written: (not a directory|file exists)\.$"):
        write(tmp_path / "file" / "sub", b"x")


def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyError("x")
    assert names(tmp_path) == []


def be_killed(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new, but only half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_kill_while_writing_leaves_the_old_file_and_a_half_that_is_removed(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    child = multiprocessing.get_context("fork").Process(target=be_killed, args=(path,))
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    (tmp_path / ".file2.pth").touch()
    remove_halves(path)
    assert names(tmp_path) == [".file2.pth", "file"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_never_replaced_by_one(tmp_path, make):
    """A user who may rename in /dev, as root in a container, would lose /dev/null by `--output /dev/null`."""
    path = tmp_path / "there"
    make(path)
    kind = path.stat().st_mode
    with pytest.raises(WriteError, match="it is a folder, a device or a pipe") as caught, replacing(path) as file:
        file.write(b"new")
    assert caught.value.remedy == "name another file"
    assert path.stat().st_mode == kind
    assert list(tmp_path.iterdir()) == [path]
