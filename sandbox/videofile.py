"""What kind of video a file is, and its frames."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2


class UnreadableVideo(ValueError):
    """The content is not a video that this machine can decode."""


@dataclass(frozen=True)
class VideoFacts:
    """What an instance tells about a video file."""

    codec: str
    """Four letters, e.g. ``mp4v``."""
    width: int
    height: int
    frames: int
    fps: float


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        yield capture
    finally:
        capture.release()


def inspect(path: Path) -> VideoFacts:
    """Look at a video file.

    Raises:
        UnreadableVideo: If its first frame cannot be decoded.
    """
    with _opened(path) as capture:
        readable, first = capture.read()
        fps = capture.get(cv2.CAP_PROP_FPS)
        if not readable or fps <= 0:
            raise UnreadableVideo("The file is not a video in a known format.")
        # What the file says of their number may be a guess.
        frames = 1
        while capture.grab():
            frames += 1
        codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
        return VideoFacts(codec, first.shape[1], first.shape[0], frames, fps)


def read_frame(path: Path, index: int) -> bytes | None:
    """One frame as PNG, or None if the video ends before it."""
    with _opened(path) as capture:
        # A jump would lead to a guess where the rate of frames changes.
        is_before = all(capture.grab() for _ in range(index))
        readable, frame = capture.read() if is_before else (False, None)
    return cv2.imencode(".png", frame)[1].tobytes() if readable else None
