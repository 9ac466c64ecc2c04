"""File contents on disk, addressed by their hash: equal contents are kept once."""

import base64
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class BlobWriter:
    """Collects the bytes of one content; see :meth:`Blobs.writer`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def hash(self) -> str:
        """Base64 of the SHA-256 of what was written, as Supervisely writes hashes."""
        return base64.b64encode(self._digest.digest()).decode()


class Blobs:
    """The store of contents under ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, content_hash: str) -> Path:
        """Where the content with this base64 hash lies, present or not."""
        name = base64.b64decode(content_hash).hex()
        return self.root / name[:2] / name

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Write one content; it appears in the store, whole, when the block ends without an error."""
        with tempfile.NamedTemporaryFile(dir=self.root, prefix="incoming-", delete=False) as file:
            writer = BlobWriter(file)
            try:
                yield writer
            except BaseException:
                file.close()
                Path(file.name).unlink()
                raise
        target = self.path(writer.hash)
        target.parent.mkdir(exist_ok=True)
        Path(file.name).replace(target)

    def put(self, source: BinaryIO) -> tuple[str, int]:
        """Copy a readable binary file into the store.

        Returns:
            The base64 hash and the size in bytes.
        """
        with self.writer() as writer:
            while chunk := source.read(1 << 20):
                writer.write(chunk)
        return writer.hash, writer.size
