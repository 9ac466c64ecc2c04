"""How a run stands: the one thing that the page, the terminal and TensorBoard read, and the changes that make it up.

The engine writes changes into a `TrainingState`. Where it runs in a process of its own, the changes travel as lines of
JSON (`encode`, `decode`) and are applied to a second `TrainingState` in the process that shows them. A run ends with a
`RunResult`, or with a `TrainingError`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

Phase = Literal["preparing", "training", "validating", "saving", "finished", "stopped", "failed"]
ENDED: tuple[Phase, ...] = ("finished", "stopped", "failed")
"""Phases after which nothing comes any more."""
MESSAGES_KEPT = 200


@dataclass(frozen=True)
class Preview:
    """Pictures of one photo at a validation, all of the photo's size or all shrunk alike."""

    kind: Literal["validation", "target"]
    """Where the photo comes from."""
    name: str
    """The photo's file name."""
    pictures: Mapping[str, str]
    """Paths of picture files on this machine. Of a validation photo: `photo`, `truth`, `prediction`; of a target
    photo: `photo`, `pseudo_label`, `confidence`."""


@dataclass(frozen=True)
class PhaseChanged:
    """Another part of the run has begun."""

    phase: Phase


@dataclass(frozen=True)
class Downloading:
    """A file that the run needs is on its way."""

    name: str
    received: int
    """Bytes that have come."""
    size: int | None
    """Bytes of the whole file; None if its server does not say."""


@dataclass(frozen=True)
class Started:
    """Preparation is over."""

    iteration: int
    """Iterations done before: above 0 when a run is resumed."""
    total_iterations: int
    """Iterations of the whole run."""


@dataclass(frozen=True)
class Progressed:
    """Iterations were done; said as often as the settings' `log_interval` asks."""

    iteration: int
    """Iterations done, counted from 1."""
    scalars: Mapping[str, float]
    """Means since the last change of this kind, such as `loss/source`, `pseudo_label/confident_share` and `lr`."""
    seconds_left: float | None
    """Until all iterations are done, validations included; None while nothing can be said."""
    seconds_per_iteration: float | None = None
    """Of the last reports, as this machine took them; None while nothing can be said."""


@dataclass(frozen=True)
class Timed:
    """The first iterations of a process tell what the rest takes, before anything else can be said of them."""

    iteration: int
    """Iterations done."""
    seconds_left: float
    seconds_per_iteration: float


@dataclass(frozen=True)
class StepsSkipped:
    """Iterations changed nothing, because a loss or a gradient was no finite number; said as often as `Progressed`."""

    iteration: int
    """Iterations done, these included."""
    total: int
    """Iterations of the whole run that were skipped so far."""


@dataclass(frozen=True)
class Validated:
    """Student and teacher were measured."""

    iteration: int
    metrics: Mapping[str, float]
    """Scores from 0 to 1, named `student/mIoU`, `teacher/IoU/crack` and so on."""
    previews: tuple[Preview, ...] = ()


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint was written, or written anew."""

    path: str
    iteration: int
    is_best: bool


@dataclass(frozen=True)
class Said:
    """Something a person would want to read."""

    text: str


@dataclass(frozen=True)
class Failed:
    """The run cannot go on."""

    reason: str
    """Cause and remedy, for a person."""
    kind: str = "TrainingError"
    """Class of the error, by which another process can raise the same."""


@dataclass(frozen=True)
class Finished:
    """The run came to its end, or was stopped and has saved."""

    stopped: bool
    """Whether it was stopped before all iterations were done."""
    iteration: int
    """Iterations done."""
    best: str
    """Path of the best checkpoint."""
    checkpoints: tuple[str, ...]
    """Paths of all checkpoints."""
    metrics: Mapping[str, float]
    """Scores from 0 to 1 of the best measurement, named as in `Validated`; empty if nothing was measured."""


Change = (
    PhaseChanged
    | Downloading
    | Started
    | Progressed
    | Timed
    | StepsSkipped
    | Validated
    | CheckpointWritten
    | Said
    | Failed
    | Finished
)
Reader = Callable[["TrainingState", Change], None]

_KINDS = {kind.__name__: kind for kind in get_args(Change)}


@dataclass
class TrainingState:
    """All that can be known of a run while it goes and afterwards."""

    phase: Phase = "preparing"
    downloading: Downloading | None = None
    """What is on its way while the run is prepared."""
    iteration: int = 0
    """Iterations done."""
    total_iterations: int = 0
    """Iterations of the whole run; 0 while it is prepared."""
    seconds_left: float | None = None
    """Until all iterations are done; None while nothing can be said."""
    seconds_per_iteration: float | None = None
    """As this machine takes them; None while nothing can be said."""
    skipped: int = 0
    """Iterations that changed nothing, because a loss or a gradient was no finite number."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Points (iteration, value) by name, of losses, learning rate and shares of pseudo-labels."""
    validations: list[Validated] = field(default_factory=list)
    """All measurements of this process, oldest first."""
    checkpoints: list[CheckpointWritten] = field(default_factory=list)
    """The last write of each checkpoint file."""
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=MESSAGES_KEPT))
    """The last sentences for a person."""
    failure: str | None = None
    """Why the run failed and what to do."""
    result: Finished | None = None
    """What the run left behind."""
    _readers: list[Reader] = field(default_factory=list, repr=False)

    def subscribe(self, reader: Reader) -> None:
        """Call `reader(state, change)` after every change, in the thread that applies it."""
        self._readers.append(reader)

    def apply(self, change: Change) -> None:
        """Take a change in, then tell the readers."""
        match change:
            case PhaseChanged(phase):
                self.phase, self.downloading = phase, None
            case Downloading(_, received, size):
                self.downloading = None if received == size else change
            case Started(iteration, total_iterations):
                self.iteration, self.total_iterations = iteration, total_iterations
            case Progressed(iteration, scalars, seconds_left, pace):
                self.iteration, self.seconds_left, self.seconds_per_iteration = iteration, seconds_left, pace
                for name, value in scalars.items():
                    self.curves.setdefault(name, []).append((iteration, value))
            case Timed(iteration, seconds_left, pace):
                self.iteration, self.seconds_left, self.seconds_per_iteration = iteration, seconds_left, pace
            case StepsSkipped(_, total):
                self.skipped = total
            case Validated():
                self.validations.append(change)
            case CheckpointWritten(path):
                self.checkpoints = [written for written in self.checkpoints if written.path != path] + [change]
            case Said(text):
                self.messages.append(text)
            case Failed(reason):
                self.failure, self.phase = reason, "failed"
            case Finished(stopped):
                self.result, self.phase = change, "stopped" if stopped else "finished"
        for reader in self._readers:
            reader(self, change)


def encode(change: Change) -> str:
    """One line of JSON without a line break."""
    return json.dumps({"change": type(change).__name__, **asdict(change)})


def decode(line: str) -> Change:
    """The inverse of `encode`.

    Raises:
        ValueError: the line is no change.
    """
    try:
        content: dict[str, Any] = json.loads(line)
        kind = _KINDS[content.pop("change")]
        if kind is Validated:
            content["previews"] = tuple(Preview(**preview) for preview in content["previews"])
        if kind is Finished:
            content["checkpoints"] = tuple(content["checkpoints"])
        return kind(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Not a change of a training state: {line[:200]!r}.") from error


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
