"""One run at a time in a folder: two would delete each other's states."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.hrda.checks import PlainSettings, SettingsError, schema

_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
# The byte that is locked lies behind what is written: some network disks let nobody read a locked one.
_LOCKED_BYTE = 2**20
_LONGEST_NOTE = 1000


@schema
class _Holder(PlainSettings):
    """Who holds a lock."""

    host: str
    """Name of the machine."""
    process: int
    """Number of the process there."""


@contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that is there, while the block runs.

    The system lets go of it when this process ends, however it does. On a network disk it holds on all machines where
    the disk passes locks on, as NFS and SMB do unless they were mounted without; when a whole machine is gone, NFS 4
    lets go after its lease (90 seconds, unless set otherwise), NFS 3 when that machine is back. Where there are no
    locks, `say` gets a sentence.

    Raises:
        SettingsError: another process holds it, or the folder cannot be written to.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SettingsError(f"The run's folder {path.parent} cannot be written to: {error.strerror}.") from error
    try:
        _lock(descriptor, path, say)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_Holder(socket.gethostname(), os.getpid()).to_dict()).encode(), 0)
        yield
    finally:
        # With the file the lock goes. The file stays: who waits for it may have it open.
        os.close(descriptor)


def _lock(descriptor: int, path: Path, say: Callable[[str], None]) -> None:
    try:
        # Of the process and not of the open file: the processes that prepare batches outlive a killed one by seconds.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
    except OSError as error:
        if error.errno in _HELD:
            raise SettingsError(
                f"Another run is going on in {path.parent}: {_holder(descriptor)}. Let it end or stop it, or choose "
                "another folder."
            ) from error
        if error.errno not in _NO_LOCKS:
            raise SettingsError(f"The run's folder {path.parent} cannot be locked: {error.strerror}.") from error
        say(f"The disk of {path.parent} has no locks. Make sure that no other run writes to this folder.")


def _holder(descriptor: int) -> str:
    try:
        found = _Holder.from_dict(json.loads(os.pread(descriptor, _LONGEST_NOTE, 0)))
    except (OSError, ValueError):
        return "which process it is could not be read"
    return f"process {found.process} on {found.host[:80]}"
