"""A folder on this machine or elsewhere (`s3://bucket/folder`, and whatever else pyarrow or fsspec opens)."""

from __future__ import annotations

import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from common.hrda.checks import received
from common.hrda.files import WriteError, replacing
from serve.errors import RequestError

HALF = re.compile(r"(^|.*/)\.[^/]+\.[0-9a-f]{32}(\.[a-z.]+)?$")
"""Names of files that a killed process was writing, GDAL's beside them included; see `common.hrda.files.replacing`."""
_URL = re.compile(r"^[a-z][a-z0-9+.-]+://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHOLE_OR_NOT = frozenset({"s3", "gcs", "abfs"})
"""pyarrow's names of stores whose files appear when they are whole."""
_COPIES = "hrda_copy_"
_COPIED_BYTES = 8 * 2**20
"""In memory at a time."""


@dataclass(frozen=True)
class Entry:
    """A file of a folder."""

    name: str
    """Below the folder, parted by '/'."""
    stamp: str
    """Size and time of change: another one after the file was changed."""


@dataclass(frozen=True)
class Folder:
    """A folder, by its path or address. It goes to other processes; each opens what it needs.

    Args:
        address: path on this machine, or an address such as `s3://bucket/folder`.
    """

    address: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return not _URL.match(self.address)

    def entries(self, left_out: Callable[[OSError], None] = lambda error: None) -> list[Entry]:
        """All files in it and its subfolders, by name; none where there is no such folder.

        Args:
            left_out: gets what the system says of a folder that cannot be looked into.

        Raises:
            RequestError: the store cannot be looked into.
        """
        if self.is_local:
            return sorted(self._local_entries(left_out), key=lambda entry: entry.name)
        from pyarrow.fs import FileSelector, FileType

        system, base = self._remote
        try:
            found = system.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        except OSError as error:
            raise RequestError(f"{self.address} cannot be looked into: {_reason(error)}") from error
        return sorted(
            (
                Entry(info.path[len(base) :].lstrip("/"), f"{info.size}-{info.mtime_ns}")
                for info in found
                if info.type == FileType.File
            ),
            key=lambda entry: entry.name,
        )

    def is_away(self) -> bool:
        """Whether it is a store that cannot be reached any more."""
        if self.is_local:
            return False
        try:
            system, base = self._remote
            system.get_file_info(base)
        except (OSError, RequestError):
            return True
        return False

    def stamp(self, name: str) -> str | None:
        """The `Entry.stamp` of a file; None where there is no such file."""
        if self.is_local:
            try:
                return _stamp(self.path(name))
            except (OSError, ValueError):
                return None
        from pyarrow.fs import FileType

        system, base = self._remote
        try:
            info = system.get_file_info(_join(base, name))
        except OSError:
            return None
        return f"{info.size}-{info.mtime_ns}" if info.type == FileType.File else None

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            OSError: it cannot be read.
        """
        if self.is_local:
            return self.path(name).read_bytes()
        system, base = self._remote
        with system.open_input_stream(_join(base, name)) as file:
            return file.read()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A file as one of this machine, for a block: itself, or a copy among the temporary files.

        Raises:
            OSError: it cannot be copied.
        """
        if self.is_local:
            yield self.path(name)
            return
        system, base = self._remote
        with TemporaryDirectory(prefix=_COPIES) as folder:
            path = Path(folder, PurePosixPath(name).name)
            with system.open_input_stream(_join(base, name)) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, _COPIED_BYTES)
            yield path

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """A folder of this machine to write whole files into, which are in this one at the end of the block.

        Raises:
            WriteError: they cannot be put there.
        """
        if self.is_local:
            path = Path(self.address)
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError(path, error) from error
            yield path
            return
        with TemporaryDirectory(prefix=_COPIES) as folder:
            yield Path(folder)
            for path in sorted(Path(folder).iterdir()):
                with path.open("rb") as file:
                    self._store(path.name, file)

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place, whole or not at all.

        Raises:
            WriteError: it cannot be written; what was there before is untouched.
        """
        if self.is_local:
            with replacing(self.path(name)) as file:
                file.write(content)
        else:
            self._store(name, io.BytesIO(content))

    def _store(self, name: str, source: BinaryIO) -> None:
        system, base = self._remote
        path = _join(base, name)
        try:
            if system.type_name in _WHOLE_OR_NOT:
                _put(system, path, source)
                return
            parent, _, last = path.rpartition("/")
            half = f"{parent}/.{last}.{uuid.uuid4().hex}"
            system.create_dir(parent, recursive=True)
            _put(system, half, source)
            system.move(half, path)
        except OSError as error:
            raise WriteError(Path(f"{self.address}/{name}"), OSError(error.errno, _reason(error))) from error

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which is in place, whole, when the block has ended.

        Raises:
            WriteError: as `write`.
        """
        if self.is_local:
            with replacing(self.path(name)) as file:
                yield file
            return
        content = io.BytesIO()
        yield content
        self.write(name, content.getvalue())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(OSError):
            if self.is_local:
                self.path(name).unlink(missing_ok=True)
            else:
                system, base = self._remote
                system.delete_file(_join(base, name))

    def below(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(_join(self.address, name))

    def path(self, name: str) -> Path:
        """Where a file of a folder on this machine lies."""
        return Path(self.address, name)

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        return _opened(self.address)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def _local_entries(self, left_out: Callable[[OSError], None]) -> Iterator[Entry]:
        root = Path(self.address)
        # Photos may lie behind links; a link that leads back to a folder above it would never end.
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(root, onerror=left_out, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            for file in files:
                path = Path(folder, file)
                with suppress(OSError):
                    yield Entry(path.relative_to(root).as_posix(), _stamp(path))


@dataclass(frozen=True)
class FileAt:
    """A file of a folder. It goes to other processes."""

    folder: Folder
    name: str
    """Below the folder."""

    def read(self) -> bytes:
        """As `Folder.read`."""
        return self.folder.read(self.name)

    def local(self) -> AbstractContextManager[Path]:
        """As `Folder.local`."""
        return self.folder.local(self.name)

    def __str__(self) -> str:
        return str(self.folder.path(self.name)) if self.folder.is_local else f"{self.folder.address}/{self.name}"


def safe_name(name: str) -> str:
    """`name` as a path below a folder, in characters that can be written: without '..' and the like, which could lead
    out of it, and with a mark in place of line breaks and of bytes that are no text."""
    text = _CONTROL.sub("_", name.encode(errors="surrogateescape").decode(errors="replace"))
    return "/".join(part for part in PurePosixPath(text).parts if part not in ("/", "..", "."))


def _opened(address: str) -> tuple[Any, str]:
    if find_spec("pyarrow") is None:
        raise RequestError(
            f"{received(address)} needs pyarrow, which this Python does not have. Install what batches take: "
            "pip install -r requirements-batch.txt"
        )
    import pyarrow
    from pyarrow import fs

    parts = urlsplit(address)
    try:
        if parts.scheme == "s3" and not parts.query:
            return _s3(parts.netloc), f"{parts.netloc}{parts.path}".rstrip("/")
        try:
            system, path = fs.FileSystem.from_uri(address)
        except pyarrow.ArrowInvalid:
            import fsspec

            system, path = fsspec.core.url_to_fs(address)
            system = fs.PyFileSystem(fs.FSSpecHandler(system))
        return system, path.rstrip("/")
    except (OSError, ValueError, ImportError) as error:
        raise RequestError(f"{received(address)} cannot be opened: {_reason(error)}") from error


def _s3(bucket: str) -> Any:
    """The S3 that the environment names as Amazon's own tools take it, or Amazon's."""
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(region=region, endpoint_override=endpoint)


def _put(system: Any, path: str, source: BinaryIO) -> None:
    with system.open_output_stream(path) as file:
        shutil.copyfileobj(source, file, _COPIED_BYTES)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder else name


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _reason(error: Exception) -> str:
    """The first sentence of what a file system says, without what it was in the middle of."""
    return str(error).partition("\n")[0][:300].rstrip(".") + "."
