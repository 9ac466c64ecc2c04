"""Devices and their random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.hrda import SettingsError


def find_device(name: str) -> torch.device:
    """The device of that name; 'auto' is CUDA where there is one, else the CPU.

    Raises:
        SettingsError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be auto, cpu, cuda or cuda:N. Received: {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"This machine offers {torch.cuda.device_count()} CUDA devices. Received: {name!r}.")
    return device


def seed_everything(seed: int, stream: int) -> int:
    """Seed torch's global generators with the number drawn for (seed, stream), and return that number."""
    [drawn] = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))
    return int(drawn)


def to_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """`tensor` on `device`; copied while the device works on, where memory is pinned."""
    return None if tensor is None else tensor.to(device, non_blocking=True)
