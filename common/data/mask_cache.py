"""Masks that are drawn once: PNG files on disk, named by what they were drawn from, their pixel counts beside them."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, TypeVar
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from common.data.images import ImageError, read_image

logger = logging.getLogger(__name__)

T = TypeVar("T")

_VERSION = 1
"""Part of every name: raise it when the same labels are to be drawn differently."""
_SIZES = TypeAdapter(dict[str, tuple[int, int, int, int]])
"""By path of a photo: bytes and time of change of its file, height and width of the photo."""
_FACTS = TypeAdapter(tuple[int, dict[Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, lt=2**63)]]])
"""What is kept beside a mask: the CRC-32 of its file, and how many of its pixels have each value."""


def mask_key(*parts: object) -> str:
    """The name under which a mask is kept: equal for equal parts (bytes, or anything that JSON can hold)."""
    digest = hashlib.sha256(f"masks {_VERSION}".encode())
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:40]


class MaskCache:
    """A folder of masks, and of the sizes of photos that were found readable.

    Use it in a `with` statement: the sizes are written at its end. Files appear whole or not at all, so several
    runs may share a folder. A file that is damaged all the same, as after a power loss, is made again.
    """

    def __init__(self, folder: str | Path) -> None:
        self._masks = Path(folder) / "masks"
        self._masks.mkdir(parents=True, exist_ok=True)
        self._index = Path(folder) / "images.json"
        self._known = self._read_sizes()
        self._sizes = dict(self._known)

    def __enter__(self) -> "MaskCache":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sizes == self._known:
            return
        try:
            self._write(self._index, _SIZES.dump_json(self._sizes))
        except OSError as unwritten:
            if error is None:
                logger.warning("%s The photos are read again the next time.", unwritten)

    def _read_sizes(self) -> dict[str, tuple[int, int, int, int]]:
        try:
            return _SIZES.validate_json(self._index.read_bytes())
        except (OSError, ValidationError):
            return {}

    def image_size(self, path: Path) -> tuple[int, int]:
        """Height and width of a photo, which is decoded unless the same file (size, time of change) was before.

        Raises:
            ImageError: The photo cannot be read.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise ImageError(f"Cannot read the image {path}: {error.strerror or error}.") from error
        key, state = str(path.resolve()), (stat.st_size, stat.st_mtime_ns)
        known = self._sizes.get(key)
        if known and known[:2] == state:
            return known[2:]
        height, width = read_image(path).shape[:2]
        self._sizes[key] = (*state, height, width)
        return height, width

    def mask(self, key: str, draw: Callable[[], NDArray[np.uint8]]) -> tuple[Path, NDArray[np.int64]]:
        """The mask kept under `key`, drawn by `draw` if there is none.

        Returns:
            The PNG file (H×W uint8), and how many of its pixels have each value 0..255.
        """
        path, facts = self._masks / f"{key}.png", self._masks / f"{key}.json"
        pixels = _kept(path, facts)
        if pixels is None:
            mask = draw()
            pixels = np.bincount(mask.ravel(), minlength=256)
            content = cv2.imencode(".png", mask)[1].tobytes()
            counts = {int(value): int(pixels[value]) for value in pixels.nonzero()[0]}
            self._write(path, content)
            self._write(facts, _FACTS.dump_json((crc32(content), counts)))
        return path, pixels

    def facts(self, key: str, kind: TypeAdapter[T], find: Callable[[], T]) -> T:
        """What is kept under `key`, of the kind that `kind` reads; found by `find` if there is nothing, or it is
        damaged."""
        path = self._masks / f"{key}.json"
        try:
            return kind.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            found = find()
        self._write(path, kind.dump_json(found))
        return found

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        # Late: it brings torch with it, which reading photos and masks does without.
        from common.hrda.files import replacing

        with replacing(path, size=len(content)) as file:
            file.write(content)


def _kept(mask: Path, facts: Path) -> NDArray[np.int64] | None:
    """How many pixels of the mask in a file have each value 0..255; None if there is none or it is damaged."""
    try:
        checksum, counts = _FACTS.validate_json(facts.read_bytes())
        if crc32(mask.read_bytes()) != checksum:
            return None
    except (OSError, ValidationError):
        return None
    pixels = np.zeros(256, np.int64)
    pixels[list(counts)] = list(counts.values())
    return pixels
