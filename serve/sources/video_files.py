"""Frames of a video in a file, each known by its place among those that can be decoded.

What a file says about its frames is not believed: of a rate that changes a container tells the mean, from which OpenCV
guesses where a frame lies, and of some kinds the number of frames is guessed from their length. Here frames are counted
by decoding them, and a jump is checked by the time of the frame that it led to.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from common.data.images import ImageError, ImageTooLarge
from serve.limits import Limits

FORMATS = ("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "asf", "flv", "ogg", "mxf")
"""Kinds of files that are opened, by FFmpeg's names. Others are texts that name further files, or streams."""
# OpenCV reads it whenever it opens a video. A file of a kind that is opened names no other file either.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"format_whitelist;{','.join(FORMATS)}|protocol_whitelist;file"
_SKIPPED = 20
"""So many frames are passed over faster one by one than by a jump."""
_JUMPS = 3
"""Jumps to one frame, each from further before it, until it is looked for from the beginning."""
_ASKED_AFTER = 50
"""Frames that are counted between two questions whether they are still wanted."""
_UNREADABLE = "Cannot read the video {}: it is damaged, incomplete or of a kind that is not read."


class VideoFile:
    """A video in a file.

    Args:
        path: of the file.
        name: what an error message calls it.
        limits: of the service.
        folder: is removed by `close`; None: nothing is.

    Raises:
        ImageError: not a video whose first frame can be decoded.
        ImageTooLarge: its frames have too many pixels.
    """

    def __init__(self, path: Path, name: str, limits: Limits, folder: Path | None = None) -> None:
        self.name, self._path, self._folder = name, str(path), folder
        self._counter, self._capture = _open(self._path), _open(self._path)
        self.frames_said = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        """Frames by what the file says, which may be a guess, and no number at all."""
        self._times = array("d")
        self._is_counted = False
        self._next = 0
        try:
            sides = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            self.size: tuple[int, int] = tuple(int(self._capture.get(side)) for side in sides)
            """Height and width of a frame."""
            require_pixels(*self.size, name, limits)
            if self.count(1) < 1:
                raise ImageError(_UNREADABLE.format(name))
        except ImageError:
            self._release()
            raise

    def count(self, at_most: int | None = None, goes_on: Callable[[], bool] = lambda: True) -> int:
        """How many frames there are.

        Args:
            at_most: stop to count there; None: at the end of the video.
            goes_on: asked at times whether they are still wanted.
        """
        while not self._is_counted and (at_most is None or len(self._times) < at_most):
            if len(self._times) % _ASKED_AFTER == 0 and not goes_on():
                break
            if self._counter.grab():
                self._times.append(self._counter.get(cv2.CAP_PROP_POS_MSEC))
            else:
                self._is_counted = True
                self._counter.release()
        return len(self._times)

    def times(self) -> Sequence[float]:
        """When each counted frame is shown, in milliseconds."""
        return self._times

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that are not there."""
        found = {}
        for index in sorted(indices):
            if not self._go_before(index):
                break
            self._next = index + 1
            is_read, frame = self._capture.read()
            if is_read:
                found[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return found

    def close(self) -> None:
        """Close the file, and remove its folder where it has one of its own."""
        self._release()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _go_before(self, index: int) -> bool:
        """Whether the next frame that is decoded is that of `index`."""
        if not 0 <= index - self._next <= _SKIPPED and not self._jump_before(index):
            self._capture.release()
            self._capture, self._next = _open(self._path), 0
        return all(self._capture.grab() for _ in range(index - self._next))

    def _jump_before(self, index: int) -> bool:
        """Whether a jump led to a known frame before `index`, from which the rest is few frames."""
        if self.count(index + 1) <= index or index <= _SKIPPED or not self._is_ordered(index):
            return False
        guess = self._capture.get(cv2.CAP_PROP_FPS) * self._times[index] / 1000 - _SKIPPED // 2
        for _ in range(_JUMPS):
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, max(int(guess), 0))
            if not self._capture.grab():
                return False
            found = bisect_left(self._times, time := self._capture.get(cv2.CAP_PROP_POS_MSEC), hi=index + 1)
            if found < index and self._times[found] == time:
                self._next = found + 1
                return True
            guess -= 4 * _SKIPPED
        return False

    def _is_ordered(self, index: int) -> bool:
        """Whether the time tells a frame up to `index` from all others."""
        return bool((np.diff(self._times[: index + 1]) > 0).all())

    def _release(self) -> None:
        self._counter.release()
        self._capture.release()


def require_pixels(height: int, width: int, name: str, limits: Limits) -> None:
    """Refuse a video by the size of its frames.

    Raises:
        ImageTooLarge: too many pixels.
    """
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The frames of video {name} have too many pixels: at most {limits.max_megapixels:g} megapixels are read. "
            f"Received: {width}×{height}."
        )


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder for one video and nothing else, which is removed if the block fails."""
    folder = Path(tempfile.mkdtemp(prefix="video_"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _open(path: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(path, cv2.CAP_FFMPEG)
