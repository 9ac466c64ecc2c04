"""HRDA's network: one encoder and decoder on two resolutions, its losses, its inference on one crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hrda.network.encoders import make_encoder
from common.hrda.network.heads import HRDAHead, resize
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.settings import ModelSettings
from common.hrda.windows import BOX_GRID, Box, average_overlaps, window_boxes


@dataclass(frozen=True)
class TrainLogits:
    """What the losses of one forward pass need."""

    fused: Tensor
    """B×C×H/4×W/4, both resolutions fused; as of `detail`, at stride 2 where that is refined."""
    detail: Tensor
    """B×C×h/4×w/4, of the high-resolution sub-crop alone; B×C×h/2×w/2 with a fine branch."""
    detail_box: Box
    """Place of the sub-crop in the crop, in pixels."""
    context_features: list[Tensor]
    """The encoder's four feature maps of the low-resolution crop."""


@dataclass(frozen=True)
class CropLogits:
    """The parts of one crop's inference."""

    context: Tensor
    """B×C×H/8×W/8, low resolution."""
    detail: Tensor
    """B×C×H/4×W/4, high resolution, overlapping windows averaged; B×C×H/2×W/2 with a fine branch."""
    attention: Tensor
    """B×(C or 1)×H/8×W/8 in 0..1."""
    fused: Tensor
    """Of the size of `detail`."""


