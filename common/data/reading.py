"""Reading the photos and masks of a run, from disks that may be gone for a while.

A file that cannot be read is read again before it counts as lost. One whose disk seems away (a network share that drops
out) is waited for; one that is gone, damaged or replaced is read once more, a moment later.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from common.data.images import ImageError, read_image, read_size

T = TypeVar("T")

PAUSES_S = (0.5, 1.5, 3.0, 5.0, 10.0, 20.0, 20.0, 30.0, 30.0)
"""Pauses between the looks for a disk that seems away: two minutes, within which a share or its server is back."""
A_MOMENT_S = 0.2
_HEADER_BYTES = 4096
# What is certainly of the one file, if its folder still has others.
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class MaskLost(ImageError):
    """A mask that was drawn for the run cannot be read any more; the message names it."""


def read_mask(path: Path) -> NDArray[np.uint8]:
    """H×W uint8 class indices from a PNG file.

    Raises:
        MaskLost: the file cannot be read.
    """
    content = _bytes_of_mask(path)
    mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise MaskLost(f"{_damaged(path)} Expected a readable 8-bit single-channel PNG mask.")
    return mask


def read_labelled_photo(path: Path, mask: Path) -> NDArray[np.uint8]:
    """A photo as `read_image` gives it, of which `mask` was drawn.

    Raises:
        MaskLost: the mask's header cannot be read.
        ImageError: the photo cannot be read, or is not of the size that its labels are for.
    """
    image = read_image(path)
    header = _bytes_of_mask(mask, _HEADER_BYTES)
    try:
        width, height = read_size(header)
    except ImageError as error:
        raise MaskLost(_damaged(mask)) from error
    if image.shape[:2] != (height, width):
        raise ImageError(
            f"The image {path} is another one than its labels are for: {image.shape[0]} pixels high and "
            f"{image.shape[1]} wide, where {height} and {width} were prepared."
        )
    return image


def _bytes_of_mask(path: Path, most: int = -1) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise MaskLost(f"Cannot read the mask {path}: {error.strerror or error}.") from error


def _damaged(mask: Path) -> str:
    return f"The mask {mask} is damaged."


def is_away(error: Exception) -> bool:
    """Whether `error` says that a disk cannot be reached, rather than that something is wrong with one file."""
    cause = error.__cause__
    if not isinstance(cause, OSError):
        return False
    return not (isinstance(cause, _OF_THE_FILE) and _has_neighbours(cause.filename))


def only_this_one(error: Exception) -> bool:
    """Whether the file that `error` is about is lost and its disk is there: another file of its folder can be read."""
    if not is_away(error):
        return True
    for other in _neighbours(error.__cause__.filename):
        try:
            with other.open("rb") as file:
                return bool(file.read(1))
        except OSError:
            continue
    return False


def _has_neighbours(name: str | None) -> bool:
    return any(True for _ in _neighbours(name))


def _neighbours(name: str | None) -> list[Path]:
    """Some other files of a file's folder; none if that cannot be reached either."""
    path = Path(name or "")
    try:
        return [other for other in path.parent.iterdir() if other != path][:3]
    except OSError:
        return []


@dataclass(frozen=True)
class Patience:
    """How what could not be read is read again."""

    waiting: Callable[[str], None] = lambda text: None
    """Gets a sentence before a disk is waited for; may raise."""
    pause: Callable[[float], object] = time.sleep
    """Waits so many seconds; gives True to give up."""

    def read(self, read: Callable[[], T], path: Path, lost: dict[Path, str] | None = None) -> T | None:
        """What `read` returns; None where the photo at `path`, which it reads, is lost and may be left out.

        Args:
            read: reads the photo, and its mask if it has one.
            path: of the photo.
            lost: takes it, and why; None: it may not be left out.

        Raises:
            MaskLost: its mask cannot be read.
            ImageError: it cannot be read, and may not be left out or its whole disk is away.
        """
        try:
            return read()
        except ImageError as error:
            try:
                return self.again(read, error)
            except MaskLost:
                raise
            except ImageError as latest:
                if lost is None or not only_this_one(latest):
                    raise
                lost[path] = str(latest)
                return None

    def again(self, read: Callable[[], T], error: ValueError) -> T:
        """What `read` returns, which has just failed with `error` and is tried again after a moment or later.

        Raises:
            ValueError: the last error of `read`, or `error`.
        """
        if not is_away(error):
            self.pause(A_MOMENT_S)
        return self.read_after(read, error)

    def read_after(self, read: Callable[[], T], error: ValueError) -> T:
        """As `again`, at once unless the disk is away.

        Raises:
            ValueError: as `again`.
        """
        if not is_away(error):
            return read()
        self.waiting(f"{error} Its disk seems to be away: for {sum(PAUSES_S) / 60:.0f} minutes it is tried again.")
        for seconds in PAUSES_S:
            if self.pause(seconds) is True:
                break
            try:
                return read()
            except ValueError as latest:
                error = latest
                if not is_away(error):
                    # The disk is back without the file.
                    break
        raise error
