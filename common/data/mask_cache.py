"""Masks that are drawn once: PNG files on disk, named by what they were drawn from, their pixel counts beside them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from common.data.images import read_image

_VERSION = 1
"""Part of every name: raise it when the same labels are to be drawn differently."""


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
    runs may share a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._masks = Path(folder) / "masks"
        self._masks.mkdir(parents=True, exist_ok=True)
        self._index = Path(folder) / "images.json"
        self._sizes: dict[str, list[int]] = {}
        if self._index.is_file():
            self._sizes = json.loads(self._index.read_text())

    def __enter__(self) -> "MaskCache":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._write(self._index, json.dumps(self._sizes).encode())

    def image_size(self, path: Path) -> tuple[int, int]:
        """Height and width of a photo, which is decoded unless the same file (size, time of change) was before.

        Raises:
            ImageError: The photo cannot be read.
        """
        key = str(path.resolve())
        known = self._sizes.get(key)
        if known and path.is_file() and known[:2] == _state(path):
            return known[2], known[3]
        image = read_image(path)
        self._sizes[key] = [*_state(path), *image.shape[:2]]
        return image.shape[:2]

    def mask(self, key: str, draw: Callable[[], NDArray[np.uint8]]) -> tuple[Path, NDArray[np.int64]]:
        """The mask kept under `key`, drawn by `draw` if there is none.

        Returns:
            The PNG file (H×W uint8), and how many of its pixels have each value 0..255.
        """
        path, counts = self._masks / f"{key}.png", self._masks / f"{key}.json"
        if path.is_file() and counts.is_file():
            pixels = np.zeros(256, np.int64)
            for value, count in json.loads(counts.read_text()).items():
                pixels[int(value)] = count
            return path, pixels
        mask = draw()
        pixels = np.bincount(mask.ravel(), minlength=256)
        self._write(path, cv2.imencode(".png", mask)[1].tobytes())
        self._write(counts, json.dumps({int(value): int(pixels[value]) for value in pixels.nonzero()[0]}).encode())
        return path, pixels

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        # Late: it brings torch with it, which reading photos and masks does without.
        from common.hrda.files import replacing

        with replacing(path, size=len(content)) as file:
            file.write(content)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
