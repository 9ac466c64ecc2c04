"""Photos that two sets of photos share: the same file, or another file of the same content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from common.data.folders import ImageRecord

_BEGINNING = 64 * 2**10


def shared_photos(first: Iterable[ImageRecord], second: Iterable[ImageRecord]) -> list[str]:
    """Names (dataset and file) of the photos of `first` that are in `second` too, by path or by content.

    Only files of equal size and equal beginning are read whole. A file that cannot be read is none of them.
    """
    second = list(second)
    paths = {record.image_path.resolve() for record in second}
    sizes: dict[int, list[Path]] = defaultdict(list)
    for record in second:
        sizes[_size(record.image_path)].append(record.image_path)
    digests: dict[tuple[Path, int], bytes | None] = {}

    def digest(path: Path, length: int) -> bytes | None:
        if (path, length) not in digests:
            digests[path, length] = _digest(path, length)
        return digests[path, length]

    def is_shared(path: Path) -> bool:
        if path.resolve() in paths:
            return True
        size = _size(path)
        alike = sizes.get(size, []) if size > 0 else []
        for length in (_BEGINNING, size):
            own = digest(path, length) if alike else None
            alike = [other for other in alike if own is not None and digest(other, length) == own]
        return bool(alike)

    return [record.key for record in first if is_shared(record.image_path)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path, length: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(length)).digest()
    except OSError:
        return None
