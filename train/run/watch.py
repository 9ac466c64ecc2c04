"""Iterations that are skipped because a loss or a gradient is no finite number: they are counted, and too many in a row
end a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from train.result import TrainingError
from train.settings.sections import OptimizerSettings

FINITE = "step/finite"
"""Name of the flag among an iteration's scalars: 0-dim bool, whether all losses and gradients are finite."""


@dataclass
class SkipCounts:
    """How many iterations were skipped."""

    total: int = 0
    """Of the whole run."""
    in_a_row: int = 0
    """Since the last one that was learnt from."""


class StepGuard:
    """Counts skipped iterations and ends a run in which too many follow on each other.

    Args:
        settings: with the limit, and what to change once it is reached.
    """

    def __init__(self, settings: OptimizerSettings) -> None:
        self.counts = SkipCounts()
        """As of the last `read` or `to_plain`; on a CPU always up to date."""
        self._settings = settings
        self._unread: list[Tensor] = []
        self._latest: Mapping[str, Tensor] = {}
        self._done = self._reported = 0

    def add(self, done: int, finite: Tensor, scalars: Mapping[str, Tensor]) -> None:
        """Take note of an iteration; nothing waits for another device than the CPU.

        Args:
            done: iterations done with it.
            finite: 0-dim bool, whether it was learnt from.
            scalars: its losses by name, 0-dim.

        Raises:
            TrainingError: as `read`.
        """
        self._done, self._latest = done, scalars
        self._unread.append(finite)
        if finite.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Bring `counts` up to date.

        Raises:
            TrainingError: as many iterations as the settings allow were skipped in a row.
        """
        self._count()
        if self.counts.in_a_row >= self._settings.skip_limit:
            raise TrainingError(self._diverged())

    def take_news(self) -> bool:
        """Whether more were skipped than when this was last asked, as of the last `read`."""
        before, self._reported = self._reported, self.counts.total
        return self.counts.total > before

    def to_plain(self) -> dict[str, Any]:
        """The counts, for a run that goes on later."""
        self._count()
        return asdict(self.counts)

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what `to_plain` gave."""
        self.counts = SkipCounts(**plain)

    def _count(self) -> None:
        flags = torch.stack(self._unread).tolist() if self._unread else []
        for finite in flags:
            self.counts.total += not finite
            self.counts.in_a_row = 0 if finite else self.counts.in_a_row + 1
        self._unread.clear()

    def _diverged(self) -> str:
        count, settings = self.counts.in_a_row, self._settings
        culprits = [name for name, value in self._latest.items() if not torch.isfinite(value)]
        what = " and ".join(culprits) or "a gradient"
        since = self._done - count + 1
        remedy = (
            f"Lower optimizer.lr ({settings.lr:g}) or lengthen optimizer.warmup_iterations "
            f"({settings.warmup_iterations})."
        )
        if since == 1:
            remedy += " If that does not help, the weights that it started from are damaged."
        return (
            f"Training has diverged: from iteration {since} to {self._done} {what} was no finite number. None of these "
            f"{count} iterations was learnt from. {remedy}"
        )
