"""Cross-domain mixing (ClassMix, Olsson et al.; DACS, Tranheden et al.; both WACV 2021) and strong augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from kornia.enhance import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from kornia.filters import gaussian_blur2d
from torch import Tensor

from common.hrda.pixels import IGNORE_LABEL
from common.hrda.training.ranks import ALONE, Ranks

BLUR_SIGMA = (0.15, 1.15)
# Taps further away than this many σ weigh less than 1e-6.
BLUR_REACH = 5.2


def present_classes(labels: Tensor) -> Tensor:
    """Which classes each label has: B×256 bool, on the CPU. It waits for the device that the labels are on.

    Args:
        labels: B×H×W, whole numbers in 0..255; 255 counts as a class, as in the reference.
    """
    return torch.stack([y.flatten().bincount(minlength=IGNORE_LABEL + 1) > 0 for y in labels.cpu()])


def draw_classes(present: Tensor, generator: torch.Generator, ranks: Ranks = ALONE) -> list[Tensor]:
    """For each label of the batch, half (rounded up) of the classes present in the whole batch.

    Args:
        present: of `present_classes`.
        generator: source of randomness (CPU), the same in all processes.
        ranks: the processes among which the batch is shared out.
    """
    size = len(present)
    present = ranks.mean(present.any(dim=0).float()).nonzero().flatten()
    half = math.ceil(len(present) / 2)
    drawn = [present[torch.randperm(len(present), generator=generator)[:half]] for _ in range(ranks.count * size)]
    return drawn[ranks.index * size :][:size]


def class_masks(labels: Tensor, classes: list[Tensor]) -> Tensor:
    """Where each label has one of its drawn classes: B×H×W bool."""
    return torch.stack([torch.isin(y, c.to(y.device, non_blocking=True)) for y, c in zip(labels, classes, strict=True)])


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """`source` where `mask`, `target` elsewhere. `mask` is B×H×W, the others B×H×W or B×C×H×W."""
    return torch.where(mask if source.dim() == mask.dim() else mask[:, None], source, target)


@dataclass(frozen=True)
class ColorJitter:
    """Drawn factors of one colour jitter; every tensor has one value an image, the order is the batch's."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: tuple[int, int, int, int]
    """Order of application: 0 brightness, 1 contrast, 2 saturation, 3 hue."""

    @classmethod
    def draw(cls, batch: int, strength: float, generator: torch.Generator) -> ColorJitter:
        """Draw factors: 1 ± `strength`, and a hue shift of ± `strength` of the circle."""
        shifts = (torch.rand(4, batch, generator=generator) * 2 - 1) * strength
        order = torch.randperm(4, generator=generator).tolist()
        return cls(1 + shifts[0], 1 + shifts[1], 1 + shifts[2], shifts[3], tuple(order))

    def part(self, ranks: Ranks) -> ColorJitter:
        """Of a jitter of the whole batch, the part of this process's images."""
        values = {name: ranks.part(getattr(self, name)) for name in ("brightness", "contrast", "saturation", "hue")}
        return replace(self, **values)

    def __call__(self, images: Tensor) -> Tensor:
        """Jitter RGB images B×3×H×W in 0..1; the result stays in 0..1."""

        def on(values: Tensor) -> Tensor:
            return values.to(images.device, images.dtype, non_blocking=True)

        steps = (
            lambda x: adjust_brightness(x, on(self.brightness - 1)),
            lambda x: adjust_contrast(x, on(self.contrast)),
            lambda x: adjust_saturation(x, on(self.saturation)),
            lambda x: adjust_hue(x, on(self.hue * 2 * math.pi)),
        )
        images = images.clamp(0, 1)
        for index in self.order:
            images = steps[index](images)
        return images


def blur_kernel_size(size: tuple[int, int]) -> tuple[int, int]:
    """The reference's kernel for an image of `size` (H, W): about a tenth of each side, odd."""
    return tuple(int(math.floor(math.ceil(0.1 * s) - 0.5 + math.ceil(0.1 * s) % 2)) for s in size)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of B×C×H×W, the border reflected. Taps that weigh nothing are left out of the kernel."""
    needed = 2 * math.ceil(BLUR_REACH * sigma) + 1
    kernel = tuple(max(min(k, needed), 1) for k in blur_kernel_size((images.shape[-2], images.shape[-1])))
    # As a tensor on the CPU: numbers would be copied to a device in a way that waits for it.
    return gaussian_blur2d(images, kernel, torch.tensor([[sigma, sigma]]), border_type="reflect")


def draw_sigma(generator: torch.Generator) -> float:
    """σ of the blur in pixels, uniform in `BLUR_SIGMA`."""
    low, high = BLUR_SIGMA
    return low + (high - low) * float(torch.rand((), generator=generator))
