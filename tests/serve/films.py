"""Films for tests: each frame says its number, and what a file says about its frames can be edited."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

SIDE, BITS = 64, 8
_WITH_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def write_film(path: Path, count: int, codec: str = "mp4v", fps: float = 25) -> Path:
    """A film of `count` frames of 64×64 pixels, of which `number_of` tells the number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (SIDE, SIDE))
    assert writer.isOpened()
    for number in range(count):
        bits = [255 * (number >> bit & 1) for bit in range(BITS)]
        writer.write(np.repeat(np.tile(np.repeat(bits, SIDE // BITS), (SIDE, 1))[..., None], 3, 2).astype(np.uint8))
    writer.release()
    return path


def number_of(frame: np.ndarray) -> int:
    """The number of a frame of `write_film`."""
    columns = frame.mean((0, 2)).reshape(BITS, -1).mean(1)
    return sum(1 << bit for bit in range(BITS) if columns[bit] > 128)


def with_durations(content: bytes, durations: Sequence[int]) -> bytes:
    """An MP4 film whose table of times gives each frame its own duration, in ticks of the film."""
    table = b"".join(struct.pack(">II", 1, duration) for duration in durations)
    table = struct.pack(">I4sII", 16 + len(table), b"stts", 0, len(durations)) + table
    return _with_box(content, b"stts", table)


def without_duration(content: bytes) -> bytes:
    """A WebM film that does not say how long it is."""
    at = content.index(b"\x44\x89\x88")
    # An element that readers pass over, of the same length.
    return content[:at] + b"\xec\x89" + bytes(9) + content[at + 11 :]


def with_frames_said(content: bytes, count: int) -> bytes:
    """An AVI film whose headers say that it has `count` frames."""
    number, changed = struct.pack("<I", count), bytearray(content)
    at = content.index(b"avih") + 8 + 16
    changed[at : at + 4] = number
    at = content.index(b"strh") + 8 + 32
    changed[at : at + 4] = number
    return bytes(changed)


def _with_box(content: bytes, wanted: bytes, new: bytes) -> bytes:
    parts = []
    for kind, box in _boxes(content):
        if kind == wanted:
            parts.append(new)
        elif kind in _WITH_BOXES:
            inner = _with_box(box[8:], wanted, new)
            parts.append(struct.pack(">I4s", 8 + len(inner), kind) + inner)
        elif kind != b"edts":
            parts.append(box)
    return b"".join(parts)


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        yield kind, content[at : at + size]
        at += size
