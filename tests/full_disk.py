"""A disk that gets full: what is written into a folder counts against a number of bytes."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """Refuses writes of new files below `folder` once all of its files together exceed `capacity` bytes.

    Args:
        patch: takes back what is changed.
        folder: the disk.
        capacity: in bytes.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, capacity: float = float("inf")) -> None:
        self.folder, self.capacity = folder, capacity
        self._open = Path.open
        patch.setattr(Path, "open", lambda path, *arguments, **options: self._opened(path, *arguments, **options))

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def fill(self) -> None:
        """Leave no room."""
        self.capacity = self.used

    def free(self) -> None:
        """Make room."""
        self.capacity = float("inf")

    def _opened(self, path: Path, mode: str = "r", *arguments, **options):
        if "x" not in mode or not path.is_relative_to(self.folder):
            return self._open(path, mode, *arguments, **options)
        return self._limited(path, mode)

    @contextmanager
    def _limited(self, path: Path, mode: str):
        with self._open(path, mode) as file:
            yield _Limited(file, self.capacity - self.used)


class _Limited:
    def __init__(self, file, room: float) -> None:
        self._file, self._room = file, room
        self.flush, self.fileno, self.name = file.flush, file.fileno, file.name

    def write(self, data) -> int:
        if len(data) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return self._file.write(data)
