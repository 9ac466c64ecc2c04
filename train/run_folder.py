"""The folder of a run: its settings, its checkpoints, and what it needs to go on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from common.hrda import CheckpointBundle, SettingsError, save_checkpoint
from common.hrda.checkpoints import write_atomically
from train.settings import TrainSettings
from train.validation import Measurement


@dataclass(frozen=True)
class RunState:
    """All that a run needs to go on as if it had never stopped. Random numbers are not part of it:
    those of an iteration follow from the seed and the iteration's number."""

    iteration: int
    """Iterations done."""
    classes: tuple[str, ...]
    """Names by index."""
    best: Measurement | None
    """The best measurement so far."""
    tensors: Mapping[str, Any]
    """State dicts of `student`, `teacher`, `optimizer` and `scheduler`."""

    @classmethod
    def capture(
        cls,
        iteration: int,
        classes: tuple[str, ...],
        best: Measurement | None,
        student: nn.Module,
        teacher: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
    ) -> Self:
        """The state of these at this moment; it shares their tensors."""
        parts = {"student": student, "teacher": teacher, "optimizer": optimizer, "scheduler": scheduler}
        return cls(iteration, classes, best, {name: part.state_dict() for name, part in parts.items()})

    def restore(self, student: nn.Module, teacher: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        """Put the state into these.

        Raises:
            SettingsError: they are of another shape than those that were saved.
        """
        try:
            student.load_state_dict(self.tensors["student"])
            teacher.load_state_dict(self.tensors["teacher"])
            optimizer.load_state_dict(self.tensors["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise SettingsError(
                "The run cannot be resumed with other settings of the model than it was started with: "
                f"{str(error).splitlines()[0]}"
            ) from error
        scheduler.load_state_dict(self.tensors["scheduler"])


class RunFolder:
    """Where the files of a run lie."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.checkpoints = self.out / "checkpoints"
        self.best = self.checkpoints / "best.pth"
        self.last = self.checkpoints / "last.pth"
        self.cache = self.out / "cache"
        self.settings = self.out / "settings.yaml"
        # Beside the checkpoints and not among them: it is of no use to anyone but this run.
        self._state = self.out / "resume.pth"

    def claim(self, *, resume: bool) -> RunState | None:
        """Make sure that the folder can be written and holds a run only where one is to go on.

        Returns:
            The state to go on from, when resuming.

        Raises:
            SettingsError: a run is there and `resume` is not set, none is there and it is, or its file is damaged.
        """
        if resume:
            return self._read_state()
        if self._state.exists() or any(self.checkpoints.glob("*.pth")):
            raise SettingsError(f"{self.out} already holds a run. Resume it, or choose another folder for the new one.")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"The run's folder {self.out} cannot be made: {error.strerror}.") from error
        return None

    def write_settings(self, settings: TrainSettings) -> None:
        """Keep the settings, complete and readable, beside the checkpoints."""
        self.settings.write_text(settings.to_yaml(), encoding="utf-8")

    def save_best(self, bundle: CheckpointBundle) -> None:
        """Write the best checkpoint."""
        save_checkpoint(self.best, bundle)

    def save_last(self, bundle: CheckpointBundle, state: RunState) -> None:
        """Write the last checkpoint and what resuming needs."""
        save_checkpoint(self.last, bundle)
        best = state.best
        write_atomically(
            self._state,
            {
                "iteration": state.iteration,
                "classes": list(state.classes),
                "best": best
                and {
                    "iteration": best.iteration,
                    "score": best.score,
                    "metrics": best.metrics,
                    "teacher_is_better": best.teacher_is_better,
                },
                **state.tensors,
            },
        )

    def _read_state(self) -> RunState:
        if not self._state.is_file():
            raise SettingsError(
                f"{self.out} holds no run to resume: {self._state.name} is missing. Start it without resuming."
            )
        try:
            content = torch.load(self._state, map_location="cpu", weights_only=True)
            best = content["best"]
            return RunState(
                iteration=content["iteration"],
                classes=tuple(content["classes"]),
                best=Measurement(**best) if best else None,
                tensors={name: content[name] for name in ("student", "teacher", "optimizer", "scheduler")},
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self._state} is damaged and the run cannot be resumed. Start another from {self.last.name} "
                "as initial weights."
            ) from error
