"""The baseline's network: encoder and decoder of HRDA as papers and reference spell them out, each step by itself.

It computes with the parameters of our modules, so that both ways start from the same weights and their results can be
compared, but with none of our arithmetic: attention keeps its map, and the decoder enlarges and joins four maps before
its 1×1 layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hrda import HRDASegmentor
from common.hrda.network.heads import DAFormerHead, HRDAHead
from common.hrda.network.segmentor import segmentation_loss
from common.hrda.windows import BOX_GRID, LOGIT_STRIDE, Box


class PlainNetwork:
    """Encoder and decoder of a segmentor, computed the plain way.

    Args:
        model: its parameters are used and get the gradients.
        plain_encoder, plain_decoder: False: that part computes as the model itself does, to see what it brings.
    """

    context_images = staticmethod(HRDASegmentor.context_images)
    fuse = staticmethod(HRDAHead.fuse)

    def __init__(self, model: HRDASegmentor, *, plain_encoder: bool = True, plain_decoder: bool = True) -> None:
        self.model = model
        self.crop_size, self.num_classes = model.crop_size, model.num_classes
        self._plain_encoder, self._plain_decoder = plain_encoder, plain_decoder

    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 of windows B×3×h×w."""
        return self._decode(self._encode(images))

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention of crops at half the resolution."""
        features = self._encode(images)
        return self._decode(features), self._attention(features)

    def losses(self, images: Tensor, labels: Tensor, weights: Tensor | None, box: Box) -> tuple[Tensor, Tensor]:
        """Fused and detail loss of one training pass, weighted by λd."""
        context, attention = self.context_logits(self.context_images(images))
        detail = self.detail_logits(box.crop(images))
        inside = torch.zeros_like(attention)
        box.scaled_down(BOX_GRID).crop(inside).fill_(1)
        cells = box.scaled_down(LOGIT_STRIDE)
        height, width = images.shape[-2] // LOGIT_STRIDE, images.shape[-1] // LOGIT_STRIDE
        inserted = F.pad(detail, (cells.left, width - cells.right, cells.top, height - cells.bottom))
        fused = self.fuse(context, attention * inside, inserted)
        share = self.model.detail_loss_weight
        detail_weights = None if weights is None else box.crop(weights)
        return (
            (1 - share) * segmentation_loss(fused, labels, weights),
            share * segmentation_loss(detail, box.crop(labels), detail_weights),
        )

    def _encode(self, images: Tensor) -> list[Tensor]:
        return plain_features(self.model.backbone, images) if self._plain_encoder else self.model.backbone(images)

    def _decode(self, features: list[Tensor]) -> Tensor:
        head = self.model.decode_head
        return plain_decoder(head.head, features) if self._plain_decoder else head(features)

    def _attention(self, features: list[Tensor]) -> Tensor:
        head = self.model.decode_head
        if not self._plain_decoder:
            return head.attention(features)
        return torch.sigmoid(plain_decoder(head.scale_attention, features))


def plain_features(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The four feature maps of a MiT, contiguous."""
    x, features = images, []
    for patch_embed, blocks, norm in backbone.layers:
        x = patch_embed.projection(x)
        size = x.shape[-2:]
        tokens = patch_embed.norm(_tokens(x))
        for block in blocks:
            attended = _plain_attention(block.attn, block.norm1(tokens), size)
            tokens = tokens + block.attn.drop_path(attended)
            mixed = _plain_ffn(block.ffn.layers, block.norm2(tokens), size)
            tokens = tokens + block.ffn.drop_path(mixed)
        x = _map(norm(tokens), size)
        features.append(x)
    return features


def _plain_attention(attention: nn.Module, tokens: Tensor, size: torch.Size) -> Tensor:
    dims, heads = tokens.shape[-1], attention.num_heads
    weight, bias = attention.attn.in_proj_weight, attention.attn.in_proj_bias
    context = tokens
    if attention.reduction > 1:
        context = attention.norm(_tokens(attention.sr(_map(tokens, size))))
    q = F.linear(tokens, weight[:dims], bias[:dims]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = F.linear(context, weight[dims:], bias[dims:]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    shares = (q @ k.transpose(-2, -1) * (dims // heads) ** -0.5).softmax(-1)
    return attention.attn.out_proj((shares @ v).transpose(1, 2).flatten(2))


def _plain_ffn(layers: nn.Sequential, tokens: Tensor, size: torch.Size) -> Tensor:
    widen, depthwise, activate, _, narrow = layers
    wide = _map(F.linear(tokens, widen.weight.flatten(1), widen.bias), size)
    return F.linear(activate(_tokens(depthwise(wide))), narrow.weight.flatten(1), narrow.bias)


def plain_decoder(head: DAFormerHead, features: list[Tensor]) -> Tensor:
    """Logits of a DAFormer head: every map embedded, enlarged, joined, then fused."""
    size = features[0].shape[-2:]
    enlarged = []
    for layer, feature in zip(head.embed_layers, features, strict=True):
        embedded = _map(layer.proj(_tokens(feature)), feature.shape[-2:])
        enlarged.append(F.interpolate(embedded, size, mode="bilinear", align_corners=False))
    joined = torch.cat(enlarged, dim=1)
    if hasattr(head.fuse_layer, "aspp_modules"):
        branches = []
        for branch in head.fuse_layer.aspp_modules:
            x = joined
            for part in (
                (branch.depthwise_conv, branch.pointwise_conv) if hasattr(branch, "depthwise_conv") else (branch,)
            ):
                conv = part.conv
                # Our own layers compute depthwise and 1×1 convolutions in another way.
                x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
                x = F.relu(part.bn(x))
            branches.append(x)
        last, joined = head.fuse_layer.bottleneck, torch.cat(branches, dim=1)
    else:
        last = head.fuse_layer
    return head.conv_seg(head.dropout(F.relu(last.bn(last.conv(joined)))))


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, size: torch.Size) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, size).contiguous()
