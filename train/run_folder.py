"""The folder of a run: its settings, its checkpoints, and what it needs to go on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

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
    latest: Measurement | None
    """The last measurement so far."""
    student: Mapping[str, Any]
    """State dict of the student."""
    teacher: Mapping[str, Any]
    """State dict of the teacher."""
    optimizer: Mapping[int, Any]
    """The optimiser's averages by parameter; its rates follow from the settings and the iteration."""

    @classmethod
    def capture(
        cls,
        iteration: int,
        classes: tuple[str, ...],
        best: Measurement | None,
        latest: Measurement | None,
        student: nn.Module,
        teacher: nn.Module,
        optimizer: Optimizer,
    ) -> Self:
        """The state at this moment; it shares the tensors."""
        averages = optimizer.state_dict()["state"]
        return cls(iteration, classes, best, latest, student.state_dict(), teacher.state_dict(), averages)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`."""
        values = {f.name: content[f.name] for f in fields(cls)}
        for name in ("best", "latest"):
            values[name] = Measurement(**values[name]) if values[name] else None
        return cls(**values | {"classes": tuple(values["classes"])})

    def to_plain(self) -> dict[str, Any]:
        """The state as tensors and data that load without executing anything."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("best", "latest"):
            plain[name] = asdict(plain[name]) if plain[name] else None
        return plain | {"classes": list(self.classes)}

    def require_fit(self, classes: tuple[str, ...], iterations: int) -> None:
        """Make sure that there is something left to do, with the same classes.

        Raises:
            SettingsError: there is not, or the classes differ.
        """
        if classes != self.classes:
            raise SettingsError(
                f"A run is resumed with the classes it was started with: {', '.join(self.classes[1:])}. "
                f"Received: {', '.join(classes[1:])}."
            )
        if self.iteration >= iterations:
            raise SettingsError(f"The run is complete after {self.iteration} iterations. Raise iterations to go on.")

    def restore(self, student: nn.Module, teacher: nn.Module, optimizer: Optimizer) -> None:
        """Put the state into these.

        Raises:
            SettingsError: the models are not of the shape that was saved.
        """
        try:
            student.load_state_dict(self.student)
            teacher.load_state_dict(self.teacher)
        except RuntimeError as error:
            raise SettingsError(
                "A run is resumed with the settings of the model it was started with: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.optimizer, "param_groups": groups})


@dataclass(frozen=True)
class Resumable:
    """A run that can go on, as far as choosing to do so needs."""

    iteration: int
    """Iterations done; as many as `total_iterations` once the run is complete."""
    total_iterations: int
    """Iterations of the whole run, as its settings said."""
    classes: tuple[str, ...]
    """Names of the trained classes, without the background."""
    encoder: str
    mode: str


def resumable(out: Path) -> Resumable | None:
    """The run in the folder `out` that `run(…, resume=True)` would go on with; None if there is none.

    Reads a few bytes and no weights.
    """
    folder = RunFolder(out)
    if not folder.state.is_file():
        return None
    try:
        content = json.loads(folder.summary.read_text(encoding="utf-8"))
        return Resumable(**content | {"classes": tuple(content["classes"])})
    except (OSError, ValueError, TypeError, KeyError):
        # Without its summary there is no telling; the run itself can still be resumed by its folder.
        return None


class RunFolder:
    """Where the files of a run lie."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.checkpoints = self.out / "checkpoints"
        self.best = self.checkpoints / "best.pth"
        self.last = self.checkpoints / "last.pth"
        self.cache = self.out / "cache"
        self.previews = self.out / "previews"
        self.settings = self.out / "settings.yaml"
        self.log = self.out / "training.log"
        """What a run in a process of its own says."""
        # Beside the checkpoints and not among them: they are of no use to anyone but this run.
        self.state = self.out / "resume.pth"
        self.summary = self.out / "resume.json"

    def claim(self, *, resume: bool) -> RunState | None:
        """Make sure that the folder can be written and holds a run only where one is to go on.

        Returns:
            The state to go on from, when resuming.

        Raises:
            SettingsError: a run is there and `resume` is not set, none is there and it is, or its file is damaged.
        """
        if resume:
            self._remove_halves()
            return self._read_state()
        if self.state.exists() or any(self.checkpoints.glob("*.pth")):
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

    def save_last(self, bundle: CheckpointBundle, state: RunState, settings: TrainSettings) -> None:
        """Write the last checkpoint and what resuming needs."""
        save_checkpoint(self.last, bundle)
        write_atomically(self.state, state.to_plain())
        summary = Resumable(
            state.iteration, settings.iterations, state.classes[1:], settings.model.encoder, settings.mode
        )
        written = self.summary.with_suffix(".json.part")
        written.write_text(json.dumps(asdict(summary)), encoding="utf-8")
        written.replace(self.summary)

    def _remove_halves(self) -> None:
        """Remove files that a killed run was still writing."""
        for path in (self.best, self.last, self.state):
            for half in path.parent.glob(f".{path.name}.*"):
                half.unlink(missing_ok=True)

    def _read_state(self) -> RunState:
        if not self.state.is_file():
            raise SettingsError(
                f"{self.out} holds no run to resume: {self.state.name} is missing. Start it without resuming."
            )
        try:
            return RunState.from_plain(torch.load(self.state, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.state} is damaged and the run cannot be resumed. Start another from {self.last.name} "
                "as initial weights."
            ) from error
