"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_ITS_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_LONGEST_NAME = 255 - len("..") - len(uuid.uuid4().hex)
_REMEDIES = dict.fromkeys(_NO_ROOM, "make room on the disk") | {
    errno.EROFS: "mount the disk so that it can be written to",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EISDIR: "name another file",
    errno.ENOTDIR: "name another folder",
    errno.EEXIST: "name another folder",
    errno.ENAMETOOLONG: "give it a shorter name",
}
# Some network file systems cannot sync a folder and say so in these ways.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)


class WriteError(OSError):
    """A file could not be written. What was there before is untouched.

    Args:
        path: the file.
        cause: what the system said.
        size: bytes that it needs, where known.
    """

    def __init__(self, path: Path, cause: OSError, size: int | None = None) -> None:
        self.is_disk_full = cause.errno in _NO_ROOM
        """Whether there was no room for it."""
        self.is_of_its_name = cause.errno in _OF_ITS_NAME
        """Whether files of other names can be written there."""
        self.remedy = _REMEDIES.get(cause.errno, "see to the disk")
        """What to do, as the middle of a sentence."""
        reason = (cause.strerror or str(cause)).lower()
        if self.is_disk_full:
            needed = "" if size is None else f"{_readable(size)} needed, "
            reason = f"the disk is full ({needed}{_readable(_free(path))} free)"
        super().__init__(f"{path} was not written: {reason}.")


@contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end of the block.

    It is written under another name, flushed to the disk, renamed, and the rename flushed too: readers find the old
    file or the new one and never half of it, also after a kill or a power cut.

    Args:
        path: what to replace; its folder is made where needed.
        size: bytes that will be written, where known, for the message.

    Raises:
        WriteError: the disk is full or not writable, or `path` is a folder, a device or a pipe; what was there before
            is untouched.
    """
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise WriteError(path, error, size) from error
    if is_other:
        # Whoever may rename in /dev would lose the device.
        raise WriteError(path, OSError(errno.EISDIR, "It is a folder, a device or a pipe"), size)
    temporary = path.with_name(f"{_half_name(path)}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is None:
            raise
        raise WriteError(path, cause, size) from error


def sum_of(path: Path) -> str:
    """The SHA-256 sum of a file, by which an export names its checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_halves(path: Path) -> None:
    """Remove what a killed process has left of files while it was writing; the name of `path` may be a pattern."""
    for half in path.parent.glob(f"{_half_name(path)}*"):
        half.unlink(missing_ok=True)


def _half_name(path: Path) -> str:
    """How a file is called while it is written, but for its end; systems take names of up to 255 bytes."""
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    return f".{name}."


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said: torch answers a failed write with errors of its own on top."""
    if not isinstance(error, OSError | RuntimeError):
        return None
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _free(path: Path) -> int:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _readable(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
