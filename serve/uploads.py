"""Files that came with a request."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from fastapi import UploadFile

from common.data.images import ImageError, ImageTooLarge, decode_image
from serve.limits import Limits


class UploadedImages(Sequence[np.ndarray]):
    """Images of one request, decoded when they are needed: what waits are the compressed bytes."""

    def __init__(self, contents: Sequence[tuple[str, bytes]], limits: Limits) -> None:
        self._contents = list(contents)
        self._limits = limits
        self._is_stopped: Callable[[], bool] = lambda: False

    @classmethod
    def read(cls, files: Sequence[UploadFile], limits: Limits) -> UploadedImages:
        """Read the files of a form."""
        return cls([(file.filename or f"file {n}", file.file.read()) for n, file in enumerate(files)], limits)

    def stop_when(self, is_stopped: Callable[[], bool]) -> None:
        """End the sequence early once `is_stopped` says so: the SDK's loop over images does not ask."""
        self._is_stopped = is_stopped

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> np.ndarray:
        name, content = self._contents[index]
        return decode_image(content, name, max_pixels=self._limits.max_pixels)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            if self._is_stopped():
                return
            yield self[index]


def keep_video(file: UploadFile, limits: Limits) -> Path:
    """Write an uploaded video to a file of its own, whatever the client calls it.

    Raises:
        ImageError: not a video whose first frame can be read.
        ImageTooLarge: its frames have too many pixels.
    """
    handle, name = tempfile.mkstemp(prefix="video_", suffix=".video")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as target:
            shutil.copyfileobj(file.file, target, 1 << 20)
        _check_video(path, file.filename or "the uploaded file", limits)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _check_video(path: Path, name: str, limits: Limits) -> None:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        width, height = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > limits.max_pixels:
            raise ImageTooLarge(
                f"The frames of {name} have too many pixels: at most {limits.max_megapixels:g} megapixels are read. "
                f"Received: {width}×{height}."
            )
        if video.get(cv2.CAP_PROP_FRAME_COUNT) < 1 or not video.read()[0]:
            raise ImageError(f"Cannot read the video {name}: it is damaged, incomplete or of a kind that is not read.")
    finally:
        video.release()
