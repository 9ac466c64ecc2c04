"""Writing a run's checkpoints, and what is said when the disk does not take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.hrda import CheckpointBundle
from common.hrda.files import WriteError
from common.hrda.metadata import WeightsOrigin
from train.run.folder import RunFolder
from train.run.learner import Learner
from train.run.preparation import PreparedData
from train.run.progress import RunProgress
from train.run.scores import Scores
from train.run.state import CheckpointWritten, Said, TrainingError, TrainingState
from train.run.validation import Measurement
from train.settings.training import TrainSettings


class CheckpointWriter:
    """Writes a run as it goes.

    Args:
        folder: of the run.
        learner: whose weights are written.
        progress: of the run.
        settings: of the run.
        data: whose classes are told apart.
        state: is told of every checkpoint.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        progress: RunProgress,
        settings: TrainSettings,
        data: PreparedData,
        state: TrainingState,
    ) -> None:
        self._folder, self._learner, self._progress = folder, learner, progress
        self._settings, self._data, self._state = settings, data, state
        self._keep = settings.checkpoint.keep

    def begin(self, *, resumed: bool) -> None:
        """Write what the run is started with: it can be resumed from now on, and the disk is known to have room.

        Raises:
            TrainingError: it has none, or cannot be written to.
        """
        try:
            data = self._data
            self._folder.write_settings(self._settings, data.classes, self._learner.weights_origin, data.domains)
            if not resumed:
                self._save_state()
        except WriteError as error:
            raise TrainingError(
                f"{error} The run was not begun, as it could not be saved: {error.remedy} first."
            ) from error

    def save_best(self, measurement: Measurement) -> bool:
        """Write the best checkpoint; whether that worked. Why not is said."""
        try:
            self._folder.save_best(self._checkpoint(measurement), self._keep)
        except WriteError as error:
            self._say(f"{error} The best checkpoint stays the one before: {error.remedy}.")
            return False
        if measurement.photos is not None:
            try:
                Scores(measurement.iteration, measurement.photos).write(self._folder.scores)
            except WriteError as error:
                self._say(f"{error} The table of scores stays the one before: {error.remedy}.")
        self._tell(self._folder.best, is_best=True)
        return True

    def save(self) -> None:
        """Write the last checkpoint and what resuming needs; where that does not work, say so and what is left."""
        try:
            self._save_last()
            self._save_state()
        except WriteError as error:
            self._say(
                f"{error} {self.what_is_left()} The training goes on and the next checkpoint is tried as usual: "
                f"{error.remedy}."
            )

    def finish(self) -> None:
        """As `save`, at the end.

        Raises:
            TrainingError: the last checkpoint could not be written.
        """
        try:
            self._save_last()
        except WriteError as error:
            raise TrainingError(f"{error} {self.what_is_left()} {error.remedy.capitalize()} and continue.") from error
        try:
            self._save_state()
        except WriteError as error:
            self._say(f"{error} The checkpoints are complete, but the run could only be continued from an earlier one.")

    def what_is_left(self) -> str:
        """A sentence on where the run can be continued."""
        latest = self._folder.latest
        if not latest:
            return "No checkpoint was written before: start again."
        return f"The checkpoint of iteration {latest} is intact: the run can be continued from there."

    def _save_last(self) -> None:
        self._folder.save_last(self._checkpoint(self._progress.latest), self._keep)
        self._tell(self._folder.last, is_best=False)

    def _save_state(self) -> None:
        resume = {"learner": self._learner.extra_state(), "progress": self._progress.to_plain()}
        self._folder.save_state(self._checkpoint(self._progress.latest), resume, self._keep)

    def _checkpoint(self, measurement: Measurement | None) -> CheckpointBundle:
        return CheckpointBundle(
            student=self._learner.student,
            teacher=self._learner.teacher,
            serve_teacher=measurement is not None and measurement.teacher_is_better,
            classes=self._data.classes,
            palette=self._data.palette,
            settings=plain_settings(
                self._settings, student_classes=len(self._data.classes), origin=self._learner.weights_origin
            ),
            metrics=dict(measurement.metrics) if measurement else {},
            score=measurement.score if measurement else None,
            iteration=self._progress.done,
        )

    def _tell(self, path: Path, *, is_best: bool) -> None:
        self._state.apply(CheckpointWritten(str(path), self._progress.done, is_best))

    def _say(self, text: str) -> None:
        self._state.apply(Said(text))


def plain_settings(settings: TrainSettings, student_classes: int, origin: WeightsOrigin) -> dict[str, Any]:
    """The settings as a checkpoint holds them: complete enough to rebuild the network and to predict, and with the
    source and licence of the weights that its encoder started from."""
    plain = settings.to_dict()
    plain["model"] = replace(settings.model, num_classes=student_classes).to_dict()
    match settings.data.scale.scale:
        case (short_edge, long_edge):
            plain["input"] = {"short_edge": short_edge, "long_edge": long_edge}
        case float(factor):
            plain["input"] = {"factor": factor}
    plain["encoder_weights"] = origin.to_dict()
    return plain
