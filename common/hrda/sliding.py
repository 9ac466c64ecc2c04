"""Sliding inference over whole images: every distinct window once, row by row of crops, in bounded memory.

The high-resolution windows of neighbouring crops lie on the same places. Each is encoded and decoded once and kept
until no later crop needs it, which gives the result of HRDA's two-level sliding (Hoyer et al., ECCV 2022, section 3.3)
for about half of its work. As soon as no crop can touch a row of pixels any more, the row goes to its sink and is
forgotten: time grows with the number of pixels, memory with the image's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.settings import InferenceSettings
from common.hrda.windows import (
    BOX_GRID,
    MIN_SIDE,
    Box,
    average_overlaps,
    window_boxes,
    window_count,
    window_starts,
)

Asked = Callable[[], None]
"""Called before each batch of windows; what it raises ends the prediction."""
RowSink = Callable[[int, Tensor], None]
"""Gets finished rows from top to bottom, some at a time: the first row's number and logits C×rows×W float32."""


_MOST_ALONG = 100_000
_TOGETHER = 128
"""Rows that are handed over at once at most: of a wide image each takes megabytes."""


class WindowNetwork(Protocol):
    """What sliding needs of a model, whatever it runs on."""

    crop_size: tuple[int, int]
    num_classes: int

    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4, or finer by a whole number, of high-resolution windows B×3×h×w."""

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits B×C×h/4×w/4 and attention B×(C or 1)×h/4×w/4 of crops at half the resolution, B×3×h×w."""

    def context_images(self, images: Tensor) -> Tensor:
        """Crops B×3×H×W at half the resolution."""

    def fuse(self, context: Tensor, attention: Tensor, detail: Tensor) -> Tensor:
        """Both resolutions fused, of the size of the detail."""


class Pixels(Protocol):
    """An image that gives its windows one by one, so that it is never held normalised as a whole."""

    size: tuple[int, int]

    def crop(self, box: Box) -> Tensor:
        """The normalised pixels 3×h×w float32 of `box`; the mean colour (0) where it leaves the image.

        Boxes come row of crops by row of crops, from top to bottom; those of a row lie within its crops."""

    def is_empty(self, box: Box) -> bool:
        """Whether nothing needs to be predicted in `box`, a crop: it is left out, and its logits are no numbers."""


class TensorPixels:
    """An image that is normalised already: 3×H×W float32."""

    def __init__(self, image: Tensor) -> None:
        self._image = image
        self.size = (image.shape[-2], image.shape[-1])

    def crop(self, box: Box) -> Tensor:
        return pad_to(box.crop(self._image), box)

    def is_empty(self, box: Box) -> bool:
        return False


