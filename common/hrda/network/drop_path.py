"""Stochastic depth, of which every encoder has its own kind elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: leaves a branch out for whole images at random (Huang et al., ECCV 2016).

    Args:
        drop_prob: chance of each image, from 0 to below 1.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop images of `x` B×…; those that stay are scaled up, so that the mean is kept."""
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        return x.div(keep) * (keep + self.draw(x)).floor()

    def draw(self, x: Tensor) -> Tensor:
        """A random number in 0..1 for each image of `x`, B×1×…."""
        return torch.rand((len(x), *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device)
