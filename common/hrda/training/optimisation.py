"""The optimiser: its parameter groups, and its steps, which nothing that is not finite gets through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from common.hrda.network.segmentor import HRDASegmentor


def optimizer_groups(
    model: HRDASegmentor, lr: float, weight_decay: float, head_lr_factor: float = 10.0
) -> list[dict[str, Any]]:
    """Parameter groups as in the reference: the decoder learns faster, some of the encoder does not decay.

    Args:
        model: the student.
        lr: learning rate of the encoder.
        weight_decay: of all parameters but those that the encoder leaves out (MiT: its norms, as in the reference).
        head_lr_factor: the decoder's learning rate in units of `lr`.

    Returns:
        Three groups named 'head', 'encoder' and 'encoder_norm'.
    """
    undecayed = {id(parameter) for parameter in model.backbone.undecayed()}
    encoder = list(model.backbone.parameters())
    return [
        {
            "name": "head",
            "params": list(model.decode_head.parameters()),
            "lr": lr * head_lr_factor,
            "weight_decay": weight_decay,
        },
        {
            "name": "encoder",
            "params": [p for p in encoder if id(p) not in undecayed],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {"name": "encoder_norm", "params": [p for p in encoder if id(p) in undecayed], "lr": lr, "weight_decay": 0.0},
    ]


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
        self._clip_norm = clip_norm
        self._buffers = [buffer for model in models for buffer in model.buffers()]
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """Forget the gradients of the iteration before, and remember what this one must not spoil."""
        self.optimizer.zero_grad(set_to_none=True)
        self._before = [buffer.clone() for buffer in self._buffers]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
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
