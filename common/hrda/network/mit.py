"""MiT, the encoder of SegFormer (Xie et al., NeurIPS 2021), as HRDA's reference uses it.

Parameters have mmsegmentation's names, so that its published weights load unchanged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.hrda.catalogue import MIT_SHAPES, MIT_WIDENING
from common.hrda.checks import received
from common.hrda.network.drop_path import DropPath

NUM_HEADS = MIT_WIDENING
PATCH_SIZES = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)
REDUCTIONS = (8, 4, 2, 1)
"""Of each stage: by how much attention makes its context smaller along each side."""
EXPANSION = 4
"""Width of the feed-forward part, as a multiple of the stage's."""
INNER_EPS, OUTER_EPS = 1e-5, 1e-6
"""SegFormer's two LayerNorm epsilons: inside patch embedding and attention, and around the blocks."""


def nlc_to_nchw(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens B×(H·W)×C as a map B×C×H×W."""
    return x.transpose(1, 2).unflatten(2, size)


def nchw_to_nlc(x: Tensor) -> Tensor:
    """A map B×C×H×W as tokens B×(H·W)×C."""
    return x.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Overlapping patches of a map as tokens: a strided convolution and a norm."""

    def __init__(self, in_channels: int, channels: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, patch_size, stride, patch_size // 2)
        self.norm = nn.LayerNorm(channels, eps=INNER_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens B×(h·w)×C of a map B×c×H×W, and (h, w)."""
        x = self.projection(x)
        return self.norm(nchw_to_nlc(x)), (x.shape[2], x.shape[3])


class EfficientAttention(nn.Module):
    """Attention of every token to a spatially reduced map of them, through torch's fused kernel."""

    def __init__(self, channels: int, num_heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.num_heads, self.reduction = num_heads, reduction
        # Only its parameters are used: it cannot be asked for a context of another length than its fused kernel wants.
        self.attn = nn.MultiheadAttention(channels, num_heads)
        self.drop_path = DropPath(drop_path)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=INNER_EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """What is added to the tokens `x` B×N×C of a map of `size`."""
        context = x
        if self.reduction > 1:
            context = self.norm(nchw_to_nlc(self.sr(nlc_to_nchw(x, size))))
        channels, heads = x.shape[-1], self.num_heads
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        q = F.linear(x, weight[:channels], bias[:channels]).unflatten(-1, (heads, -1)).transpose(1, 2)
        kv = F.linear(context, weight[channels:], bias[channels:]).unflatten(-1, (2, heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.drop_path(self.attn.out_proj(out))


class MixFFN(nn.Module):
    """Feed-forward part with a depthwise 3×3 convolution, which tells tokens their neighbours and so their place."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        wide = EXPANSION * channels
        # The 1×1 convolutions are computed as matrix products on the tokens. The fourth place is mmsegmentation's
        # dropout of rate 0: without it the last layer's parameters would have another name than the published ones.
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GELU(),
            nn.Identity(),
            nn.Conv2d(wide, channels, 1),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """What is added to the tokens `x` B×N×C of a map of `size`."""
        widen, depthwise, activate, _, narrow = self.layers
        wide = F.linear(x, widen.weight.flatten(1), widen.bias)
        wide = activate(depthwise(nlc_to_nchw(wide, size)))
        return self.drop_path(F.linear(nchw_to_nlc(wide), narrow.weight.flatten(1), narrow.bias))


class Block(nn.Module):
    """Attention, then the feed-forward part, each after a norm and added to what it was given."""

    def __init__(self, channels: int, num_heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=OUTER_EPS)
        self.attn = EfficientAttention(channels, num_heads, reduction, drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=OUTER_EPS)
        self.ffn = MixFFN(channels, drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens B×N×C of a map of `size`, to tokens of the same shape."""
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn(self.norm2(x), size)


class HRDAMixVisionTransformer(nn.Module):
    """MiT as HRDA's reference uses it.

    Args:
        arch: name in `MIT_SHAPES`.
        drop_path_rate: highest stochastic-depth rate, reached in the last block.

    Raises:
        ValueError: no encoder has this name.
    """

    def __init__(self, arch: str = "mit_b5", drop_path_rate: float = 0.1) -> None:
        if arch not in MIT_SHAPES:
            raise ValueError(f"Unknown encoder. Expected one of {', '.join(MIT_SHAPES)}. Received: {received(arch)}.")
        super().__init__()
        self.arch = arch
        self.activation_checkpointing = False
        """Whether blocks are computed again in the backward pass instead of keeping what they computed."""
        width, depths = MIT_SHAPES[arch]
        self.channels = tuple(width * times for times in MIT_WIDENING)
        """Channels of the four feature maps."""
        rates, in_channels = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()), 3
        self.layers = nn.ModuleList()
        stages = zip(self.channels, depths, NUM_HEADS, PATCH_SIZES, STRIDES, REDUCTIONS, strict=True)
        for channels, depth, num_heads, patch_size, stride, reduction in stages:
            patch_embed = PatchEmbed(in_channels, channels, patch_size, stride)
            blocks = nn.ModuleList(Block(channels, num_heads, reduction, next(rates)) for _ in range(depth))
            norm = nn.LayerNorm(channels, eps=OUTER_EPS)
            self.layers.append(nn.ModuleList([patch_embed, blocks, norm]))
            in_channels = channels

    def init_weights(self) -> None:
        """Draw fresh weights as SegFormer does (torch's global random state)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay leaves alone, as in the reference: those of norms."""
        norms = (module for module in self.modules() if isinstance(module, nn.LayerNorm))
        return [parameter for norm in norms for parameter in norm.parameters()]

    def learning_layers(self) -> list[list[nn.Parameter]]:
        """None: all layers of MiT learn at one rate, as in the reference."""
        return []

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of normalised images B×3×H×W at strides 4, 8, 16 and 32 (H and W at least 32)."""
        features = []
        for patch_embed, blocks, norm in self.layers:
            x, size = patch_embed(x)
            for block in blocks:
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, size, use_reentrant=False)
                else:
                    x = block(x, size)
            x = nlc_to_nchw(norm(x), size)
            features.append(x)
        return features
