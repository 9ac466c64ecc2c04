"""Files of weights from a server: checked by their sum, kept on this machine; where to put them without internet."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import unquote, urlsplit

import torch

from common.hrda.checks import received
from common.hrda.web import Deadline, Reach, WebError, opened

FOLDER = "PRETRAINED_WEIGHTS_DIR"
"""Environment variable: the folder in which downloaded weights are kept. No settings name it: they come from others
than the machine's owner too."""
PRIVATE = "HRDA_ALLOW_PRIVATE_ADDRESSES"
"""Environment variable: true lets settings name weights on this machine and in private networks."""
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
"""Of files of weights; nothing else is kept."""
Progress = Callable[[str, int, int | None], None]
"""Takes a file's name, the bytes that have come and those that will, where the server says so. What it raises ends the
download."""
_CHUNK = 2**20
_PIECE = 2**16
_TIMEOUT_S = 30.0
_TOLD_S = 1.0
_NAME = "pretrained"
_TRUE = ("1", "true", "yes", "on")
_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z]+$")
_IN_FRAGMENT = re.compile(r"sha256=([0-9a-f]{8,64})")


class DownloadError(ValueError):
    """A file cannot be had. The message says why and where to put it by hand."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server."""

    url: str
    """Where it is, http or https."""
    name: str
    """What it is called on this machine."""
    sha256: str
    """The first 8 to 64 hexadecimal digits of its SHA-256 sum."""
    of_owner: bool = False
    """Whether the machine's owner names the server, who may name any."""

    @classmethod
    def from_url(cls, url: str, *, of_owner: bool = False) -> Self:
        """The file at a URL whose sum is in its name, as torch.hub has it (`name-1234abcd.pth`), or in `#sha256=…`.

        Raises:
            DownloadError: it is no such URL.
        """
        parts = urlsplit(url)
        name = PurePosixPath(unquote(parts.path)).name
        found = _IN_FRAGMENT.fullmatch(parts.fragment) or _IN_NAME.search(name)
        if parts.scheme not in ("http", "https") or not parts.netloc or not name.strip("."):
            raise DownloadError(
                f"Weights are downloaded from http:// or https:// addresses of files. Received: {received(url)}."
            )
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            raise DownloadError(
                f"A file of weights ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}. Received: {received(url)}."
            )
        if found is None:
            raise DownloadError(
                f"What is downloaded is checked, and {received(url)} does not say its SHA-256 sum. Append it as "
                "#sha256=…, or download the file yourself and give its path."
            )
        return cls(parts._replace(fragment="").geturl(), name, found[1], of_owner)

    @property
    def reach(self) -> Reach:
        """Which addresses may be asked for it, redirects included."""
        private = self.of_owner or os.environ.get(PRIVATE, "").strip().lower() in _TRUE
        return Reach(http=True, private=private, proxies=True)


def weights_folder() -> Path:
    """Where downloaded weights are kept: as the machine's owner says (`FOLDER`), or where torch keeps its own."""
    folder = os.environ.get(FOLDER, "").strip()
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def find_kept(remote: RemoteFile, folder: Path) -> Path | None:
    """The file on this machine; None if it is not there.

    Raises:
        DownloadError: another file is in its place, which is never replaced.
    """
    path = folder / remote.name
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not digest.startswith(remote.sha256):
        raise DownloadError(
            f"{path} is not the file that is asked for, or is damaged: its SHA-256 sum begins with "
            f"{digest[: len(remote.sha256)]} and not with {remote.sha256}. Move it away; it is not replaced."
        )
    return path


def require_reachable(remote: RemoteFile, folder: Path, timeout: float = 5.0) -> int | None:
    """Ask the server for the file without loading it.

    Args:
        remote: the file.
        folder: where it would be kept.
        timeout: in seconds.

    Returns:
        Its size in bytes; None if the server does not say it.

    Raises:
        DownloadError: the server does not answer, or does not have it.
    """
    with (
        _explained(remote, folder),
        Deadline(timeout) as deadline,
        opened(remote.url, remote.reach, deadline, method="HEAD", name=_NAME) as answer,
    ):
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None


def fetch(
    remote: RemoteFile,
    folder: Path,
    check: Callable[[Path], object],
    progress: Progress | None = None,
    timeout: float = _TIMEOUT_S,
) -> Path:
    """Download a file unless it is on this machine already.

    Args:
        remote: the file.
        folder: where it is kept; made if need be.
        check: reads what was downloaded before it is kept; its ValueError refuses it.
        progress: is told of each megabyte or second, and of the end.
        timeout: seconds after which the download is given up, unless an answer or the next megabyte has come.

    Returns:
        Its path. Another process may fetch the same: whoever reads the path sees a complete file.

    Raises:
        DownloadError: it cannot be had, is not what its sum says or what is read as weights, or another file is in
            its place.
    """
    kept = find_kept(remote, folder)
    if kept is not None:
        return kept
    path, part = folder / remote.name, folder / f".{remote.name}.{uuid.uuid4().hex}"
    with _explained(remote, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(remote, part, progress, timeout)
            try:
                check(part)
            except ValueError as error:
                reason = str(error).replace(str(part), "the file").removesuffix(".")
                raise DownloadError(f"it is not kept: {reason}") from error
            if find_kept(remote, folder) is None:
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _download(remote: RemoteFile, part: Path, progress: Progress | None, timeout: float) -> None:
    """Write the file to `part`, and compare its sum."""
    digest, count, told, told_at = hashlib.sha256(), 0, 0, time.monotonic()
    with (
        Deadline(timeout) as deadline,
        opened(remote.url, remote.reach, deadline, name=_NAME) as answer,
        part.open("xb") as file,
    ):
        for piece in answer.pieces(_PIECE):
            file.write(piece)
            digest.update(piece)
            count += len(piece)
            whole = count // _CHUNK * _CHUNK
            if whole > told:
                deadline.restart()
            is_late = time.monotonic() - told_at >= _TOLD_S
            if progress is not None and (whole > told or is_late) and count != answer.size:
                progress(remote.name, count if is_late else whole, answer.size)
            if whole > told or is_late:
                told, told_at = whole, time.monotonic()
        file.flush()
        os.fsync(file.fileno())
    if progress is not None:
        progress(remote.name, count, count)
    if not digest.hexdigest().startswith(remote.sha256):
        raise DownloadError(
            f"its SHA-256 sum begins with {digest.hexdigest()[: len(remote.sha256)]} and not with "
            f"{remote.sha256}: it is not the file that was asked for"
        )


@contextmanager
def _explained(remote: RemoteFile, folder: Path) -> Iterator[None]:
    """Give every reason for which a file cannot be had the same remedy."""
    try:
        yield
    except (OSError, WebError, DownloadError) as error:
        reason = error.reason if isinstance(error, WebError) else getattr(error, "strerror", None) or str(error)
        raise DownloadError(
            f"{remote.name} could not be downloaded from {received(remote.url)}: {reason}. Without internet, download "
            f"it elsewhere and put it at {folder / remote.name}, or give the path of the file."
        ) from error
