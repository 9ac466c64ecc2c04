"""Files of weights from a server: checked by their sum, kept on this machine; where to put them without internet."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch

from common.hrda.checks import received

Progress = Callable[[str, int, int | None], None]
"""Takes a file's name, the bytes that have come and those that will, where the server says so. What it raises ends the
download."""
_CHUNK = 2**20
_TIMEOUT_S = 30.0
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

    @classmethod
    def from_url(cls, url: str) -> Self:
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
        if found is None:
            raise DownloadError(
                f"What is downloaded is checked, and {url} does not say its SHA-256 sum. Append it as #sha256=…, or "
                "download the file yourself and give its path."
            )
        return cls(parts._replace(fragment="").geturl(), name, found[1])


def weights_folder(folder: str | Path | None) -> Path:
    """Where downloaded weights are kept: `folder`, or torch's own place (`TORCH_HOME`) if it is None."""
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def find_kept(remote: RemoteFile, folder: Path) -> Path | None:
    """The file on this machine; None if it is not there or is not what its sum says."""
    path = folder / remote.name
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    return path if digest.startswith(remote.sha256) else None


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
    with _explained(remote, folder), _opened(remote, "HEAD", timeout) as answer:
        return _size(answer)


def fetch(remote: RemoteFile, folder: Path, progress: Progress | None = None, timeout: float = _TIMEOUT_S) -> Path:
    """Download a file unless it is on this machine already.

    Args:
        remote: the file.
        folder: where it is kept; made if need be.
        progress: is told of each megabyte and of the end.
        timeout: seconds without an answer after which the download is given up.

    Returns:
        Its path. Another process may fetch the same: whoever reads the path sees a complete file.

    Raises:
        DownloadError: it cannot be had, or is not what its sum says.
    """
    kept = find_kept(remote, folder)
    if kept is not None:
        return kept
    path, part = folder / remote.name, folder / f".{remote.name}.{uuid.uuid4().hex}"
    with _explained(remote, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            digest, received = hashlib.sha256(), 0
            with _opened(remote, "GET", timeout) as answer, part.open("xb") as file:
                size = _size(answer)
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if progress is not None and received != size:
                        progress(remote.name, received, size)
                file.flush()
                os.fsync(file.fileno())
            if progress is not None:
                progress(remote.name, received, received)
            if size is not None and received != size:
                raise DownloadError(f"the connection ended after {received} of {size} bytes")
            if not digest.hexdigest().startswith(remote.sha256):
                raise DownloadError(
                    f"its SHA-256 sum begins with {digest.hexdigest()[: len(remote.sha256)]} and not with "
                    f"{remote.sha256}: it is not the file that was asked for"
                )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


@contextmanager
def _opened(remote: RemoteFile, method: str, timeout: float) -> Iterator[HTTPResponse]:
    request = Request(remote.url, method=method, headers={"User-Agent": "hrda-supervisely"})
    with urlopen(request, timeout=timeout) as answer:
        yield answer


@contextmanager
def _explained(remote: RemoteFile, folder: Path) -> Iterator[None]:
    """Give every reason for which a file cannot be had the same remedy."""
    try:
        yield
    except (OSError, HTTPException, DownloadError) as error:
        raise DownloadError(
            f"{remote.name} could not be downloaded from {remote.url}: {_reason(error)}. Without internet, download it "
            f"elsewhere and put it at {folder / remote.name}, or give the path of the file."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
    if isinstance(cause, TimeoutError):
        return "the server does not answer"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _size(answer: HTTPResponse) -> int | None:
    length = answer.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None
