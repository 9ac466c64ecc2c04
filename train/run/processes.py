"""The processes of a run: which device and part of the batch each has, and what happens when one of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from common.hrda import SettingsError
from common.hrda.checks import received
from common.hrda.training.optimisation import require_layers
from common.hrda.training.ranks import ALONE, FirstFailed, PeersLost, Ranks
from common.hrda.training.whole_batch import require_normalisable
from train.run.launched import Launched
from train.run.state import TrainingError
from train.settings.training import TrainSettings


class EndedElsewhere(TrainingError):
    """The run ends because of another process, which says why."""


def device_name(wanted: str, launched: Launched) -> str:
    """The name of this process's device.

    Args:
        wanted: 'auto', 'cpu', 'cuda', 'cuda:N', or a name for each process of a machine, with commas.
        launched: this process's place.

    Raises:
        SettingsError: there are not as many devices as processes.
    """
    names = [name.strip() for name in wanted.split(",")]
    if launched.is_alone and len(names) == 1:
        return wanted
    cards = torch.cuda.device_count()
    if names in (["auto"], ["cuda"]):
        names = [f"cuda:{card}" for card in range(cards)][: launched.local_count]
        if not cards and wanted == "auto":
            names = ["cpu"]
    if set(names) == {"cpu"} and len(names) in (1, launched.local_count):
        # Processes can share it, which is of use for trying out.
        return "cpu"
    if not len(set(names)) == len(names) == launched.local_count:
        raise SettingsError(
            f"Each of the {launched.local_count} training processes on this machine needs a device of its own: start "
            f"as many as there are devices. Received: device {received(wanted)}, where {cards} CUDA devices are."
        )
    return names[launched.local_rank]


def require_learnable(settings: TrainSettings, ranks: Ranks) -> None:
    """Make sure that the processes can share the batch and that the network can learn from their parts as it is to.

    Raises:
        SettingsError: it cannot; says what to change.
    """
    part_of_batch(settings.batch_size, ranks, settings.compute.accumulate)
    require_normalisable(settings.model, settings.batch_size // settings.compute.accumulate)
    if settings.optimizer.layer_decay is not None:
        require_layers(settings.model.encoder)


def part_of_batch(batch_size: int, ranks: Ranks, accumulate: int = 1) -> range:
    """The places in a batch that this process's crops have.

    Args:
        batch_size: crops of all processes.
        ranks: the processes.
        accumulate: parts in which each process goes through its crops.

    Raises:
        SettingsError: the parts would not be equal.
    """
    parts = ranks.count * accumulate
    if batch_size % parts:
        each = f", each in compute.accumulate ({accumulate}) parts" if accumulate > 1 else ""
        raise SettingsError(
            f"batch_size counts the crops of all {ranks.count} training processes, which take equal parts{each}. "
            f"Set it to {max(round(batch_size / parts), 1) * parts}. Received: {batch_size}."
        )
    size = batch_size // ranks.count
    return range(ranks.index * size, (ranks.index + 1) * size)


@contextmanager
def joined(launched: Launched, device: str, timeout_minutes: float) -> Iterator[Ranks]:
    """Within the block, the processes of the run can exchange tensors.

    Args:
        launched: this process's place among them.
        device: name of this process's device.
        timeout_minutes: a process that waits for another gives up after it.

    Yields:
        The processes; `ALONE` for one.

    Raises:
        EndedElsewhere: another process failed, ended, or did not answer in time.
    """
    if launched.is_alone:
        yield ALONE
        return
    uses_cuda = device != "cpu"
    # What is exchanged from main memory, such as the wish to stop, never waits for the devices.
    dist.init_process_group("cpu:gloo,cuda:nccl" if uses_cuda else "gloo", timeout=timedelta(minutes=timeout_minutes))
    done = False
    try:
        yield Ranks(launched.rank, launched.count, launched.local_count)
        done = True
    except FirstFailed as error:
        raise EndedElsewhere(str(error)) from error
    except PeersLost as error:
        raise EndedElsewhere(
            f"Another of the {launched.count} training processes has ended, or has not answered for "
            f"{timeout_minutes:g} minutes; its own message says why. Resuming goes on from the last checkpoint. "
            f"Process {launched.rank} noticed: {error}"
        ) from error
    finally:
        # NCCL would wait here for what can no longer come from a process that failed.
        if done or not uses_cuda:
            dist.destroy_process_group()
