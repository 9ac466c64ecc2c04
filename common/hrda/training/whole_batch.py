"""Layers that look beyond one image, over the batch of all processes: batch norm, dropout, stochastic depth."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from common.hrda.checks import SettingsError
from common.hrda.network.drop_path import DropPath
from common.hrda.network.encoders import make_encoder, with_synchronised_norms
from common.hrda.settings import ModelSettings
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
        if self.num_batches_tracked is not None:
            self._follow(mean.detach(), variance.detach(), x.numel() // x.shape[1] * self.ranks.count)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Bring the running statistics nearer to those of a batch with so many values of each channel."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * values / (values - 1), self.momentum)


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


def require_normalisable(model: ModelSettings, crops: int) -> None:
    """Make sure that the encoder can be built, and that its batch norms have more than one value to normalise by.

    Args:
        model: what the network is made of.
        crops: that go through it at once, in all processes together.

    Raises:
        SettingsError: it cannot; says what to change.
    """
    height, width = model.crop_size
    # The network reads crops at half their resolution, and details of half their size.
    if _has_single_values(model.encoder, crops, (height // 2, width // 2)):
        raise SettingsError(
            f"Batch norms of the encoder {model.encoder} see one value of each channel in a single crop of {height} × "
            f"{width}, and cannot normalise by it. Raise batch_size (of which compute.accumulate makes "
            f"parts) so that two crops or more are seen at once, or set model.crop_size to [{height * 2}, {width * 2}]."
        )


@lru_cache(maxsize=64)
def _has_single_values(encoder: str, images: int, size: tuple[int, int]) -> bool:
    with torch.device("meta"):
        network = make_encoder(encoder).train()
        if images > 1:
            return False
        try:
            with torch.no_grad():
                network(torch.zeros(images, 3, *size))
        except ValueError:
            # torch's own word for it, which names no layer.
            return True
    return False
