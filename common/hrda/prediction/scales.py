"""Probabilities averaged over several scales of a photo, row by row: none is ever held for the whole photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.sliding import RowSink

_TOGETHER = 256
"""Rows of the photo that are averaged at once."""


def scaled_sizes(size: tuple[int, int], scales: Sequence[float]) -> dict[tuple[int, int], int]:
    """Sizes of a photo of `size` (H, W) at `scales`, and how often each comes."""
    return dict(Counter(tuple(max(round(side * scale), 1) for side in size) for scale in scales))


def average(
    size: tuple[int, int], passes: Sequence[tuple[tuple[int, int], int, Iterator[Tensor]]], sink: RowSink
) -> None:
    """Average the probabilities of a photo that is predicted at several sizes.

    Args:
        size: (H, W) of the photo.
        passes: for each size that and its weight, and the rows of its logits, C×rows×w float32, from top to bottom.
            The pass that is furthest behind is asked for its next rows, so that the others hold few.
        sink: gets rows of the photo: the logarithms of the mean probabilities, which stand for logits.
    """
    rows = [_Rows(own, size, weight, logits) for own, weight, logits in passes]
    total, done = sum(each.weight for each in rows), 0
    while done < size[0]:
        last = min(rows, key=lambda each: each.ready)
        if last.ready <= done:
            last.advance()
            continue
        end = min(last.ready, done + _TOGETHER)
        mean = sum(each.take(done, end) * (each.weight / total) for each in rows)
        sink(done, mean.clamp_min(1e-8).log())
        done = end


class _Rows:
    """Probabilities at one size, resized to the photo's as bilinear resizing of the whole would."""

    def __init__(self, own: tuple[int, int], size: tuple[int, int], weight: int, logits: Iterator[Tensor]) -> None:
        self.weight, self._logits, self._width = weight, logits, size[1]
        places = np.clip((np.arange(size[0]) + 0.5) * own[0] / size[0] - 0.5, 0, own[0] - 1)
        self._upper = np.floor(places).astype(np.int64)
        self._lower = np.minimum(self._upper + 1, own[0] - 1)
        self._share = (places - self._upper).astype(np.float32)
        self._first = 0
        self._held: Tensor | None = None

    @property
    def ready(self) -> int:
        """Rows of the photo for which all is there."""
        there = self._first + (0 if self._held is None else self._held.shape[1])
        return int(np.searchsorted(self._lower, there))

    def advance(self) -> None:
        """Compute the next rows."""
        probabilities = next(self._logits).softmax(0)
        height = probabilities.shape[1]
        if probabilities.shape[2] != self._width:
            shape = (height, self._width)
            probabilities = F.interpolate(probabilities[None], shape, mode="bilinear", align_corners=False)[0]
        self._held = probabilities if self._held is None else torch.cat([self._held, probabilities], dim=1)

    def take(self, start: int, end: int) -> Tensor:
        """Probabilities C×rows×W of the photo's rows from `start` to before `end`; those above are forgotten."""
        first = int(self._upper[start])
        self._held, self._first = self._held[:, first - self._first :], first
        upper, lower, share = (
            torch.from_numpy(each[start:end]).to(self._held.device) for each in (self._upper, self._lower, self._share)
        )
        return torch.lerp(self._held[:, upper - first], self._held[:, lower - first], share[:, None])
