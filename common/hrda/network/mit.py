"""MiT, the encoder of SegFormer (Xie et al., NeurIPS 2021), as HRDA's reference uses it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.hrda.catalogue import ENCODERS
from common.hrda.checks import received
from common.hrda.network import mmcv_operators

mmcv_operators.ensure_importable()

from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN, MixVisionTransformer  # noqa: E402
from mmseg.models.utils import nchw_to_nlc, nlc_to_nchw  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402


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
            raise ValueError(f"Unknown encoder. Expected one of {', '.join(ENCODERS)}. Received: {received(arch)}.")
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
