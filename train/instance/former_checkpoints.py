"""Checkpoints that the former HRDA app left in Team Files, `/HRDA/{task}_{experiment}/*.pth`.

Beside them lies a `config.py`, which is neither downloaded nor run: the checkpoint itself says what is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from supervisely import Api
from supervisely.api.file_api import FileInfo

from common.hrda.checks import closest, received

FOLDER = "/HRDA"
SUFFIX = ".pth"
MOST = 200
"""Checkpoints offered at most."""


@dataclass(frozen=True)
class FormerCheckpoint:
    """A checkpoint file of the former app."""

    path: str
    """In Team Files."""
    size: int | None = None
    """In bytes; None if it was not looked up."""
    updated_at: str = ""
    """When it was written, in ISO 8601; empty if it was not looked up."""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return str(PurePosixPath(self.path).parent)

    @property
    def label(self) -> str:
        """The checkpoint for a list: path below the former app's folder, size and day."""
        below = PurePosixPath(self.path).relative_to(FOLDER)
        return str(below) if self.size is None else f"{below} ({self.size / 2**20:.0f} MB, {self.updated_at[:10]})"


def find_former_checkpoints(api: Api, team_id: int) -> list[FormerCheckpoint]:
    """The checkpoints of the former app in a team's files, newest first, `MOST` at most.

    Raises:
        requests.RequestException: the instance does not answer as expected.
    """
    files = api.file.list(team_id, f"{FOLDER}/", recursive=True, return_type="fileinfo")
    found = [_checkpoint(info) for info in files if _is_checkpoint(info.path)]
    return sorted(found, key=lambda one: (one.updated_at, one.path), reverse=True)[:MOST]


def find_former_checkpoint(api: Api, team_id: int, path: Any, known: Sequence[FormerCheckpoint]) -> FormerCheckpoint:
    """The checkpoint at a path that an app state names.

    Args:
        api: of the instance.
        team_id: whose files are meant.
        path: as it was received.
        known: those found before; another one is looked up.

    Raises:
        ValueError: it is no path of a checkpoint of the former app, or there is none.
        requests.RequestException: the instance does not answer as expected.
    """
    if not isinstance(path, str) or not _is_checkpoint(path):
        raise ValueError(
            f"checkpoint_path must be a checkpoint of the former HRDA app in Team Files, such as "
            f"{FOLDER}/12_cracks/best{SUFFIX}. Received: {received(path)}."
        )
    for checkpoint in known:
        if checkpoint.path == path:
            return checkpoint
    info = api.file.get_info_by_path(team_id, path)
    if info is None:
        hint = closest(path, [checkpoint.path for checkpoint in known[:10]]) if known else "there is none at all."
        raise ValueError(f"Team Files have no checkpoint {path}: {hint}")
    return _checkpoint(info)


def _checkpoint(info: FileInfo) -> FormerCheckpoint:
    return FormerCheckpoint(info.path, info.sizeb, info.updated_at or "")


def _is_checkpoint(path: str) -> bool:
    parts = PurePosixPath(path).parts
    below = PurePosixPath(path).is_relative_to(FOLDER) and ".." not in parts
    return below and len(parts) > len(PurePosixPath(FOLDER).parts) and path.endswith(SUFFIX)