def pad_to(pixels: Tensor, box: Box) -> Tensor:
    """`pixels` …×h×w, cut off at the image's right and bottom border, filled up with 0 to the size of `box`."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, box.right - box.left - width, 0, box.bottom - box.top - height))


@dataclass
class WindowTally:
    """How many windows went through a network, and how many did not need to."""

    computed: int = 0
    """Of both resolutions."""
    left_out: int = 0
    """High-resolution windows in whose place the context was trusted."""

    @property
    def share_left_out(self) -> float:
        """Share of all windows that were left out, 0 to 1."""
        return self.left_out / max(self.computed + self.left_out, 1)


@torch.no_grad()
def sweep(
    network: WindowNetwork,
    photos: Iterable[tuple[Pixels, RowSink]],
    settings: InferenceSettings,
    before_batch: Asked = lambda: None,
    tally: WindowTally | None = None,
) -> None:
    """Predict images of any sizes; they share the batches of windows.

    Args:
        network: in eval mode; with batch statistics the result would depend on what shares a batch.
        photos: images and where their rows go. An image's buffers are made when its turn comes.
        settings: windows, and how many of them go through the network at once.
        before_batch: called before each batch of windows.
        tally: counts the windows.
    """
    waiting, active, tally = iter(photos), [], tally or WindowTally()
    while True:
        # As many images as fill a batch with what they may need next, and no more: each holds buffers.
        while sum(len(one.missing) for one in active) < settings.batch_size:
            photo = next(waiting, None)
            if photo is None:
                break
            active.append(_ImageSweep(network, *photo, settings))
        if not active:
            return
        _run_missing(network, active, settings.batch_size, before_batch, tally)
        for one in active:
            tally.left_out += one.finish_row()
        active = [one for one in active if not one.is_done]


@torch.no_grad()
def finished_rows(
    network: WindowNetwork,
    pixels: Pixels,
    settings: InferenceSettings,
    before_batch: Asked = lambda: None,
    tally: WindowTally | None = None,
) -> Iterator[Tensor]:
    """Rows of one image, as `sweep` hands them over, computed when they are asked for: C×rows×W float32 each."""
    came: list[Tensor] = []
    tally = tally or WindowTally()
    one = _ImageSweep(network, pixels, lambda _, logits: came.append(logits), settings)
    while not one.is_done:
        _run_missing(network, [one], settings.batch_size, before_batch, tally)
        tally.left_out += one.finish_row()
        yield from came
        came.clear()


def count_windows(size: tuple[int, int], crop_size: tuple[int, int], settings: InferenceSettings) -> int:
    """How many windows of both resolutions go through the network for an image, where none is left out.

    Args:
        size: height and width of the image.
        crop_size: of the network.
        settings: windows; mirrored ones are counted too.

    Returns:
        Of an image of more windows along a side than anybody computes only those of the crops, which are no list then.
    """
    settings = settings.complete(crop_size)
    crops = [window_count(*each) for each in zip(size, settings.window, settings.stride, strict=True)]
    if max(crops) > _MOST_ALONG:
        return crops[0] * crops[1]
    layout = _Layout.of(size, crop_size, settings)
    rows = {top + box.top for top in layout.tops for box in layout.detail_boxes}
    columns = {left + box.left for left in layout.lefts for box in layout.detail_boxes}
    count = len(layout.tops) * len(layout.lefts) + len(rows) * len(columns)
    return count * (2 if settings.flip else 1)


def sliding_logits(network: WindowNetwork, images: Tensor, settings: InferenceSettings) -> Tensor:
    """Logits of whole images: overlapping crops, averaged where they overlap.

    Args:
        network: in eval mode.
        images: B×3×H×W float32, normalised, any H and W of at least 1.
        settings: windows.

    Returns:
        B×C×H×W float32. Sides that the network cannot take are padded with the mean colour and cut back.
    """
    rows: list[list[Tensor]] = [[] for _ in images]
    sweep(
        network,
        [
            (TensorPixels(image), lambda _, logits, into=into: into.append(logits))
            for image, into in zip(images, rows, strict=True)
        ],
        settings,
    )
    return torch.stack([torch.cat(parts, dim=1) for parts in rows])


class _Layout(NamedTuple):
    """Where the windows of an image lie."""

    size: tuple[int, int]
    """Height and width of the image, filled up to what the network can take."""
    crop: tuple[int, int]
    tops: list[int]
    lefts: list[int]
    detail_boxes: list[Box]
    """High-resolution windows in pixels of a crop; the same for all crops, which all have the same size."""

    @classmethod
    def of(cls, size: tuple[int, int], crop_size: tuple[int, int], settings: InferenceSettings) -> Self:
        """The layout of an image of `size` for complete settings."""
        size = tuple(max(-(-side // BOX_GRID) * BOX_GRID, MIN_SIDE) for side in size)
        crop = tuple(min(w, side) for w, side in zip(settings.window, size, strict=True))
        starts = (window_starts(*each) for each in zip(size, crop, settings.stride, strict=True))
        detail = (crop_size[0] // 2, crop_size[1] // 2)
        detail_stride = (detail[0] // 2, detail[1] // 2) if settings.detail_overlap else detail
        return cls(size, crop, *starts, window_boxes(crop, detail, detail_stride))


class _Job(NamedTuple):
    """A window that must go through the network."""

    is_context: bool
    box: Box


class _ImageSweep:
    """One image on its way through the network, a row of crops at a time."""

    def __init__(self, network: WindowNetwork, pixels: Pixels, sink: RowSink, settings: InferenceSettings) -> None:
        self._network, self._pixels, self._sink = network, pixels, sink
        settings = settings.complete(network.crop_size)
        layout = _Layout.of(pixels.size, network.crop_size, settings)
        self._size, self._crop, self._tops, self._lefts, self._detail_boxes = layout
        self._weights = crop_weights(self._crop, settings.blending)
        self._num_classes, self._row, self._trusted = network.num_classes, 0, settings.trust_context
        self.is_done = False
        """Whether all rows were handed over."""
        self._details: dict[Box, Tensor] = {}
        self._contexts: dict[Box, tuple[Tensor, Tensor]] = {}
        self._left_out: set[Box] = set()
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None
        self.missing = self._jobs()
        """What may have to go through the network before the present row of crops can be finished."""

    def needed(self, *, is_context: bool) -> list[_Job]:
        """The missing windows of one resolution that must go through the network: first all contexts, and when they
        are there the high-resolution windows in which these are not to be trusted."""
        jobs = [job for job in self.missing if job.is_context == is_context]
        if is_context or self._trusted == 1 or not jobs:
            return jobs
        unsure = self._unsure()
        self._left_out = (self._left_out | {job.box for job in jobs}) - unsure
        return [job for job in jobs if job.box in unsure]

    def _unsure(self) -> set[Box]:
        """High-resolution windows of the present crops in which the context gives no class `trust_context` all over."""
        probabilities = torch.stack([self._contexts[crop][0] for crop in self._present]).softmax(1)
        lowest = [box.scaled_down(BOX_GRID).crop(probabilities).amin((-2, -1)).amax(1) for box in self._detail_boxes]
        unsure = (torch.stack(lowest, dim=1) < self._trusted).tolist()
        return {
            box
            for crop, flags in zip(self._present, unsure, strict=True)
            for box, flag in zip(self._details_of(crop), flags, strict=True)
            if flag
        }

    def pixels(self, job: _Job) -> Tensor:
        """What the network gets for a job: 3×h×w."""
        pixels = self._pixels.crop(job.box)
        return self._network.context_images(pixels[None])[0] if job.is_context else pixels

    def take(self, job: _Job, *answer: Tensor) -> None:
        """Keep the network's answer to a job, each C×h×w."""
        if job.is_context:
            self._contexts[job.box] = answer
        else:
            self._details[job.box] = answer[0]

    def finish_row(self) -> int:
        """Add up the present row of crops, hand over the rows that are complete, and go on to the next.

        Returns:
            How many windows no further row can need, and were left out.
        """
        top = self._tops[self._row]
        for crop in self._present:
            self._add(crop)
        self._contexts.clear()
        self._row += 1
        is_last = self._row == len(self._tops)
        end = self._size[0] if is_last else self._tops[self._row]
        done, height = end - top, min(end, self._pixels.size[0]) - top
        for start in range(0, max(height, 0), _TOGETHER):
            self._sink(top + start, self._finished(slice(start, min(start + _TOGETHER, height))))
        if is_last:
            self.missing, self.is_done = [], True
            return len(self._left_out)
        for rows in () if self._sums is None else (self._sums, self._counts):
            for plane in rows if rows.ndim == 3 else (rows,):
                plane[: self._crop[0] - done] = plane[done:].clone()
                plane[self._crop[0] - done :] = 0
        self._details = {box: logits for box, logits in self._details.items() if box.top >= end}
        self.missing = self._jobs()
        open_boxes = {box for box in self._left_out if box.top >= end}
        count, self._left_out = len(self._left_out) - len(open_boxes), open_boxes
        return count

    def _finished(self, rows: slice) -> Tensor:
        """Logits C×rows×W of rows of the buffer."""
        width = self._pixels.size[1]
        if self._sums is None:
            return torch.full((self._num_classes, rows.stop - rows.start, width), torch.nan)
        return self._sums[:, rows, :width] / self._counts[rows, :width]

    def _details_of(self, crop: Box) -> list[Box]:
        return [box.moved(crop.top, crop.left) for box in self._detail_boxes]

    def _jobs(self) -> list[_Job]:
        (height, width), top = self._crop, self._tops[self._row]
        crops = [Box(top, top + height, left, left + width) for left in self._lefts]
        self._present = crops = [crop for crop in crops if not self._pixels.is_empty(crop)]
        # A dict keeps the order and drops what neighbouring crops share.
        details = dict.fromkeys(box for crop in crops for box in self._details_of(crop) if box not in self._details)
        return [_Job(True, crop) for crop in crops] + [_Job(False, box) for box in details]

    def _add(self, crop: Box) -> None:
        context, attention = (each[None] for each in self._contexts[crop])
        pieces = [
            (relative, self._details[box][None])
            for relative, box in zip(self._detail_boxes, self._details_of(crop), strict=True)
            if box in self._details
        ]
        detail = average_overlaps(pieces, self._crop, None if len(pieces) == len(self._detail_boxes) else context)
        fused = self._network.fuse(context, attention, detail)
        logits = F.interpolate(fused.float(), self._crop, mode="bilinear", align_corners=False)[0]
        if self._sums is None:
            self._sums = logits.new_zeros(len(logits), self._crop[0], self._size[1])
            self._counts = logits.new_zeros(self._crop[0], self._size[1])
            self._weights = self._weights.to(logits)
        columns = slice(crop.left, crop.right)
        self._sums[..., columns].addcmul_(logits, self._weights)
        self._counts[..., columns].add_(self._weights)


