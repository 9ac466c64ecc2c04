"""Who hears of a run's progress: the terminal, TensorBoard, the app's page."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO


class TrainingObserver(Protocol):
    """Hears of a run as it goes. Called from the training thread; iterations are counted from 1."""

    def on_start(self, total_iterations: int) -> None:
        """Preparation is over; `total_iterations` are ahead."""

    def on_iteration(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """`iteration` is done, as often as the settings' log_interval says; losses are means since the last call."""

    def on_validation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """The models were measured: scores from 0 to 1, named `student/…` and `teacher/…`."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint was written."""

    def on_message(self, text: str) -> None:
        """Something a person would want to read."""


class Observers:
    """Passes everything on to several observers, in their order."""

    def __init__(self, observers: Sequence[TrainingObserver]) -> None:
        self._observers = tuple(observers)

    def on_start(self, total_iterations: int) -> None:
        for observer in self._observers:
            observer.on_start(total_iterations)

    def on_iteration(self, iteration: int, scalars: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.on_iteration(iteration, scalars)

    def on_validation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.on_validation(iteration, metrics)

    def on_checkpoint(self, path: Path) -> None:
        for observer in self._observers:
            observer.on_checkpoint(path)

    def on_message(self, text: str) -> None:
        for observer in self._observers:
            observer.on_message(text)


class ProgressLines:
    """One readable line for each report."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._total = 0
        self._first: tuple[int, float] | None = None

    def on_start(self, total_iterations: int) -> None:
        self._total = total_iterations
        self._first = None

    def on_iteration(self, iteration: int, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        # Counted from the first report: the iterations before it hold the warming up of the machine,
        # and a resumed run must not count those of the run before.
        self._first = self._first or (iteration, now)
        done = iteration - self._first[0]
        left = (now - self._first[1]) / done * (self._total - iteration) if done else None
        width = len(str(self._total))
        parts = [f"{iteration:>{width}}/{self._total}"]
        parts += [f"{name} {_short(value)}" for name, value in scalars.items()]
        if left is not None:
            parts.append(f"{_duration(left)} left")
        self._print("  ".join(parts))

    def on_validation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._print(f"validation at {iteration}, in %:")
        by_row: dict[tuple[str, str], list[str]] = {}
        for name, value in metrics.items():
            model, score, *of_class = name.split("/", 2)
            by_row.setdefault((model, of_class[0] if of_class else "mean"), []).append(f"{score} {100 * value:.1f}")
        for (model, row), scores in by_row.items():
            self._print(f"  {model}  {row}: " + "  ".join(scores))

    def on_checkpoint(self, path: Path) -> None:
        self._print(f"saved {path}")

    def on_message(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class TensorBoardScalars:
    """Losses, learning rate and scores as curves for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = None

    def on_start(self, total_iterations: int) -> None:
        # TensorBoard's import takes a second that a refused run should not cost.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder))

    def on_iteration(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._write(iteration, scalars)

    def on_validation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._write(iteration, {f"validation/{name}": value for name, value in metrics.items()})

    def on_checkpoint(self, path: Path) -> None:
        pass

    def on_message(self, text: str) -> None:
        pass

    def _write(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
