"""Whether a network computes on another runtime what it does in PyTorch: compared on one fixed window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.hrda.sliding import WindowNetwork

BOUND = 0.02
"""Largest difference, as a share of the largest value, that rounding explains in float32 and bfloat16."""
RECORDED = (64, 64)
"""Height and width of the window whose outputs an exported network carries."""
_DIGITS = 5


def probe_window(size: tuple[int, int] = RECORDED) -> Tensor:
    """A window 1×3×H×W float32 with the spread of a normalised photo, the same everywhere and for ever."""
    # The stream of this generator is promised not to change, other than those of its distributions.
    values = np.random.Generator(np.random.PCG64(20)).random((1, 3, *size))
    return torch.from_numpy((4 * values - 2).astype(np.float32))


def record(outputs: Sequence[Tensor]) -> list[float]:
    """Outputs of PyTorch at `probe_window()`, as an exported network carries them."""
    return [float(f"{value:.{_DIGITS}g}") for output in outputs for value in output.flatten().tolist()]


def outputs_of(network: WindowNetwork, device: torch.device, size: tuple[int, int] = RECORDED) -> list[Tensor]:
    """What a network computes at `probe_window(size)`: logits 1×C×h×w and attention 1×(C or 1)×h×w, on the CPU."""
    return [output.float().cpu() for output in network.context_logits(probe_window(size).to(device))]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor] | Sequence[float]) -> float:
    """Largest difference of outputs, as a share of the largest value of the output; infinite where one is no number.

    Args:
        found: outputs of a network.
        expected: those of another one, or what `record` made of them.

    Raises:
        ValueError: `expected` has another number of values.
    """
    flat = [each.flatten() if isinstance(each, Tensor) else torch.tensor([each]) for each in expected]
    rest, shares = torch.cat(flat).double(), []
    if len(rest) != sum(output.numel() for output in found):
        raise ValueError("another number of values than the network has")
    for output in found:
        values, (own, rest) = output.flatten().double(), rest.split([output.numel(), len(rest) - output.numel()])
        share = (values - own).abs().max() / own.abs().max().clamp_min(1e-6)
        shares.append(float(share.nan_to_num(nan=torch.inf)))
    return max(shares)
