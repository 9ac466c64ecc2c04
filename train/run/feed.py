"""The batches of a run as its loop takes them: to their end, or until a process is to stop or cannot read a photo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from common.data.datasets import Batch, TrainingBatches
from common.data.images import ImageError
from common.data.loading import iterate
from common.data.reading import MaskLost, Patience, only_this_one
from common.hrda.training.ranks import Ranks
from train.settings.sections import DataSettings

_MOST_NAMED = 10


class Feed:
    """Hands batches to the loop of one process, and ends in all processes after the same iteration.

    Args:
        batches: of this process.
        settings: how many processes draw them ahead, and whether lost photos may be left out.
        ranks: the processes that train together.
        stop: ends it, once set in any process.
        say: is told of photos that others are drawn for.
        patience: with which what cannot be read is read again.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        settings: DataSettings,
        ranks: Ranks,
        stop: threading.Event,
        say: Callable[[str], None],
        patience: Patience,
    ) -> None:
        self._patience = patience
        self._batches, self._settings, self._ranks, self._stop, self._say = batches, settings, ranks, stop, say
        self._told = 0
        self.failure: str | None = None
        """What cannot be read in some process and what to do, where that is why it has ended."""

    def take(self, start: int, device: torch.device) -> Iterator[Batch]:
        """The batches from iteration `start` on, as `common.data.loading.iterate` gives them."""
        drawn = iterate(self._batches, start, self._settings.workers, device, self._patience)
        while True:
            batch = failure = None
            try:
                batch = next(drawn, None)
            except ImageError as error:
                failure = what_to_do(error, self._settings)
            if batch is None and failure is None:
                return
            if self._ranks.any(self._stop.is_set() or failure is not None):
                # Who is told to stop while a disk is waited for has not failed.
                self.failure = self._ranks.first_said(None if self._stop.is_set() else failure)
                return
            self.tell_lost()
            yield batch

    def tell_lost(self) -> None:
        """Name the photos that were lost since this was last called."""
        lost = list(self._batches.lost.values())
        for number, reason in enumerate(lost[self._told : _MOST_NAMED], self._told + 1):
            self._say(f"{reason} Another photo is drawn in its place ({number} so far).")
        self._told = len(lost)

    def sum_up(self) -> None:
        """Tell how many photos were lost in all, if any were."""
        count = len(self._batches.lost)
        if count:
            photos = "1 photo was" if count == 1 else f"{count} photos were"
            self._say(f"{photos} lost during the training, and others drawn instead (data.skip_broken).")


def what_to_do(error: ImageError, settings: DataSettings) -> str:
    """What cannot be read in a run and what to do about it."""
    if isinstance(error, MaskLost):
        return f"{error} It is a file of the run's cache: continue, and it is drawn again."
    if not only_this_one(error):
        return f"{error} See to its disk, and continue."
    if settings.skip_broken:
        return f"{error} Put the photos back, and continue."
    return f"{error} Put it back as it was and continue, or set data.skip_broken to go on without such photos."
