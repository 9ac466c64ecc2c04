"""The optimiser: its parameter groups, and its steps, which nothing that is not finite gets through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from common.hrda.checks import SettingsError
from common.hrda.network.encoders import make_encoder
from common.hrda.network.outline import outline
from common.hrda.network.segmentor import HRDASegmentor

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def optimizer_groups(
    model: HRDASegmentor,
    lr: float,
    weight_decay: float,
    head_lr_factor: float = 10.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups as in the reference: the decoder learns faster, some of the encoder does not decay.

    Args:
        model: the student.
        lr: learning rate of the encoder.
        weight_decay: of all parameters but those that the encoder leaves out (MiT: its norms, as in the reference).
        head_lr_factor: the decoder's learning rate in units of `lr`.
        layer_decay: each layer of the encoder learns at this share of the rate of the layer behind it (Bao et al.,
            ICLR 2022), of which the last one has `lr`; None: all have.

    Returns:
        A group named 'head', and those named 'encoder' and 'encoder_norm': one each, or with `layer_decay` one for each
        layer. The order of the parameters is the same.

    Raises:
        SettingsError: `layer_decay`, and the encoder's layers are in no order.
    """
    undecayed = {id(parameter) for parameter in model.backbone.undecayed()}
    rates = {} if layer_decay is None else _layer_rates(model.backbone, lr, layer_decay)
    groups: list[dict[str, Any]] = [
        {
            "name": "head",
            "params": list(model.decode_head.parameters()),
            "lr": lr * head_lr_factor,
            "weight_decay": weight_decay,
        }
    ]
    for name, decay in (("encoder", weight_decay), ("encoder_norm", 0.0)):
        parameters = (p for p in model.backbone.parameters() if (id(p) in undecayed) == (name == "encoder_norm"))
        for rate, ours in groupby(parameters, lambda p: rates.get(id(p), lr)):
            groups.append({"name": name, "params": list(ours), "lr": rate, "weight_decay": decay})
    return groups


def require_layers(encoder: str) -> None:
    """Make sure that an encoder has layers of which each can learn at a rate of its own.

    Raises:
        SettingsError: it has none, or cannot be built.
    """
    with outline():
        _layers(make_encoder(encoder))


def _layer_rates(encoder: nn.Module, lr: float, layer_decay: float) -> dict[int, float]:
    """The learning rate of each parameter that is of a layer, by the parameter's id."""
    layers = _layers(encoder)
    rates = [lr * layer_decay ** (len(layers) - 1 - place) for place in range(len(layers))]
    return {id(parameter): rate for layer, rate in zip(layers, rates, strict=True) for parameter in layer}


def _layers(encoder: nn.Module) -> list[list[nn.Parameter]]:
    layers = encoder.learning_layers()
    if not layers:
        raise SettingsError(
            "optimizer.layer_decay is for vision transformers, whose blocks follow one another. Of the encoder "
            f"{encoder.encoder} nothing is known about the order of its layers: set it to null, or lower optimizer.lr."
        )
    return layers


class GuardedOptimizer:
    """Takes a step where losses and gradients are finite; elsewhere the iteration leaves no trace.

    All is decided on the device: nothing waits for it.

    Args:
        optimizer: fused AdamW, which can be told on the device to leave everything as it is.
        models: whose buffers (running statistics) an iteration that is left out must not change either.
        scaler: scales losses so that float16 gradients do not vanish; switched off in other precisions.
        clip_norm: gradients are shortened to this length of all together; None: never.
    """

    def __init__(
        self,
        optimizer: AdamW,
        models: Sequence[nn.Module],
        scaler: torch.amp.GradScaler,
        clip_norm: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self._norms = [module for model in models for module in model.modules() if isinstance(module, _NORMS)]
        self._clip_norm = clip_norm
        self._buffers = [buffer for model in models for buffer in model.buffers()]
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """Forget the gradients of the iteration before, and remember what this one must not spoil."""
        self.optimizer.zero_grad(set_to_none=True)
        self._before = [buffer.clone() for buffer in self._buffers]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        # What is computed again on the way back was counted when it was computed first.
        with _statistics_kept(self._norms):
            self.scaler.scale(loss).backward()

    @torch.no_grad()
    def step(self, losses: Iterable[Tensor]) -> Tensor:
        """Step, or undo, and forget nothing else.

        Args:
            losses: 0-dim, of the iteration.

        Returns:
            0-dim bool on the device: whether the step was taken.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters], foreach=True)
        if self._clip_norm is not None:
            clip_grads_with_norm_(parameters, self._clip_norm, norm, foreach=True)
        finite = torch.stack([norm, *losses]).isfinite().all()
        # The name under which fused optimisers look for it. Not by the scaler's own step, which knows gradients only.
        self.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        self.scaler.update()
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        return finite


@contextmanager
def _statistics_kept(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Let batch norms leave their running statistics as they are within the block.

    They are still handed over, with a momentum of 0: what is computed again must keep as many tensors as before.
    """
    former = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, _ in former:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in former:
            norm.momentum, norm.num_batches_tracked = momentum, count
