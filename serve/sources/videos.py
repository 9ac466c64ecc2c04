"""Videos: which of their frames a request asks for, and these frames, read within bounds.

The SDK keeps videos of the instance as files of nothing but their ids and loads them behind the back of the request
that needs them. It reads beyond the end where a start comes without a count, counts the end of a range in for files
and out for ids, and ignores names that its own clients send: `framesDirection`, and for files all with underscores.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from fastapi import UploadFile

from common.data.images import ImageError, decode_image
from serve.errors import NotFound, RequestError, TooLarge
from serve.limits import Limits
from serve.sources.instance_api import WatchedApi
from serve.sources.instance_images import fetch
from serve.sources.video_files import VideoFile, new_folder, require_pixels

FEW = 8
"""So many frames of a video of the instance are fetched one by one; for more of them its file is."""
START = ("startFrameIndex", "start_frame_index", "start_frame")
COUNT = ("framesCount", "frames_count", "num_frames")
END = ("endFrameIndex", "end_frame_index", "end_frame")
STEP = ("stride", "step")
DIRECTION = ("direction", "framesDirection")
DIRECTIONS = ("forward", "backward")
_DECODED_BACKWARD = 4
"""Frames that are decoded together on the way back: a video can be decoded forward only."""
_CHECKED_AT_ONCE = 1000
"""So many frames of an upload are counted before its client gets an answer."""
_CHUNK = 1 << 20


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
    def needed(self) -> int:
        """Frames that a video must have at the least for the range to lie in it."""
        if self.backward:
            return self.start + 1 if self.start is not None else self.count or 1
        start = self.start or 0
        return start + self.count if self.count is not None else max(self.end or 0, start + 1)

    @property
    def needs_all(self) -> bool:
        """Whether the range depends on where the video ends, or on how long its frames are shown."""
        return (self.count is None and self.end is None) or (self.backward and self.start is None)

    def indices(self, frames: int, name: str, times: Sequence[float] | None = None) -> range:
        """Indices of the frames, in the order in which they are predicted.

        Args:
            frames: of the video.
            name: what an error message calls the video.
            times: when each frame is shown, in milliseconds; None: not known.

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
        elif self.duration is not None and times is not None:
            shown = range(start, start + sign * left, sign)
            count = sum(round(abs(times[index] - times[start]), 3) < 1000 * self.duration for index in shown)
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
    size: tuple[int, int]
    frames_said: int

    def choose(self, choice: FrameChoice, goes_on: Callable[[], bool], most: int | None) -> range:
        """Indices of the frames of a choice; empty once `goes_on` says no. More than `most` are refused."""

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that are not there."""

    def close(self) -> None:
        """Nothing is read any more."""


class UploadedVideo:
    """A video in a file.

    Args:
        file: of the video; `close` closes it.
    """

    def __init__(self, file: VideoFile) -> None:
        self._file, self.name, self.size, self.frames_said = file, file.name, file.size, file.frames_said
        self.read, self.close = file.read, file.close

    def choose(self, choice: FrameChoice, goes_on: Callable[[], bool], most: int | None) -> range:
        """Indices of the frames of a choice, counted in the file; empty once `goes_on` says no.

        Raises:
            RequestError: the range does not lie inside the video.
            TooLarge: more than `most` frames.
        """
        frames = self._file.count(None if choice.needs_all else choice.needed, goes_on)
        if not goes_on():
            return range(0)
        return _at_most(choice.indices(frames, self.name, self._file.times()), most)


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

    def __init__(self, api: WatchedApi, video_id: int, limits: Limits, is_stopped: Callable[[], bool]) -> None:
        self._api, self._limits, self._is_stopped = api, limits, is_stopped
        info = api.video.get_info_by_id(video_id)
        if info is None:
            raise NotFound(f"There is no video {video_id} on the instance, or it is not yours.")
        self._id, self.name = video_id, f"{video_id} of the instance"
        self.place = {"video_id": info.id, "dataset_id": info.dataset_id, "project_id": info.project_id}
        """Where the video lies, as results tell it."""
        if not info.frames_count or not info.frame_width or not info.frame_height:
            raise RequestError(f"The instance does not know the frames of video {video_id} yet. Try again later.")
        self.size = (info.frame_height, info.frame_width)
        """Height and width of a frame."""
        require_pixels(*self.size, self.name, limits)
        self._bytes = int(info.file_meta.get("size") or 0)
        self.frames_said = int(info.frames_count)
        self._file: VideoFile | None = None

    def choose(self, choice: FrameChoice, goes_on: Callable[[], bool], most: int | None) -> range:
        """Indices of the frames of a choice; empty once `goes_on` says no.

        A few whose place the choice says are fetched alone. For others the file is fetched, and its frames counted.

        Raises:
            RequestError: the range does not lie inside the video.
            TooLarge: more than `most` frames, or a file that is larger than the service reads.
        """
        indices = _at_most(choice.indices(self.frames_said, self.name), most)
        if len(indices) <= FEW and not choice.needs_all:
            return indices
        if self._bytes > self._limits.max_request_bytes:
            raise self._too_large()
        self._file = self._fetch_file()
        return UploadedVideo(self._file).choose(choice, goes_on, most) if self._file is not None else range(0)

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames by index, each H×W×3 uint8 RGB; without those that cannot be decoded."""
        if self._file is None:
            return {index: self._fetch_frame(index) for index in indices}
        return self._file.read(indices)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()

    def _fetch_frame(self, index: int) -> np.ndarray:
        name = f"frame {index} of video {self.name}"
        content = fetch(self._api, "videos.download-frame", {"videoId": self._id, "frame": index}, name, self._limits)
        return decode_image(content, name, max_pixels=self._limits.max_pixels)

    def _fetch_file(self) -> VideoFile | None:
        """The video in a file of its own; None once it is not wanted any more."""
        with (
            new_folder() as folder,
            closing(self._api.pieces("videos.download", {"id": self._id})) as pieces,
        ):
            path = folder / "video"
            with path.open("wb") as file:
                for piece in pieces:
                    if self._is_stopped():
                        break
                    file.write(piece)
                    if file.tell() > self._limits.max_request_bytes:
                        raise self._too_large()
            if self._is_stopped():
                shutil.rmtree(folder)
                return None
            return VideoFile(path, self.name, self._limits, folder)

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
        goes_on: asked while frames are counted, whether they are still wanted.
        most: frames that a client may wait for; None: any number.

    Raises:
        RequestError: the range does not lie inside the video, or is too long for it.
        TooLarge: more than `most` frames.
    """

    def __init__(
        self, source: FrameSource, choice: FrameChoice, goes_on: Callable[[], bool], most: int | None = None
    ) -> None:
        self._source = source
        self._indices = source.choose(choice, goes_on, most)
        self._together = _DECODED_BACKWARD if choice.backward else 1
        self._handed_over: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each frame."""
        return [self._source.size] * len(self)

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in (self._indices[at : at + self._together] for at in range(0, len(self), self._together)):
            found = self._source.read(chunk)
            for index in chunk:
                if index not in found:
                    raise ImageError(f"Frame {index} of video {self._source.name} cannot be read: it is damaged there.")
                self._handed_over.append(index)
                yield found.pop(index)

    def details(self, place: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What the results, in their order, say besides their annotations: `place` and the frame's index."""
        while True:
            yield {**place, "frame_index": self._handed_over.popleft()}


def keep_video(file: UploadFile, state: Mapping[str, Any], limits: Limits) -> UploadedVideo:
    """Write an uploaded video to a file of its own, whatever the client calls it; `close` removes it.

    Args:
        file: what was uploaded.
        state: of the request, checked.
        limits: of the service.

    Raises:
        ImageError: not a video whose first frame can be read, or one of too many pixels.
        RequestError: the frames that the request asks for do not lie inside it.
    """
    name, choice = file.filename or "without a name", FrameChoice.of(state)
    with new_folder() as folder:
        path = folder / "video"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target, _CHUNK)
        video = VideoFile(path, name, limits, folder)
        try:
            if choice.needed <= _CHECKED_AT_ONCE and (frames := video.count(choice.needed)) < choice.needed:
                choice.indices(frames, name)
        except RequestError:
            video.close()
            raise
    return UploadedVideo(video)


def _at_most(indices: range, most: int | None) -> range:
    """`indices`, unless they are more than a client may wait for."""
    if most is not None and len(indices) > most:
        raise TooLarge(
            f"At most {most} frames are predicted while a client waits. Use the asynchronous address, or choose "
            f"fewer by framesCount or step. Received: {len(indices)} frames."
        )
    return indices
