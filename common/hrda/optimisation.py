"""The optimiser's parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.hrda.segmentor import HRDASegmentor


def optimizer_groups(
    model: HRDASegmentor, lr: float, weight_decay: float, head_lr_factor: float = 10.0
) -> list[dict[str, Any]]:
    """Parameter groups as in the reference: the decoder learns faster, the encoder's norms do not decay.

    Args:
        model: the student.
        lr: learning rate of the encoder.
        weight_decay: of all parameters but the encoder's norm layers.
        head_lr_factor: the decoder's learning rate in units of `lr`.

    Returns:
        Three groups named 'head', 'encoder' and 'encoder_norm'.
    """
    norms = {
        id(parameter)
        for module in model.backbone.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
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
            "params": [p for p in encoder if id(p) not in norms],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {"name": "encoder_norm", "params": [p for p in encoder if id(p) in norms], "lr": lr, "weight_decay": 0.0},
    ]
