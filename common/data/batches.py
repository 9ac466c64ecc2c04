"""What one iteration trains on: as bytes, in which processes pass it on, and as what networks take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.hrda.pixels import normalise
from common.hrda.training.mixing import present_classes


class Batch(NamedTuple):
    """What one iteration trains on. B images, h×w the crop."""

    source_images: Tensor
    """B×3×h×w float32, normalised."""
    source_labels: Tensor
    """B×h×w int64 class indices, 255 where nothing counts."""
    target_images: Tensor | None
    """B×3×h×w float32, normalised; None without a target."""
    target_valid: Tensor | None
    """B×h×w bool, False in padding and in the margins whose pseudo-labels do not count."""
    source_classes: Tensor | None = None
    """B×256 bool on the CPU: the classes of each source label, so that nobody asks a device for them."""
    source_tubes: Tensor | None = None
    """B×h×w bool, pixels of the source labels near their middle lines; None where no loss takes them."""


class PackedCrops(NamedTuple):
    """Crops as they are drawn: a fifth of the bytes that networks take."""

    images: Tensor
    """B×h×w×3 uint8 RGB."""
    maps: Tensor
    """B×h×w uint8: class indices of labelled crops; of others 1 where pseudo-labels count."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of what there is of each crop; the rest at the bottom and right is padding."""
    tubes: Tensor | None = None
    """B×h×w uint8, 1 near the middle lines of the labels; None where no loss takes them."""


class PackedBatch(NamedTuple):
    """A batch on its way to the device that trains on it."""

    source: PackedCrops
    target: PackedCrops | None

    def unpack(self, device: torch.device) -> Batch:
        """The batch on `device`, which normalises it."""
        images, labels = _unpack(self.source, device)
        present, tubes = present_classes(self.source.maps), self.source.tubes
        tubes = None if tubes is None else tubes.to(device, non_blocking=True).bool()
        if self.target is None:
            return Batch(images, labels.long(), None, None, present, tubes)
        target_images, valid = _unpack(self.target, device)
        return Batch(images, labels.long(), target_images, valid.bool(), present, tubes)


def _unpack(crops: PackedCrops, device: torch.device) -> tuple[Tensor, Tensor]:
    pixels = crops.images.to(device, non_blocking=True)
    images = normalise(pixels.permute(0, 3, 1, 2).contiguous())
    for image, (height, width) in zip(images, crops.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images, crops.maps.to(device, non_blocking=True)
