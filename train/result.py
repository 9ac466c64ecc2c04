"""How a run ends: with what it left behind, or with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from train.run.state import Finished


class TrainingError(RuntimeError):
    """Training cannot go on. The message says why and what to do."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    checkpoints: list[Path]
    """The files written: the best one, if anything was measured, and the last one."""
    best: Path
    """The checkpoint with the best score of student and teacher; the last one if nothing was measured."""
    metrics: dict[str, float]
    """Scores from 0 to 1 at the best measurement, named `student/…` and `teacher/…`."""
    iteration: int
    """Iterations done; fewer than the settings say when the run was stopped."""

    @classmethod
    def from_change(cls, finished: Finished) -> Self:
        """The result that a run's last change describes."""
        checkpoints = [Path(path) for path in finished.checkpoints]
        return cls(checkpoints, Path(finished.best), dict(finished.metrics), finished.iteration)
