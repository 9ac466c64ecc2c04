"""Several processes that train one model: each has a part of the batch, and all compute what one would with all of it.

Three things make that so. Gradients are averaged before the optimiser's step. Batch norm takes its statistics from the
whole batch. Random numbers are drawn for the whole batch in every process, from the same seed, and each takes its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
M = TypeVar("M", bound="nn.Module | None")

# Enough for the links between cards to be busy; all gradients at once would take as much memory as the weights.
_BUCKET_ELEMENTS = 2**24


class PeersLost(RuntimeError):
    """Another process has ended, or has not answered in time."""


class FirstFailed(RuntimeError):
    """The first process could not make what all wait for; it raises the error itself."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, joined in torch's default process group, and which of them this one is.

    Every method is to be called by all of them, in the same order. Alone, none of them does anything.
    """

    index: int = 0
    """Of this process."""
    count: int = 1
    local_count: int = 1
    """Processes on this machine, which share its memory."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that measures, writes and tells."""
        return self.index == 0

    def part(self, whole: Tensor, dim: int = 0) -> Tensor:
        """This process's part of what was drawn for the whole batch along `dim`."""
        return whole if self.count == 1 else whole.chunk(self.count, dim)[self.index]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, without gradient.

        Raises:
            PeersLost: another process is gone.
        """
        if self.count == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        _all_reduce(total)
        return total / self.count

    def mean_of_each(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the processes of each 0-dim float tensor; all have the same names."""
        if self.count == 1 or not scalars:
            return scalars
        means = self.mean(torch.stack([value.float() for value in scalars.values()]))
        return dict(zip(scalars, means.unbind(), strict=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their means over the processes.

        Raises:
            PeersLost: another process is gone.
        """
        if self.count == 1:
            return
        for bucket in _buckets(p.grad for p in parameters if p.grad is not None):
            means = self.mean(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            pieces = means.split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process.

        Raises:
            PeersLost: another process is gone.
        """
        if self.count == 1:
            return flag
        # On the CPU: nothing waits for the devices, and a process that has ended is noticed at once.
        raised = torch.tensor([flag], dtype=torch.int32)
        _all_reduce(raised)
        return bool(raised)

    def first_said(self, text: str | None) -> str | None:
        """The first text that a process has, in the order of the processes; None if none has any.

        Raises:
            PeersLost: another process is gone.
        """
        if self.count == 1:
            return text
        said: list[str | None] = [None] * self.count
        with _peers_wanted():
            dist.all_gather_object(said, text)
        return next((one for one in said if one is not None), None)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, the only one to call it.

        Raises:
            PeersLost: another process is gone.
            FirstFailed: in the other processes, when `make` raises an error in the first.
        """
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                made[0] = make()
            except Exception as raised:
                made[1], error = str(raised), raised
        with _peers_wanted():
            dist.broadcast_object_list(made, src=0)
        if error is not None:
            raise error
        if made[1] is not None:
            raise FirstFailed(made[1])
        return made[0]

    def copy_from_first(self, module: M) -> M:
        """Give `module`, if it is one, the parameters and buffers that it has in the first process; returns it.

        Raises:
            PeersLost: another process is gone.
        """
        if self.count > 1 and module is not None:
            with _peers_wanted(), torch.no_grad():
                for tensor in (*module.parameters(), *module.buffers()):
                    whole = tensor.contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)
        return module


ALONE = Ranks()
"""One process that trains for itself."""


@contextmanager
def _peers_wanted() -> Iterator[None]:
    """The block needs all processes: when one is gone, torch's backends raise RuntimeError in words of their own."""
    try:
        yield
    except RuntimeError as error:
        raise PeersLost(str(error).partition("\n")[0][:200]) from error


def _all_reduce(tensor: Tensor) -> None:
    with _peers_wanted():
        dist.all_reduce(tensor)


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in lists of at most `_BUCKET_ELEMENTS` elements, or of one tensor."""
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        if bucket and elements + gradient.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(gradient)
        elements += gradient.numel()
    if bucket:
        yield bucket
