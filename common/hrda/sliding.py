"""Sliding inference over whole images, in crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.settings import InferenceSettings
from common.hrda.windows import BOX_GRID, MIN_SIDE, Box, average_overlaps, window_boxes


class CropModel(Protocol):
    """What sliding needs of a model."""

    crop_size: tuple[int, int]

    def crop_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h×w of crops B×3×h×w."""


def _padded(length: int) -> int:
    return max(-(-length // BOX_GRID) * BOX_GRID, MIN_SIDE)


@torch.no_grad()
def sliding_logits(model: CropModel, images: Tensor, settings: InferenceSettings) -> Tensor:
    """Logits of whole images: overlapping crops, averaged where they overlap.

    Args:
        model: in eval mode, or in train mode where batch statistics are wanted.
        images: B×3×H×W float32, normalised, any H and W of at least 1.
        settings: window, stride and how many crops go through the model at once.

    Returns:
        B×C×H×W float32. Sides that the network cannot take are padded with the mean colour and cut back.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, _padded(width) - width, 0, _padded(height) - height))
    size = (padded.shape[-2], padded.shape[-1])
    window = settings.window or model.crop_size
    stride = settings.stride or (window[0] // 2, window[1] // 2)
    boxes = window_boxes(size, window, stride)
    crops_at_once = max(settings.batch_size // images.shape[0], 1)

    def pieces() -> Iterator[tuple[Box, Tensor]]:
        for first in range(0, len(boxes), crops_at_once):
            group = boxes[first : first + crops_at_once]
            logits = model.crop_logits(torch.cat([box.crop(padded) for box in group])).float()
            yield from zip(group, logits.chunk(len(group)), strict=True)

    return average_overlaps(pieces(), size)[..., :height, :width]