def draw_detail_box(crop_size: tuple[int, int], generator: torch.Generator | None = None) -> Box:
    """Draw the high-resolution sub-crop: half the side, uniformly from all places of the 8-pixel grid.

    Args:
        crop_size: height and width of the crop in pixels.
        generator: source of randomness (CPU).
    """
    (height, width), (h, w) = crop_size, (crop_size[0] // 2, crop_size[1] // 2)
    top = int(torch.randint((height - h) // BOX_GRID + 1, (), generator=generator)) * BOX_GRID
    left = int(torch.randint((width - w) // BOX_GRID + 1, (), generator=generator)) * BOX_GRID
    return Box(top, top + h, left, left + w)


def segmentation_loss(
    logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """Cross entropy, averaged over all pixels: an ignored pixel adds nothing and still counts.

    Args:
        logits: B×C×h×w; resized to the labels' size.
        labels: B×H×W int64, 255 = ignored.
        pixel_weights: B×H×W float, or None for 1 everywhere.
        class_weights: C float, or None for 1 everywhere.
    """
    loss = F.cross_entropy(
        resize(logits, labels.shape[-2:]), labels, class_weights, ignore_index=IGNORE_LABEL, reduction="none"
    )
    return loss.mean() if pixel_weights is None else (loss * pixel_weights).mean()


class HRDASegmentor(nn.Module):
    """HRDA (Hoyer et al., ECCV 2022).

    Images are ImageNet-normalised B×3×H×W; sides are multiples of 8 and at least 64.

    Args:
        backbone: encoder; returns its features of images at strides 4, 8, 16 and 32.
        decode_head: decoder of these features for both resolutions.
        crop_size: (height, width) of the training crop; inference slides its high-resolution windows in it.
        detail_loss_weight: λd, share of the loss on the detail prediction alone.
        class_weights: loss weight of each class, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decode_head: HRDAHead,
        crop_size: tuple[int, int] = (512, 512),
        detail_loss_weight: float = 0.1,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.crop_size = tuple(crop_size)
        self.detail_loss_weight = detail_loss_weight
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return self.decode_head.num_classes

    @staticmethod
    def context_images(images: Tensor) -> Tensor:
        """The low-resolution context: `images` B×3×H×W at half their size, bilinear."""
        return F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)

    def train_logits(self, images: Tensor, detail_box: Box) -> TrainLogits:
        """One training pass: context of the whole crop, detail of `detail_box`.

        Args:
            images: B×3×H×W float.
            detail_box: place of the high-resolution sub-crop, on the 8-pixel grid.
        """
        context_features = self.backbone(self.context_images(images))
        detail_images = detail_box.crop(images)
        detail_features = self.backbone(detail_images)
        context = self.decode_head(context_features)
        detail = self.decode_head.detail(detail_features, detail_images)
        attention = self.decode_head.attention(context_features)

        inside = torch.zeros_like(attention)
        detail_box.scaled_down(BOX_GRID).crop(inside).fill_(1)
        stride = detail_box.stride_of(detail)
        place, (height, width) = detail_box.scaled_down(stride), (side // stride for side in images.shape[-2:])
        inserted = F.pad(detail, (place.left, width - place.right, place.top, height - place.bottom))
        fused = self.decode_head.fuse(context, attention * inside, inserted)
        return TrainLogits(fused, detail, detail_box, context_features)

    def losses(
        self,
        logits: TrainLogits,
        labels: Tensor,
        pixel_weights: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss_fused` and `loss_detail`; their sum is the training loss.

        Args:
            logits: of `train_logits`.
            labels: B×H×W int64, 255 = ignored.
            pixel_weights: B×H×W float, or None.
            class_weights: C float, or None for the model's own.
        """
        class_weights = self.class_weights if class_weights is None else class_weights
        box, share = logits.detail_box, self.detail_loss_weight
        detail_weights = None if pixel_weights is None else box.crop(pixel_weights)
        fused = segmentation_loss(logits.fused, labels, pixel_weights, class_weights)
        detail = segmentation_loss(logits.detail, box.crop(labels), detail_weights, class_weights)
        return {"loss_fused": (1 - share) * fused, "loss_detail": share * detail}

    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 of high-resolution windows B×3×h×w; B×C×h/2×w/2 with a fine branch."""
        return self.decode_head.detail(self.backbone(images), images)

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits B×C×h/4×w/4 and attention B×(C or 1)×h/4×w/4 of crops at half the resolution, B×3×h×w."""
        features = self.backbone(images)
        return self.decode_head(features), self.decode_head.attention(features)

    def fuse(self, context: Tensor, attention: Tensor, detail: Tensor) -> Tensor:
        """Both resolutions fused, B×C×H/4×W/4 (see `HRDAHead.fuse`)."""
        return self.decode_head.fuse(context, attention, detail)

    def crop_parts(self, images: Tensor) -> CropLogits:
        """Infer one crop an image: low resolution on the whole, high resolution as overlapping windows.

        Args:
            images: B×3×H×W float, H and W multiples of 8 and at least 64.
        """
        context, attention = self.context_logits(self.context_images(images))
        size = images.shape[-2:]
        window = (self.crop_size[0] // 2, self.crop_size[1] // 2)
        boxes = window_boxes(size, window, (window[0] // 2, window[1] // 2))
        decoded = self.detail_logits(torch.cat([box.crop(images) for box in boxes])).chunk(len(boxes))
        detail = average_overlaps(zip(boxes, decoded, strict=True), size)
        return CropLogits(context, detail, attention, self.fuse(context, attention, detail))

    def crop_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×H×W of one crop an image, at the images' size (see `crop_parts`)."""
        return resize(self.crop_parts(images).fused, images.shape[-2:])

    def forward(self, images: Tensor) -> Tensor:
        """`crop_logits` of `images`."""
        return self.crop_logits(images)


def build_segmentor(settings: ModelSettings) -> HRDASegmentor:
    """A model with freshly drawn weights (torch's global random state decides them)."""
    backbone = make_encoder(settings.encoder, settings.drop_path)
    decode_head = HRDAHead(
        backbone.channels,
        settings.num_classes,
        settings.decoder_channels,
        settings.attention_channels,
        settings.attention_classwise,
        settings.dropout,
        settings.fine_branch,
    )
    backbone.init_weights()
    return HRDASegmentor(backbone, decode_head, settings.crop_size, settings.detail_loss_weight)
