"""The folder of a run: its settings, its checkpoints, and what it needs to go on."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch

from common.hrda import CheckpointBundle, SettingsError, save_checkpoint
from common.hrda.files import WriteError, remove_halves, replacing
from common.hrda.metadata import NetworkMetadata, WeightsOrigin
from common.hrda.settings import SHAPING
from common.hrda.tensor_files import read_tensors
from train.run.learner import Learner
from train.run.lock import locked
from train.run.progress import RunProgress
from train.run.validation import Measurement
from train.settings.training import TrainSettings

_DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
)


@dataclass(frozen=True)
class RunState:
    """All that a run needs to go on as if it had never stopped. Random numbers are not part of it:
    those of an iteration follow from the seed and the iteration's number."""

    iteration: int
    """Iterations done."""
    classes: tuple[str, ...]
    """Names by index."""
    model: Mapping[str, Any]
    """Settings of the model, as plain data."""
    weights_origin: WeightsOrigin | None
    """Where the weights came from that the encoder started from; None in a run of an earlier version."""
    student: Mapping[str, Any]
    """State dict of the student."""
    teacher: Mapping[str, Any]
    """State dict of the teacher."""
    learner: Mapping[str, Any]
    """What else learning depends on, as `Learner.extra_state` gives it."""
    progress: Mapping[str, Any]
    """What the run has gathered, as `RunProgress.to_plain` gives it."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The state in a file; an error of `_DAMAGED` if it is damaged, or a `CheckpointError` if it cannot be read."""
        content = read_tensors(path, "a state of a run")
        return cls(
            iteration=content["iteration"],
            classes=tuple(content["classes"]),
            model=content["settings"]["model"],
            weights_origin=NetworkMetadata.read(content).weights_origin,
            student=content["state_dict"],
            teacher=content["teacher_state_dict"],
            **content["resume"],
        )

    def require_settings(self, settings: TrainSettings) -> None:
        """Make sure that there is something left to do, with a network of the same shape.

        Raises:
            SettingsError: there is not, or a setting that shapes the network differs.
        """
        wanted = settings.model.to_dict()
        for name in SHAPING:
            if self.model.get(name, wanted[name]) != wanted[name]:
                raise SettingsError(
                    "A run is resumed with the settings of the model it was started with: "
                    f"model.{name} {self.model[name]}. Received: {wanted[name]}."
                )
        if self.iteration >= settings.iterations:
            raise SettingsError(f"The run is complete after {self.iteration} iterations. Raise iterations to go on.")

    def require_classes(self, classes: tuple[str, ...]) -> None:
        """Make sure that the same classes are told apart.

        Raises:
            SettingsError: they differ.
        """
        if classes != self.classes:
            raise SettingsError(
                f"A run is resumed with the classes it was started with: {', '.join(self.classes[1:])}. "
                f"Received: {', '.join(classes[1:])}."
            )

    def restore(self, learner: Learner, progress: RunProgress) -> None:
        """Put the state into these.

        Raises:
            SettingsError: the models have other parts than what was saved.
        """
        try:
            learner.student.load_state_dict(self.student)
            learner.teacher.load_state_dict(self.teacher)
        except RuntimeError as error:
            raise SettingsError(
                f"The networks saved at iteration {self.iteration} have other parts than those of this version of the "
                "app. Resume with the version that the run was started with, or start another from its last.pth."
            ) from error
        learner.load_extra_state(self.learner)
        if self.weights_origin is not None:
            learner.weights_origin = self.weights_origin
        progress.restore(self.iteration, self.progress, learner.device)


@dataclass(frozen=True)
class Resumable:
    """What a person is told of a run that can go on."""

    iteration: int
    """Iterations done; as many as `total_iterations` once the run is complete."""
    total_iterations: int
    """Iterations of the whole run, as its settings said."""
    classes: tuple[str, ...]
    """Names of the trained classes, without the background."""
    encoder: str
    mode: str


