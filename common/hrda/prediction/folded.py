"""The network rearranged for prediction: the same function of the image with fewer operations.

- Batch norm in eval mode is a linear map and is folded into the convolution before it.
- Bilinear resizing commutes with 1×1 convolutions. The branch of the decoder that has dilation 1 and the whole fusion
  of the scale attention are 1×1 up to their ReLU: their weights are multiplied with the embeddings' and applied at each
  stage's own resolution, to its own few channels, before the maps are resized and added.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.hrda.network.heads import DAFormerHead, FineBranch, resize
from common.hrda.network.segmentor import HRDASegmentor


class WindowModule(nn.Module):
    """Encoder and decoder on one window, at either resolution.

    Args:
        model: in eval mode. Its encoder is shared, its decoder is not; nothing of it is changed.
    """

    def __init__(self, model: HRDASegmentor) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.decoder = FoldedDecoder(model.decode_head.head)
        self.attention = FoldedAttention(model.decode_head.scale_attention)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits B×C×h/4×w/4 and attention B×(C or 1)×h/4×w/4 in 0..1 of normalised windows B×3×h×w; with a fine branch
        also refined logits B×C×h/2×w/2."""
        features = self.backbone(images)
        decoded = self.decoder.decode(features)
        logits = self.decoder.classify(decoded)
        answer = logits, self.attention(features)
        return answer if self.decoder.fine is None else (*answer, self.decoder.fine(images, decoded, logits))


class FoldedDecoder(nn.Module):
    """`DAFormerHead` with fusion 'sepaspp', in eval mode."""

    def __init__(self, head: DAFormerHead) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(_embedding(layer.proj) for layer in head.embed_layers)
        direct, *separable = head.fuse_layer.aspp_modules
        self.direct = _Commuted(head, direct)
        self.depthwise = nn.ModuleList(_folded(branch.depthwise_conv) for branch in separable)
        self.pointwise = nn.ModuleList(_folded(branch.pointwise_conv) for branch in separable)
        self.bottleneck = _folded(head.fuse_layer.bottleneck)
        self.classify = copy.deepcopy(head.conv_seg)
        self.fine = None if head.fine is None else FoldedFineBranch(head.fine)

    def forward(self, features: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """As of `DAFormerHead`."""
        decoded = self.decode(features)
        logits = self.classify(decoded)
        return logits if images is None or self.fine is None else self.fine(images, decoded, logits)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """The decoder's features B×c×H/4×W/4 of features at strides 4, 8, 16 and 32."""
        size = features[0].shape[-2:]
        embedded = torch.cat(
            [resize(embed(f), size) for embed, f in zip(self.embeddings, features, strict=True)], dim=1
        )
        branches = [self.direct(features)]
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            branches.append(F.relu_(pointwise(F.relu_(depthwise(embedded)))))
        return F.relu_(self.bottleneck(torch.cat(branches, dim=1)))


class FoldedFineBranch(nn.Module):
    """`FineBranch` in eval mode."""

    def __init__(self, branch: FineBranch) -> None:
        super().__init__()
        self.stem = nn.ModuleList(map(_folded, branch.stem))
        self.reduce, self.join = copy.deepcopy(branch.reduce), _folded(branch.join)
        self.classify = copy.deepcopy(branch.conv_seg)

    def forward(self, images: Tensor, decoded: Tensor, logits: Tensor) -> Tensor:
        """As of `FineBranch`."""
        fine = images
        for conv in self.stem:
            fine = F.relu_(conv(fine))
        size = fine.shape[-2:]
        joined = self.join(torch.cat([fine, resize(self.reduce(decoded), size)], dim=1))
        return self.classify(F.relu_(joined)) + resize(logits, size)


class FoldedAttention(nn.Module):
    """The scale attention's `DAFormerHead` with fusion 'conv1x1' and the sigmoid after it, in eval mode."""

    def __init__(self, head: DAFormerHead) -> None:
        super().__init__()
        self.fuse = _Commuted(head, head.fuse_layer)
        self.classify = copy.deepcopy(head.conv_seg)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Attention B×(C or 1)×H/4×W/4 in 0..1 of low-resolution features."""
        return torch.sigmoid(self.classify(self.fuse(features)))


class _Commuted(nn.Module):
    """relu(BN(conv1×1(concatenated, resized embeddings))) with the linear layers before the resizing."""

    def __init__(self, head: DAFormerHead, fuse: nn.Module) -> None:
        super().__init__()
        folded = _folded(fuse)
        weight, bias = folded.weight.flatten(1), folded.bias
        parts = weight.split([layer.proj.out_features for layer in head.embed_layers], dim=1)
        self.layers = nn.ModuleList()
        for layer, part in zip(head.embed_layers, parts, strict=True):
            conv = nn.Conv2d(layer.proj.in_features, len(weight), 1, bias=False)
            # In float64: the product of two weights is rounded once, as each of them was.
            conv.weight.data = (part.double() @ layer.proj.weight.double()).float()[:, :, None, None]
            bias = bias + part @ layer.proj.bias
            self.layers.append(conv)
        self.bias = nn.Parameter(bias[:, None, None])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        total = self.bias
        for layer, feature in zip(self.layers, features, strict=True):
            total = total + resize(layer(feature), size)
        return F.relu_(total)


def _embedding(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.data = linear.weight.data[:, :, None, None].clone()
    conv.bias.data = linear.bias.data.clone()
    return conv


def _folded(module: nn.Module) -> nn.Conv2d:
    """The convolution of a `ConvBNReLU` with its batch norm in it."""
    conv, norm = copy.deepcopy(module.conv), module.bn
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return conv
