"""Readers of a run's state without a page: a terminal's lines, curves for TensorBoard, changes for another process.

People are shown a choice of the scores, on the page, in the terminal and in the experiment; files and TensorBoard hold
all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from common.data.images import ImageError, read_image
from train.run.state import (
    Change,
    CheckpointWritten,
    Downloading,
    Preview,
    Progressed,
    Said,
    Started,
    StepsSkipped,
    Timed,
    TrainingState,
    Validated,
    encode,
)
from train.stopping import tell

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = (
    "iou",
    "f1",
    "precision",
    "recall",
    "f1_2px",
    "boundary_f1_2px",
    "cldice",
    "ods",
    "best_iou",
    "best_f1_2px",
    "best_precision",
    "best_recall",
    "best_threshold",
)
"""Scores of a class that are shown."""
THIN = {
    "mF1_2px": "F1 within 2 px",
    "mBoundaryF1_2px": "boundary F1 within 2 px",
    "mclDice": "clDice",
    "mODS": "F1 at the best threshold",
}
"""Means that say more of thin objects than mIoU does, with the names of their curves."""


class ProgressLines:
    """One readable line for each report.

    Args:
        stream: where they go; None: the standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, state: TrainingState, change: Change) -> None:
        """Print what a change says to a person."""
        match change:
            case Progressed():
                self._print(_progress_line(change, state.total_iterations))
            case Timed(iteration, seconds_left, pace):
                self._print(f"{iteration}/{state.total_iterations}  {pace_and_rest(pace, seconds_left)}")
            case StepsSkipped(iteration, total):
                self._print(f"{skipped(total)}, up to iteration {iteration}")
            case Downloading(name, received, size):
                self._print(f"downloading {name}: {megabytes(received, size)}")
            case Validated(iteration, metrics):
                self._print(f"validation at {iteration}, in %:")
                for row, scores in _score_rows(metrics).items():
                    self._print(f"  {row}: " + "  ".join(scores))
            case CheckpointWritten(path):
                self._print(f"saved {path}")
            case Said(text):
                self._print(text)

    def _print(self, text: str) -> None:
        tell(text, self._stream)


class TensorBoardScalars:
    """Losses, learning rate and scores as curves for `tensorboard --logdir`.

    Args:
        folder: where the curves are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = None

    def __call__(self, state: TrainingState, change: Change) -> None:
        """Add a change's points to the curves."""
        match change:
            case Started(iteration):
                self._open(iteration)
            case Progressed(iteration, scalars):
                self._write(iteration, scalars)
            case StepsSkipped(iteration, total):
                self._write(iteration, {"skipped": total})
            case Validated(iteration, metrics, previews):
                self._write(iteration, {f"validation/{name}": value for name, value in metrics.items()})
                self._draw(iteration, previews)

    def _open(self, done: int) -> None:
        # TensorBoard's import takes a second that a refused run should not cost.
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run has drawn beyond the iteration that it goes on from is drawn anew.
        self._writer = SummaryWriter(str(self._folder), purge_step=done + 1 if done else None)

    def _write(self, iteration: int, values: Mapping[str, float]) -> None:
        with self._writing(iteration) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, iteration)

    def _draw(self, iteration: int, previews: Sequence[Preview]) -> None:
        """Add the pictures of a validation, those of one photo side by side."""
        with self._writing(iteration) as writer:
            for number, preview in enumerate(previews):
                pictures = [read_image(Path(path)) for path in preview.pictures.values()]
                writer.add_image(
                    f"{preview.kind}/{number} {', '.join(preview.pictures)}",
                    np.concatenate(pictures, axis=1),
                    iteration,
                    dataformats="HWC",
                )

    @contextmanager
    def _writing(self, iteration: int) -> Iterator[SummaryWriter]:
        try:
            if self._writer is None:
                self._open(iteration - 1)
            yield self._writer
            self._writer.flush()
        except (OSError, ImageError):
            # On a full disk the curves get a gap, and the training goes on; a writer that has failed stays failed.
            self._writer = None


class ChangeLines:
    """Every change as a line of JSON, for the process at the other end of a pipe.

    Args:
        stream: the pipe.
        on_broken: called when nobody reads the pipe any more; what comes later is dropped.
    """

    def __init__(self, stream: TextIO, on_broken: Callable[[], None]) -> None:
        self._stream, self._on_broken = stream, on_broken

    def __call__(self, state: TrainingState, change: Change) -> None:
        """Pass a change on."""
        if not tell(encode(change), self._stream):
            self._on_broken()


def _progress_line(progressed: Progressed, total: int) -> str:
    parts = [f"{progressed.iteration:>{len(str(total))}}/{total}"]
    # The shares of the single classes are for curves: there may be dozens.
    parts += [
        f"{name} {_short(value)}"
        for name, value in progressed.scalars.items()
        if not name.startswith("pseudo_label/share/")
    ]
    parts += filter(None, [pace_and_rest(progressed.seconds_per_iteration, progressed.seconds_left)])
    return "  ".join(parts)


def _score_rows(metrics: Mapping[str, float]) -> dict[str, list[str]]:
    """The scores that are shown, in percent, by model and class."""
    rows: dict[str, list[str]] = {}
    for name, value in metrics.items():
        model, score, *of_class = name.split("/", 2)
        if of_class and score not in SHOWN:
            continue
        row = f"{model}  {of_class[0] if of_class else 'mean'}"
        rows.setdefault(row, []).append(f"{score} {100 * value:.1f}")
    return rows


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means and the scores of classes that are shown, of scores named `mIoU`, `iou/crack` and so on."""
    return {name: value for name, value in metrics.items() if "/" not in name or name.partition("/")[0] in SHOWN}


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


def skipped(count: int) -> str:
    """How many iterations were skipped, and why."""
    iterations = "1 iteration was" if count == 1 else f"{count} iterations were"
    return f"{iterations} skipped because a loss or gradient was no finite number"


def megabytes(received: int, size: int | None) -> str:
    """How much of a file has come: 12 of 328 MB."""
    return f"{received / 1e6:.0f} MB" if size is None else f"{received / 1e6:.0f} of {size / 1e6:.0f} MB"


def pace_and_rest(seconds_per_iteration: float | None, seconds_left: float | None) -> str:
    """What an iteration and what the rest of a run takes: '3.2 s an iteration, 12:30 left'; empty if unknown."""
    pace = [] if seconds_per_iteration is None else [f"{_seconds(seconds_per_iteration)} s an iteration"]
    return ", ".join([*pace, *([] if seconds_left is None else [f"{duration(seconds_left)} left"])])


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time span as a person reads it: 0:05, 12:30, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
