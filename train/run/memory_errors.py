"""What to say when memory runs out: what did not fit, what does, and which setting to change."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from common.data.datasets import Batch
from common.hrda import out_of_memory
from common.hrda.catalogue import smaller_encoders
from train.run.learner import Learner
from train.run.state import TrainingError
from train.settings.training import TrainSettings

_CPU_ALLOCATOR = "DefaultCPUAllocator"
_WORKER_KILLED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)", re.S)
_SHARED_MEMORY = re.compile(r"Bus error|shared memory|shm", re.I)
_CROP_GRID = 64
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or torch on the CPU, has no memory left."""
    # The sentences of this module use the words of libraries.
    return not isinstance(error, TrainingError) and out_of_memory.is_out_of_memory(error)


def learn_or_explain(learner: Learner, batch: Batch, done: int, settings: TrainSettings) -> dict[str, Tensor]:
    """Do an iteration; where its memory does not suffice, find out what would and say so.

    Args:
        learner: is tried with smaller batches where needed, and of no use after an error.
        batch: what to learn from.
        done: iterations done before.
        settings: of the run.

    Returns:
        What `Learner.learn` returns.

    Raises:
        TrainingError: out of memory, with the largest batch size that fits.
    """
    try:
        return learner.learn(batch, done)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    crop = "×".join(map(str, settings.model.crop_size))
    where = f"Out of memory on {describe(learner.device)} at iteration {done + 1}"
    processes = learner.ranks.count
    if processes > 1:
        # What fits cannot be tried: an iteration needs all processes, and the others wait in this one.
        less = settings.batch_size - processes
        lower = f"Lower batch_size to {less} or choose" if less else "Choose"
        raise TrainingError(
            f"{where}: {settings.batch_size // processes} crops of {crop} (batch_size {settings.batch_size}) "
            f"on each of {processes} processes does not fit. {lower} {_smaller_step(settings)}."
        )
    # Only now, without the error, are the tensors of its frames gone.
    fitting = _largest_fitting(learner, batch, done, settings)
    if fitting:
        raise TrainingError(
            f"{where}: batch_size {settings.batch_size} with crop_size {crop} does not fit; batch_size {fitting} does. "
            f"{_same_batch(settings, fitting)}Or choose {_smaller_step(settings)}."
        )
    raise TrainingError(
        f"{where}: crop_size {crop} does not fit, not even with batch_size {settings.compute.accumulate}. "
        f"Choose {_smaller_step(settings)}."
    )


@contextmanager
def explained_measuring(settings: TrainSettings, device: torch.device, iteration: int) -> Iterator[None]:
    """The block predicts whole photos: when memory runs out, say which setting bounds what that needs.

    Raises:
        TrainingError: out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        windows = settings.inference.batch_size
        window = settings.inference.window or settings.model.crop_size
        size = "×".join(map(str, window))
        if windows > 1:
            remedy = f"Lower inference.batch_size ({windows} windows of {size} at once) to {windows // 2}"
        else:
            remedy = f"Set inference.window to {list(_smaller(window))} (now {size})"
        raise TrainingError(
            f"Out of memory on {describe(device)} while validation photos were predicted after iteration {iteration}. "
            f"{remedy}, and continue."
        ) from error


@contextmanager
def explained_memory(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """The block is a run: where memory runs out in another place than a step, say what to do.

    Raises:
        TrainingError: the device or the machine is out of memory, or the system has ended a process that prepares
            batches.
    """
    try:
        yield
    except MemoryError as error:
        raise TrainingError(_less_main_memory(settings)) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            if device.type == "cpu" or _CPU_ALLOCATOR in str(error):
                raise TrainingError(_less_main_memory(settings)) from error
            raise TrainingError(
                f"Out of memory on {describe(device)}: there is no room for the networks. End what else runs on the "
                f"device, choose another device, or choose {_smaller_network(settings)}."
            ) from error
        if not _WORKER_KILLED.search(str(error)):
            raise
        if _SHARED_MEMORY.search(str(error)):
            raise TrainingError(
                "Shared memory has run out, in which prepared batches wait. Set data.workers to 0, or give the "
                "container more (docker run --shm-size)."
            ) from error
        raise TrainingError(
            "The system has ended a process that prepares batches, most often because main memory ran out. "
            f"{_lower(settings)}"
        ) from error


def describe(device: torch.device) -> str:
    """A device with the memory that it has, such as `cuda:0 (23.6 GiB)`."""
    if device.type != "cuda":
        return f"the CPU ({main_memory() / 2**30:.1f} GiB)"
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    others = total - free - torch.cuda.memory_reserved(index)
    # What the driver and this process's own context take is a few hundred megabytes.
    shared = f", of which other programs use {others / 2**30:.1f}" if others > 0.1 * total else ""
    return f"cuda:{index} ({total / 2**30:.1f} GiB{shared})"


def _largest_fitting(learner: Learner, batch: Batch, done: int, settings: TrainSettings) -> int:
    """The largest number of images, below those of `batch`, that there is memory for; 0 if one is too many."""
    parts = settings.compute.accumulate
    for count in range(len(batch.source_images) - parts, 0, -parts):
        learner.forget_gradients()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        try:
            learner.learn(Batch(*(None if part is None else part[:count] for part in batch)), done)
        except RuntimeError:
            # Where memory is short, libraries of the device fail in words of their own.
            continue
        return count
    return 0


def _same_batch(settings: TrainSettings, fitting: int) -> str:
    """How the batch can stay as it is, computed in more parts of which each is small enough; empty if it cannot."""
    largest = fitting // settings.compute.accumulate
    for parts in range(settings.compute.accumulate + 1, settings.batch_size + 1):
        if settings.batch_size % parts == 0 and settings.batch_size // parts <= largest:
            return f"With compute.accumulate {parts} the batch can stay as large as it is, in more time. "
    return ""


def _smaller(size: tuple[int, int]) -> tuple[int, int]:
    """Three quarters of a size, on the grid of crops."""
    height, width = (max(side * 3 // 4 // _CROP_GRID * _CROP_GRID, _CROP_GRID) for side in size)
    return height, width


def _smaller_step(settings: TrainSettings) -> str:
    """What needs less memory in an iteration."""
    if settings.compute.activation_checkpointing:
        return _smaller_network(settings)
    return f"compute.activation_checkpointing (less memory in more time), {_smaller_network(settings)}"


def _smaller_network(settings: TrainSettings) -> str:
    crop, encoder = settings.model.crop_size, settings.model.encoder
    choices = []
    if _smaller(crop) != crop:
        choices.append("crop_size " + "×".join(map(str, _smaller(crop))))
    if smaller_encoders(encoder):
        choices.append(f"a smaller encoder than {encoder}")
    return " or ".join(choices) or "a device with more memory"


def _less_main_memory(settings: TrainSettings) -> str:
    return f"Main memory has run out (there are {main_memory() / 2**30:.1f} GiB). {_lower(settings)}"


def _lower(settings: TrainSettings) -> str:
    data = settings.data
    return (
        f"Lower data.workers ({data.workers}), data.memory_cache_mb ({data.memory_cache_mb}) or batch_size "
        f"({settings.batch_size}), and continue."
    )


def main_memory() -> int:
    """Bytes of main memory that the machine has, or that its container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER_LIMITS:
        # Without a limit there is a word, or no such file.
        with suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total
