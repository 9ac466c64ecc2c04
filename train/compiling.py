"""torch.compile for encoder and decoder, where it works."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from common.hrda import HRDASegmentor
from common.hrda.windows import Box


def compile_networks(
    networks: Sequence[HRDASegmentor],
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> bool:
    """Compile the networks in place, after a trial on a copy; where that fails they stay as they are.

    Args:
        networks: on their device; the first one is trained. Names of parameters stay.
        batch_size: crops that it gets at once.
        autocast: makes the context in which it computes.
        say: gets a sentence about it.

    Returns:
        Whether they are compiled.
    """
    say("Compiling the networks: the first iterations take some minutes longer.")
    try:
        _try(copy.deepcopy(networks[0]), batch_size, autocast)
    except Exception as error:
        # Compilers, drivers and torch's own stages fail in classes of their own; each is a reason to go on without.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"torch.compile does not work here, so that the run goes on without it: {reason}")
        return False
    for network in networks:
        _compile(network)
    return True


def _compile(network: HRDASegmentor) -> None:
    head = network.decode_head
    for module in (network.backbone, head.head, head.scale_attention):
        module.compile()


def _try(network: HRDASegmentor, batch_size: int, autocast: Callable[[], AbstractContextManager]) -> None:
    """A pass forth and back of the sizes of the run."""
    _compile(network)
    height, width = network.crop_size
    device = next(network.parameters()).device
    with autocast():
        logits = network.train_logits(
            torch.zeros(batch_size, 3, height, width, device=device), Box(0, height // 2, 0, width // 2)
        )
        loss = logits.fused.square().mean() + logits.detail.square().mean()
    loss.backward()
