"""How far a run is: its means and measurements, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from train.run.validation import Measurement
from train.run.watch import StepGuard
from train.settings.sections import OptimizerSettings

# The pace of the last reports counts: an iteration takes longer once self-training has begun.
_REPORTS_COUNTED = 10


class RunningMeans:
    """Means of an iteration's scalars since they were last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, scalars: Mapping[str, Tensor], finite: Tensor) -> None:
        """Count an iteration; nothing waits for the device.

        Args:
            scalars: 0-dim, by name.
            finite: 0-dim bool; where it is false, the iteration does not count.
        """
        for name, value in scalars.items():
            total, count = self._sums.get(name, (0, 0))
            self._sums[name] = total + torch.where(finite, value, 0), count + finite.long()

    def take(self) -> dict[str, float]:
        """The means of the iterations that count, and start anew. What never counted has none."""
        means = {name: float(total) / int(count) for name, (total, count) in self._sums.items() if count}
        self._sums = {}
        return means

    def to_plain(self) -> dict[str, list[Tensor]]:
        """What is gathered, for a run that goes on later."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def restore(self, plain: Mapping[str, Sequence[Tensor]], device: torch.device) -> None:
        """Go on from what `to_plain` gave, on the device that the scalars will come from."""
        self._sums = {name: tuple(part.to(device) for part in sums) for name, sums in plain.items()}


class TimeLeft:
    """Estimates the time to the end of a run from its last reports and its last measurement.

    Args:
        iterations: of the whole run.
        interval: iterations between measurements.
        clock: seconds that only grow.
    """

    def __init__(self, iterations: int, interval: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._iterations, self._interval, self._clock = iterations, interval, clock
        # The first report is where counting starts: what is before it holds the warming up of the machine.
        self._reports: deque[tuple[int, float]] = deque(maxlen=_REPORTS_COUNTED)
        self._measuring = self._last_measurement = 0.0
        self.seconds_per_iteration: float | None = None
        """Of the last reports; None before the second one."""

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """The block measures; it is not counted as iterations."""
        before = self._clock()
        yield
        self._last_measurement = self._clock() - before
        self._measuring += self._last_measurement

    def report(self, iteration: int) -> float | None:
        """Seconds until all is done, after `iteration` iterations; None at the first report."""
        now = self._clock() - self._measuring
        self._reports.append((iteration, now))
        first, since = self._reports[0]
        if first == iteration:
            return None
        self.seconds_per_iteration = pace = (now - since) / (iteration - first)
        # The end is always measured, and so is this iteration if its turn has come.
        measurements = -(-self._iterations // self._interval) - (iteration - 1) // self._interval
        return pace * (self._iterations - iteration) + self._last_measurement * measurements


class RunProgress:
    """What a run has gathered besides what it has learnt.

    Args:
        settings: whose limit of skipped iterations ends the run.
    """

    def __init__(self, settings: OptimizerSettings) -> None:
        self.done = 0
        """Iterations done."""
        self.best: Measurement | None = None
        """The best measurement so far."""
        self.latest: Measurement | None = None
        """The last measurement so far."""
        self.means = RunningMeans()
        self.guard = StepGuard(settings)

    def to_plain(self) -> dict[str, Any]:
        """All but the iterations, as tensors and data that load without executing anything."""
        best, latest = (None if one is None else one.to_plain() for one in (self.best, self.latest))
        return {"best": best, "latest": latest, "means": self.means.to_plain(), "skipped": self.guard.to_plain()}

    def restore(self, done: int, plain: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `to_plain` gave.

        Args:
            done: iterations done.
            plain: what was gathered.
            device: where the iterations' scalars will come from.
        """
        self.done = done
        self.best, self.latest = (plain[name] and Measurement(**plain[name]) for name in ("best", "latest"))
        self.means.restore(plain["means"], device)
        self.guard.restore(plain["skipped"])
