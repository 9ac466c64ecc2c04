"""Pixels as the network sees them: their scale, their normalisation, and the label that does not count."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

Scale = tuple[int, int] | float | None
"""At which size a network sees photos, aspect ratios kept: the short and the long edge that they are fitted into, a
factor of their own size, or None for their own size."""

IGNORE_LABEL = 255
"""Label of pixels that no loss and no metric counts."""

# ImageNet's statistics of RGB values in 0..255, as MiT was trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, 3×1×1. Nothing waits for the device."""
    return tuple(
        torch.tensor(values)[:, None, None].to(device, non_blocking=True) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )


def normalise(images: Tensor) -> Tensor:
    """RGB values 0..255 (B×3×H×W, any dtype) → ImageNet-normalised float32."""
    mean, std = _statistics(images.device)
    return (images.float() - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`: float32 RGB in 0..255, not rounded."""
    mean, std = _statistics(images.device)
    return images * std + mean


def fit_scale(size: tuple[int, int], short_edge: int, long_edge: int) -> tuple[int, int]:
    """Size (H, W) that keeps the aspect ratio and fits `short_edge` and `long_edge`, as in training."""
    scale = min(long_edge / max(size), short_edge / min(size))
    return (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))


def scaled_size(size: tuple[int, int], scale: Scale) -> tuple[int, int]:
    """Size (H, W) of a photo of `size` at `scale`, the same in training and serving."""
    if scale is None:
        return size
    if isinstance(scale, tuple):
        return fit_scale(size, *scale)
    return (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of H×W×3 uint8 to `size` (H, W), the same in training and serving."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
