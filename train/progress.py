"""What is said between two reports of a run: means, and the time that is left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from train.result import TrainingError

# The pace of the last reports counts: an iteration takes longer once self-training has begun.
_REPORTS_COUNTED = 10


class RunningMeans:
    """Means of an iteration's scalars since they were last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Count 0-dim tensors; nothing waits for the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, iteration: int) -> dict[str, float]:
        """The means, and start anew.

        Raises:
            TrainingError: one of them is no finite number.
        """
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        for name, value in means.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"Training has diverged: {name} is {value} at iteration {iteration}. Lower optimizer.lr or "
                    "lengthen optimizer.warmup_iterations, and start again."
                )
        return means


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
        pace = (now - since) / (iteration - first)
        # The end is always measured, and so is this iteration if its turn has come.
        measurements = -(-self._iterations // self._interval) - (iteration - 1) // self._interval
        return pace * (self._iterations - iteration) + self._last_measurement * measurements
