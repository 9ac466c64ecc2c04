"""Decoders: DAFormer's context-aware fusion, and HRDA's pair of it (segmentation and scale attention)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hrda.checks import received
from common.hrda.network.depthwise import DilatedDepthwiseConv2d, PointwiseConv2d, pointwise

ASPP_DILATIONS = (1, 6, 12, 18)
FINE_STRIDE = 2


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of B×C×H×W to `size`, corners not aligned; `x` itself when it has that size."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _exact(logits: Tensor) -> Tensor:
    """Logits in a type in which they can be averaged, fused and compared."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Embedding(nn.Module):
    """Linear layer over the channels of B×C×H×W. Named as in the reference, so that its weights map one to one."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.proj.weight, self.proj.bias)


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm and ReLU, with mmcv's names of the parameters."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """B×c×H×W → B×C×H×W."""
        return F.relu_(self.bn(self.conv(x)))


class SeparableConvBNReLU(nn.Module):
    """A dilated depthwise 3×3 convolution, then a pointwise one, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        depthwise = DilatedDepthwiseConv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.depthwise_conv = ConvBNReLU(depthwise)
        self.pointwise_conv = ConvBNReLU(PointwiseConv2d(in_channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """B×c×H×W → B×C×H×W."""
        return self.pointwise_conv(self.depthwise_conv(x))


def _joined_conv(maps: Sequence[Tensor], weight: Tensor, size: Sequence[int]) -> Tensor:
    """1×1 convolution, without bias, of maps that are resized to `size` and joined: B×C×h×w.

    It is linear and so is the resizing: each map is convolved at its own size, where the coarse ones have few places,
    and the sum is resized. Nothing is joined.
    """
    parts = weight.split([x.shape[1] for x in maps], dim=1)
    first, *others = (pointwise(x, part) for x, part in zip(maps, parts, strict=True))
    return sum((resize(other, size) for other in others), resize(first, size))


class _SeparableASPP(nn.Module):
    """Depthwise-separable atrous pyramid, then a 3×3 bottleneck (DAFormer, "sepaspp", no image pooling)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvBNReLU(nn.Conv2d(in_channels, channels, 1, bias=False))
            if dilation == 1
            else SeparableConvBNReLU(in_channels, channels, dilation)
            for dilation in ASPP_DILATIONS
        )
        joined = channels * len(ASPP_DILATIONS)
        self.bottleneck = ConvBNReLU(nn.Conv2d(joined, channels, 3, padding=1, bias=False))

    def forward(self, embedded: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Fuse embedded maps of several sizes at `size`."""
        direct, *separable = self.aspp_modules
        joined = torch.cat([resize(x, size) for x in embedded], dim=1)
        branches = [F.relu_(direct.bn(_joined_conv(embedded, direct.conv.weight, size)))]
        branches += [branch(joined) for branch in separable]
        return self.bottleneck(torch.cat(branches, dim=1))


class _PointwiseFusion(ConvBNReLU):
    """1×1 convolution, BN and ReLU of the joined maps: the lighter decoder of the scale attention."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 1, bias=False))

    def forward(self, embedded: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Fuse embedded maps of several sizes at `size`."""
        return F.relu_(self.bn(_joined_conv(embedded, self.conv.weight, size)))


class DAFormerHead(nn.Module):
    """DAFormer's decoder (Hoyer et al., CVPR 2022, section 3.2): features of four stages → class logits.

    Args:
        in_channels: channels of the four feature maps.
        channels: width of the embeddings and of the fusion.
        num_classes: number of output channels.
        fusion: 'sepaspp' (the decoder) or 'conv1x1' (the lighter one of the scale attention).
        dropout_ratio: dropout before the last layer.
        fine_branch: whether images can be given too, whose logits are then refined.
    """

    FUSIONS = ("sepaspp", "conv1x1")

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        fusion: str = "sepaspp",
        dropout_ratio: float = 0.1,
        fine_branch: bool = False,
    ) -> None:
        if fusion not in self.FUSIONS:
            raise ValueError(
                f"Unknown fusion. Expected one of {', '.join(self.FUSIONS)}. Received: {received(fusion)}."
            )
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.embed_layers = nn.ModuleList(_Embedding(c, channels) for c in in_channels)
        total = channels * len(in_channels)
        self.fuse_layer = (_SeparableASPP if fusion == "sepaspp" else _PointwiseFusion)(total, channels)
        self.fine = FineBranch(channels, num_classes) if fine_branch else None

    def forward(self, features: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """Logits of features at strides 4, 8, 16 and 32: B×C×H/4×W/4, or refined with `images` B×3×H×W, B×C×H/2×W/2."""
        embedded = [embed(f) for embed, f in zip(self.embed_layers, features, strict=True)]
        decoded = self.dropout(self.fuse_layer(embedded, features[0].shape[-2:]))
        logits = self.conv_seg(decoded)
        return logits if images is None or self.fine is None else self.fine(images, decoded, logits)


class FineBranch(nn.Module):
    """Refines logits at stride 4 with what the image itself shows at stride 2, where a thin line is still a line.

    Two convolutions on the image, whatever the encoder; their features and the decoder's are joined by a third, whose
    logits are added to the coarse ones. It begins as if it were not there.

    Args:
        in_channels: of the decoder's features.
        num_classes: number of output channels.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width = max(in_channels // 4, 8)
        self.stem = nn.Sequential(
            ConvBNReLU(nn.Conv2d(3, width, 3, stride=FINE_STRIDE, padding=1, bias=False)),
            ConvBNReLU(nn.Conv2d(width, width, 3, padding=1, bias=False)),
        )
        self.reduce = PointwiseConv2d(in_channels, width, 1)
        self.join = ConvBNReLU(nn.Conv2d(2 * width, width, 3, padding=1, bias=False))
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        nn.init.zeros_(self.conv_seg.weight)
        nn.init.zeros_(self.conv_seg.bias)

    def forward(self, images: Tensor, decoded: Tensor, logits: Tensor) -> Tensor:
        """Logits B×C×H/2×W/2.

        Args:
            images: B×3×H×W, of even sides.
            decoded: B×c×H/4×W/4, the decoder's features.
            logits: B×C×H/4×W/4 of them.
        """
        fine = self.stem(images)
        size = fine.shape[-2:]
        joined = self.join(torch.cat([fine, resize(self.reduce(decoded), size)], dim=1))
        return self.conv_seg(joined) + resize(logits, size)


class HRDAHead(nn.Module):
    """The decoder for both resolutions and the scale attention (Hoyer et al., ECCV 2022, section 3.2).

    Args:
        in_channels: channels of the encoder's four feature maps.
        num_classes: number of classes.
        channels: width of the decoder.
        attention_channels: width of the scale attention.
        attention_classwise: one attention channel a class, or one for all.
        dropout_ratio: dropout before the decoder's last layer.
        fine_branch: whether the detail is refined at stride 2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        attention_channels: int = 256,
        attention_classwise: bool = True,
        dropout_ratio: float = 0.1,
        fine_branch: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head = DAFormerHead(
            in_channels, channels, num_classes, dropout_ratio=dropout_ratio, fine_branch=fine_branch
        )
        self.scale_attention = DAFormerHead(
            in_channels,
            attention_channels,
            num_classes if attention_classwise else 1,
            fusion="conv1x1",
            dropout_ratio=dropout_ratio,
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The decoder's logits B×C×H/4×W/4, in float32 where autocast computes them in 16 bits."""
        return _exact(self.head(features))

    def detail(self, features: Sequence[Tensor], images: Tensor) -> Tensor:
        """The same of high-resolution windows `images` B×3×H×W; B×C×H/2×W/2 where they are refined."""
        return _exact(self.head(features, images))

    def attention(self, features: Sequence[Tensor]) -> Tensor:
        """Scale attention in 0..1 of low-resolution features, B×(C or 1)×H/4×W/4."""
        return torch.sigmoid(_exact(self.scale_attention(features)))

    @staticmethod
    def fuse(lr_logits: Tensor, attention: Tensor, hr_logits: Tensor) -> Tensor:
        """Fuse the two resolutions.

        Args:
            lr_logits: B×C×h×w, of the context at half the resolution.
            attention: B×(C or 1)×h×w, in 0..1; how much the detail is trusted.
            hr_logits: B×C×2h×2w, or B×C×4h×4w where it is refined, of the detail; zero where there is none.

        Returns:
            Logits of the detail's size.
        """
        size = hr_logits.shape[-2:]
        return resize((1 - attention) * lr_logits, size) + resize(attention, size) * hr_logits
