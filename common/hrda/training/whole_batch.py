"""Layers that look beyond one image, over the batch of all processes: batch norm, dropout, stochastic depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from common.hrda.network.drop_path import DropPath
from common.hrda.network.encoders import with_synchronised_norms
from common.hrda.training.ranks import Ranks


class _Mean(Function):
    """The mean over the processes; its gradient is the mean of the gradients, as the losses are averaged too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.mean(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.mean(gradient), None


class WholeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of all processes, each with as many images, where torch's own needs CUDA."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` B×C×H×W."""
        if not self.training:
            return super().forward(x)
        # Two passes: a variance from the sum of squares loses the digits that the mean has.
        mean = _Mean.apply(x.mean((0, 2, 3)), self.ranks)
        centred = x - mean[:, None, None]
        variance = _Mean.apply(centred.square().mean((0, 2, 3)), self.ranks)
        with torch.no_grad():
            values = x.numel() // x.shape[1] * self.ranks.count
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * values / (values - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class WholeBatchNormAct2d(WholeBatchNorm2d):
    """The same of a norm with an activation in it, as convolutional encoders have it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` B×C×H×W, drop and activate."""
        return self.act(self.drop(super().forward(x)))


class WholeBatchDropout2d(nn.Dropout2d):
    """Dropout of channels that draws for the batch of all processes."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of `x` B×C×H×W."""
        if not self.training or self.p == 0:
            return x
        noise = x.new_empty((self.ranks.count * x.shape[0], x.shape[1], 1, 1)).bernoulli_(1 - self.p)
        return x * self.ranks.part(noise.div_(1 - self.p))


class WholeBatchDropPath(DropPath):
    """Stochastic depth that draws for the batch of all processes."""

    ranks: Ranks

    def draw(self, x: Tensor) -> Tensor:
        """A random number in 0..1 for each image of `x` B×…, of those that are drawn for all processes."""
        return self.ranks.part(
            torch.rand((self.ranks.count * len(x), *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device)
        )


_OF_WHOLE_BATCH: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: WholeBatchNorm2d,
    nn.Dropout2d: WholeBatchDropout2d,
    DropPath: WholeBatchDropPath,
}


def see_whole_batch(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Let the layers of `model` that look beyond one image see the batch of all processes.

    Args:
        model: changed in place; names and values of its parameters stay.
        ranks: the processes.
        device: where the model will lie.

    Returns:
        The model.
    """
    if ranks.count == 1:
        return model
    if device.type == "cuda":
        model = with_synchronised_norms(model)
    for module in model.modules():
        kind = _OF_WHOLE_BATCH.get(type(module))
        if kind is None and isinstance(module, nn.BatchNorm2d) and hasattr(module, "act"):
            kind = WholeBatchNormAct2d
        if kind is not None:
            # Same parameters, another forward: nothing needs to be copied.
            module.__class__ = kind
            module.ranks = ranks
    return model
