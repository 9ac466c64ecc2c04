"""Devices, their random numbers, and torch.compile where it works."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common.hrda import HRDASegmentor, SettingsError
from common.hrda.checks import received
from common.hrda.prediction.runtime import check_precision
from common.hrda.windows import Box


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
        raise SettingsError(f"device must be auto, cpu, cuda or cuda:N. Received: {received(name)}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"This machine offers {torch.cuda.device_count()} CUDA devices. Received: {received(name)}."
        )
    return device


def computing_precision(wanted: str, device: torch.device) -> str:
    """The precision in which networks compute on `device`: 'float32', 'bfloat16' or 'float16'.

    Args:
        wanted: one of these, or 'auto': bfloat16 where a graphics card has it in hardware, float16 on older cards,
            float32 on a processor.
        device: where to compute.

    Raises:
        SettingsError: the device cannot compute in it.
    """
    if wanted == "auto":
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    check_precision(wanted, device)
    return wanted


def autocast_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """What makes the context in which networks compute in `precision`; their weights stay float32."""
    if precision == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, getattr(torch, precision))


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round float32 to TF32 where it multiplies, in matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def seed_everything(seed: int, stream: int) -> int:
    """Seed torch's global generators with the number drawn for (seed, stream), and return that number."""
    [drawn] = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))
    return int(drawn)


def to_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """`tensor` on `device`, copied from pinned memory while the device works on."""
    if tensor is None:
        return None
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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
