"""How much memory training takes on its device, found out without taking it.

The network is built and run on torch's meta device: every tensor of a training pass has its shape and no content, and
the tensors that are alive at the same time are added up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.hrda.checks import require
from common.hrda.network.outline import outline
from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
from common.hrda.settings import ModelSettings
from common.hrda.windows import Box

FLOAT_BYTES = 4
REDUCED_BYTES = 2
"""Autocast keeps a copy of the student's weights in 16 bits during a pass."""
WEIGHT_COPIES = 5
"""Tensors of the size of the weights: student, its gradients, Adam's two averages, teacher."""

PROBE_CROP = (512, 512)


def estimate_training_memory(
    model: ModelSettings,
    *,
    batch_size: int,
    adapting: bool,
    reduced_precision: bool = False,
    activation_checkpointing: bool = False,
) -> int:
    """Peak of the memory that training takes on its device, in bytes.

    Counted are weights, gradients, Adam's averages, the teacher, and what the hungrier of the two passes holds: the
    student's for its backward, or the teacher's over all windows of the target crops. Not counted is what a device
    needs besides tensors: CUDA's context, workspaces of kernels, gaps of the allocator. The first question about a
    network takes some seconds, all further ones next to nothing.

    Args:
        model: what the network is made of.
        batch_size: crops in a pass.
        adapting: whether the teacher labels target crops.
        reduced_precision: whether networks compute in bfloat16 or float16, as autocast has them do.
        activation_checkpointing: whether the encoder's blocks are computed again in the backward pass.

    Raises:
        SettingsError: `batch_size` is not a positive whole number.
    """
    is_count = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    require(is_count, "batch_size", "a positive whole number", batch_size)
    footprint = _measure(replace(model, crop_size=PROBE_CROP), reduced_precision, activation_checkpointing)
    crop = max(footprint.student_pass, footprint.teacher_pass) if adapting else footprint.student_pass
    # Attention keeps no map of all pairs of places, so that everything grows with the number of pixels.
    pixels = batch_size * model.crop_size[0] * model.crop_size[1]
    passes = crop * pixels // (PROBE_CROP[0] * PROBE_CROP[1])
    weight_bytes = WEIGHT_COPIES * FLOAT_BYTES + (REDUCED_BYTES if reduced_precision else 0)
    return weight_bytes * parameter_counts(model)[1] + passes


@lru_cache(maxsize=64)
def parameter_counts(model: ModelSettings) -> tuple[int, int]:
    """Number of parameters of the encoder, and of the whole network."""
    with outline():
        network = build_segmentor(model)
    return count_parameters(network.backbone), count_parameters(network)


@dataclass(frozen=True)
class _Footprint:
    """What a network holds of one crop of `PROBE_CROP`, besides its weights and gradients."""

    student_pass: int
    """Peak bytes of one training pass, forward and backward."""
    teacher_pass: int
    """Peak bytes of the teacher's answer, of which nothing is kept."""


@lru_cache(maxsize=64)
def _measure(settings: ModelSettings, reduced: bool, activation_checkpointing: bool) -> _Footprint:
    with outline():
        model = build_segmentor(settings).train()
    model.backbone.activation_checkpointing = activation_checkpointing
    copies = _reduced_copies(model) if reduced else {}
    known = (*model.state_dict().values(), *copies.values())
    for parameter in (*model.parameters(), *copies.values()):
        # Gradients are counted with the weights: of those that come up here, each goes at once.
        parameter.register_post_accumulate_grad_hook(_forget_gradient)
    with _MetaFunctions(copies), _LiveBytes(known) as student:
        loss = _training_loss(model)
        if activation_checkpointing:
            # The peak is where a block is computed again. `torch.autograd.backward` would leave the mode for that.
            _engine_run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
    with _MetaFunctions(copies), _LiveBytes(known) as teacher, torch.no_grad():
        model.crop_logits(_images(PROBE_CROP))
    return _Footprint(student.peak, teacher.peak)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _training_loss(model: HRDASegmentor) -> Tensor:
    height, width = model.crop_size
    labels = torch.zeros(1, height, width, dtype=torch.int64, device="meta")
    pixel_weights = torch.ones(1, height, width, device="meta")
    logits = model.train_logits(_images(model.crop_size), Box(0, height // 2, 0, width // 2))
    return torch.stack(list(model.losses(logits, labels, pixel_weights).values())).sum()


def _images(size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, 3, *size, device="meta")


def _reduced_copies(model: nn.Module) -> dict[int, Tensor]:
    """A copy of each parameter in 16 bits, by the parameter's id."""
    return {id(p): p.detach().to(torch.bfloat16).requires_grad_() for p in model.parameters()}


class _MetaFunctions(TorchFunctionMode):
    """Attends as the kernels of real devices do.

    On the meta device attention falls back to the kernel that keeps the whole attention map, which neither CUDA's
    memory-efficient one nor the CPU's does: they keep their inputs, the output and a sum for each row.

    Args:
        copies: of `_reduced_copies`, where convolutions, products and attention are to take 16 bits and layer norms 32,
            as autocast has it, which does not know the meta device. Without any, all is in 32 bits.
    """

    _REDUCED = (F.conv2d, F.linear, F.scaled_dot_product_attention)

    def __init__(self, copies: Mapping[int, Tensor] = MappingProxyType({})) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._copies and func in self._REDUCED:
            args = tuple(self._reduced(value) for value in args)
        elif self._copies and func is F.layer_norm:
            args = (args[0].float(), *args[1:])
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]
        return func(*args, **kwargs)

    def _reduced(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        whole = value._base if value._is_view() else value
        copy = self._copies.get(id(whole))
        if copy is None:
            return value.to(torch.bfloat16)
        return copy.as_strided(value.shape, value.stride(), value.storage_offset())


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages of new tensors while these are alive.

    Args:
        known: tensors that are not new, nor are views of them.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._storages = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._storages.pop(key)


@torch.no_grad()
def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of `module`."""
    return sum(p.numel() for p in module.parameters())
