"""Videos: which of their frames a request asks for, and these frames, read within bounds.

The SDK keeps videos of the instance as files of nothing but their ids and loads them behind the back of the request
that needs them. It reads beyond the end where a start comes without a count, counts the end of a range in for files
and out for ids, and ignores names that its own clients send: `framesDirection`, and for files all with underscores.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import cv2
import numpy as np
from fastapi import UploadFile
from supervisely import Api

from common.data.images import ImageError, ImageTooLarge, decode_image
from serve.errors import NotFound, RequestError, TooLarge
from serve.limits import Limits
from serve.sources.instance_images import fetch

FEW = 8
"""So many frames of a video of the instance are fetched one by one; for more of them its file is."""
START = ("startFrameIndex", "start_frame_index", "start_frame")
COUNT = ("framesCount", "frames_count", "num_frames")
END = ("endFrameIndex", "end_frame_index", "end_frame")
STEP = ("stride", "step")
DIRECTION = ("direction", "framesDirection")
DIRECTIONS = ("forward", "backward")
_SKIPPED = 20
"""So many frames are passed over faster one by one than by looking for a place to start from."""
_DECODED_BACKWARD = 4
"""Frames that are decoded together on the way back: a video can be decoded forward only."""
_CHUNK = 1 << 20
_UNREADABLE = "Cannot read the video {}: it is damaged, incomplete or of a kind that is not read."


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video a request asks for."""

    start: int | None = None
    """The first one; None: that of the video, or backward its last one."""
    count: int | None = None
    """Length of the range, of which every `step`th frame is predicted."""
    end: int | None = None
    """The frame before which the range ends, where no count is given."""
    duration: float | None = None
    """Length of the range in seconds, where neither is given; None: to the end of the video."""
    step: int = 1
    backward: bool = False

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """What a checked `state` says, under any of the names that clients use."""

        def given(names: Sequence[str], default: Any = None) -> Any:
            return next((state[name] for name in names if state.get(name) is not None), default)

        backward = given(DIRECTION) == "backward"
        return cls(given(START), given(COUNT), given(END), state.get("duration"), given(STEP, 1), backward)

    @property
    def is_open(self) -> bool:
        """Whether the range goes as far as there are frames."""
        return self.count is None and self.end is None

    def indices(self, frames: int, fps: float, name: str) -> range:
        """Indices of the frames, in the order in which they are predicted.

        Args:
            frames: of the video.
            fps: frames a second.
            name: what an error message calls the video.

        Raises:
            RequestError: the range does not lie inside the video; it says what does.
        """
        sign = -1 if self.backward else 1
        start = (frames - 1 if self.backward else 0) if self.start is None else self.start
        if start >= frames:
            raise RequestError(
                f"Video {name} has {frames} frames, with indices 0 to {frames - 1}. Received: start frame {start}."
            )
        left = start + 1 if self.backward else frames - start
        count = left
        if self.count is not None:
            count = self.count
        elif self.end is not None:
            count = sign * (self.end - start)
        elif self.duration is not None:
            if not fps > 0:
                raise RequestError(f"The seconds of video {name} are not known. Give framesCount in place of duration.")
            count = min(left, max(1, round(self.duration * fps)))
        if not 1 <= count <= left:
            direction = DIRECTIONS[self.backward]
            asked = f"framesCount {count}" if self.count is not None else f"endFrameIndex {self.end}"
            raise RequestError(
                f"Video {name} has {frames} frames, {left} of them from frame {start} {direction}. Received: {asked}."
            )
        return range(start, start + sign * count, sign * self.step)


