"""The batches of a run one after the other, drawn ahead by processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.batches import Batch, PackedBatch
from common.data.datasets import TrainingBatches
from common.data.images import ImageError
from common.data.reading import Patience


def iterate(
    batches: TrainingBatches,
    start: int,
    workers: int,
    device: torch.device | None = None,
    patience: Patience | None = None,
) -> Iterator[Batch]:
    """The batches from iteration `start` on.

    Args:
        batches: of the run.
        start: the first iteration, from 0.
        workers: processes that draw them ahead; 0: this one draws them.
        device: where they are wanted; None: on the CPU.
        patience: with which this process reads again what one could not read, when it is the batch's turn.

    Raises:
        ImageError: it cannot be read here either.
    """
    device = device or torch.device("cpu")
    while start < len(batches):
        lost = len(batches.lost)
        for packed in _loader(batches, start, workers, device):
            yield (packed or batches.packed(start, patience or Patience())).unpack(device)
            start += 1
            if len(batches.lost) > lost:
                # Processes that are forked now know what not to draw.
                break


def _loader(batches: TrainingBatches, start: int, workers: int, device: torch.device) -> DataLoader[PackedBatch | None]:
    return DataLoader(
        _Packed(batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
    )


class _Packed(Dataset[PackedBatch | None]):
    """The batches as bytes, which are what a process of a data loader copies to the one that trains; None for a batch
    of which a photo or mask could not be read."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def __getitem__(self, iteration: int) -> PackedBatch | None:
        try:
            return self._batches.packed(iteration)
        except ImageError:
            return None


def _start_worker(_worker: int) -> None:
    # Workers share the machine's cores already; OpenCV's own threads would only fight over them.
    cv2.setNumThreads(0)
    # Ctrl-C and the end of a terminal reach them, too, but ending is the training process's decision; and they must not
    # inherit a handler that keeps them from being ended by it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
