"""Masking of images in square blocks, for masked image consistency (MIC, Hoyer et al., CVPR 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCKS_IN_A_CROP = 16
"""A block's side is the crop's shorter side by this, unless given: 64 pixels at the published crop of 1024."""


def block_side(crop_size: tuple[int, int], given: int | None) -> int:
    """Side of a block in pixels, for crops of `crop_size` (height, width) in pixels."""
    return given or max(min(crop_size) // BLOCKS_IN_A_CROP, 1)


def draw_kept_blocks(
    batch: int, crop_size: tuple[int, int], side: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Draw which blocks of each image stay visible, each with probability 1 − `ratio`.

    Args:
        batch: B, number of images.
        crop_size: their height and width in pixels; blocks at the right and at the bottom may stick out.
        side: of a block, in pixels.
        ratio: share of the blocks to mask, from 0 to 1.
        generator: source of randomness (CPU).

    Returns:
        B×rows×columns bool, true where a block stays.
    """
    rows, columns = (math.ceil(length / side) for length in crop_size)
    return torch.rand(batch, rows, columns, generator=generator) >= ratio


def mask_blocks(images: Tensor, kept: Tensor, side: int) -> Tensor:
    """`images` B×C×H×W with 0 in all blocks that are not `kept` (B×rows×columns bool); `side` in pixels.

    In normalised images 0 is the mean colour.
    """
    height, width = images.shape[-2:]
    kept = kept.to(images.device, non_blocking=True)
    visible = kept.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)[:, None, :height, :width]
    return images * visible
