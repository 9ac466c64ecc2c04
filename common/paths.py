"""Paths that somebody typed or sent: whatever they hold, they lead to a file or folder, or to none."""

from __future__ import annotations

from pathlib import Path


def is_file(path: str | Path) -> bool:
    """Whether a file is there. A name that is too long, and a folder that may not be looked into, hold none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; as `is_file`."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def at_home(path: str) -> Path:
    """`path` with the home of a user for the `~` at its beginning; as it stands where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