def crop_weights(size: tuple[int, int], blending: str) -> Tensor:
    """How much each pixel of a crop counts where crops overlap, H×W float32.

    Args:
        size: of the crop.
        blending: 'uniform', or 'gaussian' for a bell (σ an eighth of the side) that trusts the middle more.
    """
    if blending == "uniform":
        return torch.ones(size)
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side) + 0.5 - side / 2) / (side / 8)) ** 2).clamp_min(1e-3) for side in size
    )
    return rows[:, None] * columns


def _run_missing(
    network: WindowNetwork,
    images: Sequence[_ImageSweep],
    batch_size: int,
    before_batch: Asked,
    tally: WindowTally,
) -> None:
    # Which high-resolution windows are needed is known when the contexts are there.
    for is_context in (True, False):
        groups: dict[tuple[int, int], list[tuple[_ImageSweep, _Job]]] = {}
        for image in images:
            for job in image.needed(is_context=is_context):
                size = (job.box.bottom - job.box.top, job.box.right - job.box.left)
                groups.setdefault(size, []).append((image, job))
        for jobs in groups.values():
            for first in range(0, len(jobs), batch_size):
                before_batch()
                batch = jobs[first : first + batch_size]
                tally.computed += len(batch)
                pixels = torch.stack([image.pixels(job) for image, job in batch])
                answers = network.context_logits(pixels) if is_context else (network.detail_logits(pixels),)
                for (image, job), *answer in zip(batch, *answers, strict=True):
                    image.take(job, *answer)