def resumable(out: Path) -> Resumable | None:
    """The run in the folder `out` that a request with `resume` would go on with; None if there is none, or one that has
    learnt nothing yet.

    Reads a few bytes and no weights.
    """
    folder = RunFolder(out)
    iteration = folder.latest
    if not iteration:
        return None
    try:
        content = json.loads(folder.facts.read_text(encoding="utf-8"))
        return Resumable(iteration=iteration, **content | {"classes": tuple(content["classes"])})
    except (OSError, ValueError, TypeError, KeyError):
        # Without these facts there is no telling; the run itself can still be resumed by its folder.
        return None


def with_origin(settings: TrainSettings, origin: WeightsOrigin) -> str:
    """The settings as YAML, below a comment that says where the encoder's weights come from."""
    said = " ".join(f"encoder's weights: {origin.source}; licence: {origin.licence}".split())
    return f"# {said}\n{settings.to_yaml()}"


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
        # Beside the checkpoints and not among them, which are handed on: what else is in these only this run needs.
        self.states = self.out / "resume"
        self.facts = self.out / "resume.json"
        self.domains_file = self.out / "domains.json"
        self.scores = self.out / "scores.json"
        """Counts of every validation photo at the best measurement."""
        self.errors = self.out / "errors"
        """Pictures of the photos with the most errors."""
        self.card = self.out / "README.md"
        """What the model is, for whoever gets it."""
        self.control = self.out / "without_target"
        """The run without target photos that this one is compared with."""
        self.lock = self.out / "run.lock"

    @property
    def kept(self) -> dict[int, Path]:
        """Files of the states to go on from by iterations done, newest first. Whatever has its name is whole."""
        found = {}
        for path in self.states.glob("iteration_*.pth"):
            number = re.fullmatch(r"iteration_(\d+)", path.stem)
            if number:
                found[int(number[1])] = path
        return dict(sorted(found.items(), reverse=True))

    @property
    def latest(self) -> int | None:
        """Iterations done in the newest state; None if there is none."""
        return next(iter(self.kept), None)

    @contextmanager
    def claimed(self, *, resume: bool, say: Callable[[str], None]) -> Iterator[RunState | None]:
        """Have the folder for this process while the block runs; it holds a run only where one is to go on.

        Args:
            resume: whether one is to go on.
            say: gets a sentence if its newest state is damaged and an older one takes its place, or if the disk has no
                locks.

        Yields:
            The state to go on from, when resuming.

        Raises:
            SettingsError: a run is there and `resume` is not set, none is there and it is, its files are damaged,
                another process has the folder, or it cannot be written to.
        """
        if resume and not self.kept:
            raise SettingsError(f"{self.out} holds no run to resume. Start it without resuming.")
        if not resume and ((self.out / "meta.json").exists() or (self.out / "img").is_dir()):
            raise SettingsError(f"{self.out} holds a project's photos. Choose another folder for the run.")
        try:
            for folder in (self.checkpoints, self.states):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"The run's folder {self.out} cannot be made: {error.strerror}.") from error
        with locked(self.lock, say):
            # A run that has learnt nothing is not worth keeping.
            if not resume and (self.latest or any(self.checkpoints.glob("*.pth"))):
                raise SettingsError(
                    f"{self.out} already holds a run. Resume it, or choose another folder for the new one."
                )
            self._remove_halves()
            yield self._read_state(say) if resume else None

    def remove(self) -> None:
        """Remove the folder with all that is in it.

        Raises:
            SettingsError: a process still has it, such as one that saves because who watched it has ended.
        """
        if self.out.is_dir():
            with locked(self.lock, lambda text: None):
                shutil.rmtree(self.out, ignore_errors=True)

    def domains(self) -> dict[str, str]:
        """Where the run's photos lie, as of `Domains.absolute`; empty where it does not say."""
        try:
            content = json.loads(self.domains_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        items = content.items() if isinstance(content, dict) else ()
        return {name: spec for name, spec in items if isinstance(spec, str)}

    def write_settings(
        self,
        settings: TrainSettings,
        classes: tuple[str, ...],
        origin: WeightsOrigin,
        domains: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Keep the settings, complete and readable, and what a person is told when the run can go on.

        Args:
            settings: of the run.
            classes: names by index.
            origin: where the encoder's weights come from, said in a comment above the settings.
            domains: where its photos lie.

        Raises:
            WriteError: the disk is full or not writable.
        """
        facts = {
            "total_iterations": settings.iterations,
            "classes": classes[1:],
            "encoder": settings.model.encoder,
            "mode": settings.mode,
        }
        texts = {
            self.settings: with_origin(settings, origin),
            self.facts: json.dumps(facts),
            self.domains_file: json.dumps(dict(domains)),
        }
        for path, text in texts.items():
            with replacing(path) as file:
                file.write(text.encode())

    def save_best(self, bundle: CheckpointBundle, keep: int) -> None:
        """Write the best checkpoint, as `save_state`."""
        self._write(self.best, bundle, None, keep)

    def save_last(self, bundle: CheckpointBundle, keep: int) -> None:
        """Write the last checkpoint, as `save_state`."""
        self._write(self.last, bundle, None, keep)

    def save_state(self, bundle: CheckpointBundle, resume: Mapping[str, Any], keep: int) -> None:
        """Write what resuming needs, then forget all but the last states.

        Args:
            bundle: student, teacher and what describes them.
            resume: `learner` and `progress` of a `RunState`.
            keep: number of states that stay.

        Raises:
            WriteError: the disk is full or not writable; what was there before is untouched.
        """
        self._write(self.states / f"iteration_{bundle.iteration:06d}.pth", bundle, resume, keep)
        # Later ones are of a course that was left, such as one with a damaged file: going on starts from this one.
        for iteration, path in self.kept.items():
            if iteration > bundle.iteration:
                path.unlink()
        self._forget(keep)

    def best_measurement(self) -> Measurement | None:
        """What the best checkpoint says of itself; None if there is none or it cannot be read."""
        if not self.best.is_file():
            return None
        try:
            # Weights are not read: a mapped file is read where it is looked at.
            content = torch.load(self.best, map_location="cpu", weights_only=True, mmap=True)
            return Measurement(
                content["iteration"], content["score"], content["serve_teacher"], dict(content["metrics"])
            )
        except _DAMAGED:
            return None

    def _write(self, path: Path, bundle: CheckpointBundle, resume: Mapping[str, Any] | None, keep: int) -> None:
        try:
            save_checkpoint(path, bundle, resume)
        except WriteError as error:
            # The oldest state goes once the next one is written; where that is the room that is missing it goes
            # before. The newest stays in any case.
            if not error.is_disk_full or not self._forget(max(keep - 1, 1)):
                raise
            save_checkpoint(path, bundle, resume)

    def _forget(self, keep: int) -> bool:
        """Remove all but the newest states; whether there were any to remove."""
        old = list(self.kept.values())[keep:]
        for path in old:
            path.unlink(missing_ok=True)
        return bool(old)

    def _remove_halves(self) -> None:
        """Remove files that a killed run was still writing."""
        for path in (self.best, self.last, self.settings, self.facts, self.domains_file, self.states / "iteration_*"):
            remove_halves(path)

    def _read_state(self, say: Callable[[str], None]) -> RunState:
        for iteration, path in self.kept.items():
            try:
                state = RunState.read(path)
            except _DAMAGED as error:
                if isinstance(error.__cause__, OSError | MemoryError):
                    # It may be whole: from an older state the run would go on over it.
                    raise SettingsError(
                        f"{error} Look whether its disk is there and the file may be read. If it is lost, remove it: "
                        "the run then goes on from the state before."
                    ) from error
                say(f"{path} is damaged: the run cannot go on from iteration {iteration}.")
            else:
                return state
        raise SettingsError(
            f"All of {self.states} is damaged and the run cannot be resumed. Start another from {self.last.name} as "
            "initial weights."
        )
