"""The catalogue of encoders: MiT-b0 to MiT-b5 of SegFormer (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.hrda.network import mmcv_operators

mmcv_operators.ensure_importable()

from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN, MixVisionTransformer  # noqa: E402
from mmseg.models.utils import nchw_to_nlc, nlc_to_nchw  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

ENCODER_STRIDE = 32


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of the catalogue."""

    embed_dims: int
    """Channels of the first stage; the others have 2, 5 and 8 times as many."""
    depths: tuple[int, int, int, int]
    """Transformer blocks of the four stages."""
    weights_file: str
    """Name of the published ImageNet weights, as mmsegmentation has them. The digits at its end begin their SHA-256."""
    weights_licence: str = "NVIDIA Source Code License for SegFormer: non-commercial use only"
    """Licence of the published ImageNet weights (not of this code)."""

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four feature maps, at strides 4, 8, 16 and 32."""
        return (self.embed_dims, self.embed_dims * 2, self.embed_dims * 5, self.embed_dims * 8)


ENCODERS: dict[str, EncoderSpec] = {
    "mit_b0": EncoderSpec(32, (2, 2, 2, 2), "mit_b0_20220624-7e0fe6dd.pth"),
    "mit_b1": EncoderSpec(64, (2, 2, 2, 2), "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": EncoderSpec(64, (3, 4, 6, 3), "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": EncoderSpec(64, (3, 4, 18, 3), "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": EncoderSpec(64, (3, 8, 27, 3), "mit_b4_20220624-d588d980.pth"),
    "mit_b5": EncoderSpec(64, (3, 6, 40, 3), "mit_b5_20220624-658746d9.pth"),
}


class FusedEfficientAttention(EfficientMultiheadAttention):
    """MiT's spatially reduced attention through torch's fused kernel.

    mmsegmentation asks `nn.MultiheadAttention` for the attention map, which rules the fused kernels
    out. Parameters and their names stay mmsegmentation's, so that its weights load unchanged.
    """

    def forward(self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None) -> Tensor:
        """Attend from every token of `x` (B×N×D) to the spatially reduced ones; returns B×N×D."""
        identity = x if identity is None else identity
        context = x
        if self.sr_ratio > 1:
            context = self.norm(nchw_to_nlc(self.sr(nlc_to_nchw(x, hw_shape))))
        dims, heads = self.embed_dims, self.num_heads
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        q = F.linear(x, weight[:dims], bias[:dims]).unflatten(-1, (heads, -1)).transpose(1, 2)
        kv = F.linear(context, weight[dims:], bias[dims:]).unflatten(-1, (2, heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return identity + self.dropout_layer(self.attn.out_proj(out))


class TokenMixFFN(MixFFN):
    """MiT's feed-forward part with its 1×1 convolutions as matrix products on the tokens, which they are."""

    def forward(self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None) -> Tensor:
        """Widen `x` B×N×D, mix neighbours, narrow; returns B×N×D."""
        widen, depthwise, activate, dropout, narrow, _ = self.layers
        wide = F.linear(x, widen.weight.flatten(1), widen.bias)
        wide = dropout(activate(depthwise(nlc_to_nchw(wide, hw_shape))))
        out = dropout(F.linear(nchw_to_nlc(wide), narrow.weight.flatten(1), narrow.bias))
        return (x if identity is None else identity) + self.dropout_layer(out)


@MODELS.register_module()
class HRDAMixVisionTransformer(MixVisionTransformer):
    """MiT as HRDA's reference uses it: fused attention, and SegFormer's own two LayerNorm epsilons.

    Args:
        arch: name in `ENCODERS`.
        drop_path_rate: highest stochastic-depth rate, reached in the last block.
        init_cfg: mmengine's initialisation config.
    """

    def __init__(self, arch: str = "mit_b5", drop_path_rate: float = 0.1, init_cfg: Any = None) -> None:
        if arch not in ENCODERS:
            raise ValueError(f"Unknown encoder. Expected one of {', '.join(ENCODERS)}. Received: {arch!r}.")
        spec = ENCODERS[arch]
        super().__init__(
            embed_dims=spec.embed_dims,
            num_layers=list(spec.depths),
            num_heads=[1, 2, 5, 8],
            drop_path_rate=drop_path_rate,
            init_cfg=init_cfg,
        )
        self.arch = arch
        self.activation_checkpointing = False
        """Whether blocks are computed again in the backward pass instead of keeping what they computed."""
        for patch_embed, blocks, _ in self.layers:
            patch_embed.norm.eps = 1e-5
            for block in blocks:
                # Same parameters, another forward: nothing needs to be copied.
                block.attn.__class__ = FusedEfficientAttention
                block.ffn.__class__ = TokenMixFFN
                if block.attn.sr_ratio > 1:
                    block.attn.norm.eps = 1e-5

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


def build_encoder(arch: str, drop_path_rate: float = 0.0) -> HRDAMixVisionTransformer:
    """An encoder of the catalogue with freshly drawn weights (torch's global random state)."""
    encoder = HRDAMixVisionTransformer(arch, drop_path_rate)
    encoder.init_weights()
    return encoder


@torch.no_grad()
def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of `module`."""
    return sum(p.numel() for p in module.parameters())
