"""Where sliding windows lie and how their overlaps are averaged: for the teacher, the predictor, both resolutions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_STRIDE = 4
"""Pixels of a cell of the logits; those of the detail are half as large where it is refined."""
# Box corners lie on this grid, so that they are whole cells after stride 4 and scale 0.5.
BOX_GRID = 2 * LOGIT_STRIDE
# Below this side the encoder's first stage has fewer tokens than its spatial reduction takes together.
MIN_SIDE = 64


class Box(NamedTuple):
    """A window in pixels: top and left included, bottom and right not."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """The window's part of `x` (…×H×W), a view."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def scaled_down(self, factor: int) -> Box:
        """The same window in cells of `factor` pixels."""
        return Box(*(v // factor for v in self))

    def stride_of(self, logits: Tensor) -> int:
        """Pixels of a cell of the window's `logits` …×h×w."""
        return (self.bottom - self.top) // logits.shape[-2]

    def moved(self, down: int, right: int) -> Box:
        """The same window, `down` and `right` pixels further."""
        return Box(self.top + down, self.bottom + down, self.left + right, self.right + right)


def window_count(length: int, window: int, stride: int) -> int:
    """How many windows cover `length`."""
    return max(length - window + stride - 1, 0) // stride + 1


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover `length`; the last window is moved back inside.

    A `length` below `window` has one window, which starts at 0.
    """
    return [max(min(i * stride, length - window), 0) for i in range(window_count(length, window, stride))]


def window_boxes(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Box]:
    """Windows over an image of `size` (H, W), row by row. They all have the same size: `window`, cut to the image."""
    (height, width), (h, w) = size, window
    return [
        Box(top, min(top + h, height), left, min(left + w, width))
        for top in window_starts(height, h, stride[0])
        for left in window_starts(width, w, stride[1])
    ]


def average_overlaps(pieces: Iterable[tuple[Box, Tensor]], size: tuple[int, int], rest: Tensor | None = None) -> Tensor:
    """Average pieces where they overlap.

    Args:
        pieces: windows in pixels with their logits B×C×h×w, all at one stride; together they cover the image, or what
            they leave is in `rest`.
        size: (H, W) of the image in pixels.
        rest: logits B×C×h×w of the whole image at any stride, for where no piece lies.

    Returns:
        B×C×H×W at that stride. Work and memory touched are those of the pieces, not of image times pieces.
    """
    total = count = None
    cells = [side // LOGIT_STRIDE for side in size]
    for window, piece in pieces:
        stride = window.stride_of(piece)
        box = window.scaled_down(stride)
        if total is None:
            cells = [side // stride for side in size]
            total = piece.new_zeros(*piece.shape[:2], *cells)
            count = piece.new_zeros(cells)
        box.crop(total).add_(piece)
        box.crop(count).add_(1)
    if rest is None:
        return total / count
    rest = F.interpolate(rest, cells, mode="bilinear", align_corners=False)
    return rest if total is None else torch.where(count > 0, total / count, rest)