class FrameSource(Protocol):
    """A video that frames are read from."""

    name: str
    frames: int
    fps: float

    def expect(self, count: int) -> None:
        """How many frames will be read altogether."""

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that are not there."""

    def close(self) -> None:
        """Nothing is read any more."""


class VideoFile:
    """A video in a file.

    Args:
        path: of the file.
        name: what an error message calls it.
        limits: of the service.

    Raises:
        ImageError: not a video.
        ImageTooLarge: its frames have too many pixels.
    """

    def __init__(self, path: Path, name: str, limits: Limits) -> None:
        self.name = name
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        self._next = 0
        self.frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        try:
            if self.frames < 1:
                raise ImageError(_UNREADABLE.format(name))
            sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
            require_pixels(*(int(self._capture.get(side)) for side in sides), name, limits)
        except ImageError:
            self.close()
            raise

    def expect(self, count: int) -> None:
        """How many frames will be read altogether."""

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that cannot be decoded."""
        found = {}
        for index in sorted(indices):
            if 0 <= index - self._next <= _SKIPPED:
                for _ in range(index - self._next):
                    self._capture.grab()
            else:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            self._next = index + 1
            is_read, frame = self._capture.read()
            if is_read:
                found[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return found

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class InstanceVideo:
    """A video of the Supervisely instance: a few of its frames, or its file, which is removed by `close`.

    Args:
        api: the instance, as the client that asks.
        video_id: of the video.
        limits: of the service.
        is_stopped: whether its frames are of no use any more.

    Raises:
        NotFound: there is no such video, or the client may not see it.
        RequestError, ImageTooLarge: the instance cannot tell its frames, or they have too many pixels.
    """

    def __init__(self, api: Api, video_id: int, limits: Limits, is_stopped: Callable[[], bool]) -> None:
        self._api, self._limits, self._is_stopped = api, limits, is_stopped
        info = api.video.get_info_by_id(video_id)
        if info is None:
            raise NotFound(f"There is no video {video_id} on the instance, or it is not yours.")
        self._id, self.name = video_id, f"{video_id} of the instance"
        self.place = {"video_id": info.id, "dataset_id": info.dataset_id, "project_id": info.project_id}
        """Where the video lies, as results tell it."""
        if not info.frames_count or not info.frame_width or not info.frame_height:
            raise RequestError(f"The instance does not know the frames of video {video_id} yet. Try again later.")
        require_pixels(info.frame_width, info.frame_height, self.name, limits)
        self._size = int(info.file_meta.get("size") or 0)
        self.frames = int(info.frames_count)
        seconds = info.file_meta.get("duration") or 0
        self.fps = self.frames / seconds if seconds > 0 else 0.0
        self._expected = self.frames
        self._path: Path | None = None
        self._file: VideoFile | None = None

    def expect(self, count: int) -> None:
        """How many frames will be read altogether; the way they are fetched depends on it.

        Raises:
            TooLarge: for so many the file is needed, which is larger than the service reads.
        """
        self._expected = count
        if count > FEW and self._size > self._limits.max_request_bytes:
            raise self._too_large()

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that cannot be decoded."""
        if self._expected <= FEW:
            return {index: self._fetch_frame(index) for index in indices}
        if self._file is None:
            self._path = self._fetch_file()
            if self._is_stopped():
                return {}
            self._file = VideoFile(self._path, self.name, self._limits)
        return self._file.read(indices)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _fetch_frame(self, index: int) -> np.ndarray:
        name = f"frame {index} of video {self.name}"
        content = fetch(self._api, "videos.download-frame", {"videoId": self._id, "frame": index}, name, self._limits)
        return decode_image(content, name, max_pixels=self._limits.max_pixels)

    def _fetch_file(self) -> Path:
        with (
            new_file() as path,
            path.open("wb") as file,
            closing(self._api.post("videos.download", {"id": self._id}, stream=True)) as response,
        ):
            for chunk in response.iter_content(_CHUNK):
                if self._is_stopped():
                    break
                file.write(chunk)
                if file.tell() > self._limits.max_request_bytes:
                    raise self._too_large()
        return path

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"Video {self.name} has more than {self._limits.max_request_mb:g} megabytes. "
            f"At most {FEW} frames of it are predicted at once: choose them with startFrameIndex and framesCount."
        )


class Frames:
    """Frames of a video in the order of a request, decoded when they are needed.

    Args:
        source: the video.
        choice: what is asked for.
        goes_on: asked before each frame, whether it is still wanted.

    Raises:
        RequestError: the range does not lie inside the video, or is too long for it.
    """

    def __init__(self, source: FrameSource, choice: FrameChoice, goes_on: Callable[[], bool]) -> None:
        self._source, self._choice, self._goes_on = source, choice, goes_on
        self._indices = choice.indices(source.frames, source.fps, source.name)
        self._handed_over: deque[int] = deque()
        source.expect(len(self._indices))

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        size = _DECODED_BACKWARD if self._choice.backward else 1
        for chunk in (self._indices[at : at + size] for at in range(0, len(self), size)):
            if not self._goes_on():
                return
            found = self._source.read(chunk)
            for index in chunk:
                if not self._goes_on():
                    return
                if index in found:
                    self._handed_over.append(index)
                    yield found.pop(index)
                elif not self._may_lack(index):
                    raise ImageError(
                        f"Frame {index} of video {self._source.name} cannot be read: the video ends before it, or is "
                        "damaged there."
                    )

    def require_at_most(self, most: int) -> None:
        """Refuse a choice of more frames than a client may wait for.

        Raises:
            TooLarge: it says what to do.
        """
        if len(self) > most:
            raise TooLarge(
                f"At most {most} frames are predicted while a client waits. Use the asynchronous address, or choose "
                f"fewer by framesCount or step. Received: {len(self)} frames."
            )

    def details(self, place: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What the results, in their order, say besides their annotations: `place` and the frame's index."""
        while True:
            yield {**place, "frame_index": self._handed_over.popleft()}

    def _may_lack(self, index: int) -> bool:
        # Some kinds of files tell their length in time only, from which the number of frames is guessed.
        return self._choice.is_open and self._source.frames - index <= max(1.0, self._source.fps)


def require_pixels(width: int, height: int, name: str, limits: Limits) -> None:
    """Refuse a video by the size of its frames.

    Raises:
        ImageTooLarge: too many pixels.
    """
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The frames of video {name} have too many pixels: at most {limits.max_megapixels:g} megapixels are read. "
            f"Received: {width}×{height}."
        )


def keep_video(file: UploadFile, state: Mapping[str, Any], limits: Limits) -> Path:
    """Write an uploaded video to a file of its own, whatever the client calls it.

    Args:
        file: what was uploaded.
        state: of the request, checked.
        limits: of the service.

    Raises:
        ImageError: not a video whose first frame can be read, or one of too many pixels.
        RequestError: the frames that the request asks for do not lie inside it.
    """
    name = file.filename or "without a name"
    with new_file() as path:
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target, _CHUNK)
        with closing(VideoFile(path, name, limits)) as video:
            FrameChoice.of(state).indices(video.frames, video.fps, name)
            if not video.read([0]):
                raise ImageError(_UNREADABLE.format(name))
    return path


@contextmanager
def new_file() -> Iterator[Path]:
    """A file for a video, which is removed if the block fails."""
    handle, name = tempfile.mkstemp(prefix="video_", suffix=".video")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
