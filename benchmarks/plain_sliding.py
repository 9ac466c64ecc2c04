"""The baseline: HRDA's two-level sliding as the reference does it, every crop by itself and padded to the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda import InferenceSettings
from common.hrda.network.heads import resize
from common.hrda.sliding import WindowNetwork, crop_weights
from common.hrda.windows import BOX_GRID, LOGIT_STRIDE, MIN_SIDE, Box, window_boxes


@torch.no_grad()
def plain_sliding_logits(network: WindowNetwork, images: Tensor, settings: InferenceSettings) -> Tensor:
    """Logits B×C×H×W float32 of normalised images B×3×H×W: what `common.hrda.sliding` computes, without its savings."""
    height, width = images.shape[-2:]
    padded_size = [max(-(-side // BOX_GRID) * BOX_GRID, MIN_SIDE) for side in (height, width)]
    images = F.pad(images, (0, padded_size[1] - width, 0, padded_size[0] - height))
    settings = settings.complete(network.crop_size)
    total, count = 0, 0
    for box in window_boxes(tuple(padded_size), settings.window, settings.stride):
        logits = plain_crop_logits(network, box.crop(images), detail_overlap=settings.detail_overlap)
        weights = crop_weights(tuple(logits.shape[-2:]), settings.blending).to(logits)[None, None]
        around = _around(box, padded_size)
        total = total + F.pad(logits * weights, around)
        count = count + F.pad(weights, around)
    return (total / count)[..., :height, :width]


def plain_crop_logits(network: WindowNetwork, images: Tensor, *, detail_overlap: bool = True) -> Tensor:
    """Logits B×C×H×W of one crop an image, all its high-resolution windows in one batch; these overlap by half, or lie
    side by side."""
    context, attention = network.context_logits(network.context_images(images))
    size = images.shape[-2:]
    window = (network.crop_size[0] // 2, network.crop_size[1] // 2)
    stride = (window[0] // 2, window[1] // 2) if detail_overlap else window
    boxes = window_boxes(size, window, stride)
    decoded = network.detail_logits(torch.cat([box.crop(images) for box in boxes])).chunk(len(boxes))
    cells = [size[0] // LOGIT_STRIDE, size[1] // LOGIT_STRIDE]
    total, count = 0, 0
    for box, logits in zip(boxes, decoded, strict=True):
        around = _around(box.scaled_down(LOGIT_STRIDE), cells)
        total = total + F.pad(logits, around)
        count = count + F.pad(torch.ones_like(logits[:, :1]), around)
    return resize(network.fuse(context, attention, total / count), size)


def _around(box: Box, size: list[int]) -> tuple[int, int, int, int]:
    return box.left, size[1] - box.right, box.top, size[0] - box.bottom
