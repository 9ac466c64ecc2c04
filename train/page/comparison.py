"""What a finished training shows and leaves besides its checkpoints, and its comparison without target photos."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests
from supervisely import Api, logger

from common.data.project import ProjectError
from common.hrda import SettingsError
from common.hrda.files import WriteError
from train.page.result import ResultCard
from train.process import run_in_process
from train.run.card import renew_comparison
from train.run.comparison import control_of
from train.run.folder import RunFolder
from train.run.readers import pace_and_rest
from train.run.request import RunRequest
from train.run.scores import Scores, how_far, is_comparable, verdict
from train.run.state import (
    Change,
    PhaseChanged,
    Progressed,
    RunResult,
    Started,
    Timed,
    TrainingError,
    TrainingState,
    Validated,
)

LINGER_S = 15 * 60
"""How long the app goes on after the upload, for who is at its page."""


class Comparison:
    """A finished run: its scores on the page and beside its checkpoints, and the run without target photos.

    Args:
        api: of the instance.
        team_id: in whose files the experiment is.
        card: shows it.
        stop: ends the run without target photos.
        request: of the finished run.
        result: what it left behind.
        readable: takes folders of this machine out of a text.
        show_status: takes how the comparison stands, in a sentence and its kind, for the card of the start and for
            whoever asks from a script.
    """

    def __init__(
        self,
        api: Api,
        team_id: int,
        card: ResultCard,
        stop: threading.Event,
        request: RunRequest,
        result: RunResult,
        readable: Callable[[str], str],
        show_status: Callable[[str, str], None],
    ) -> None:
        self._api, self._team_id, self._card, self._stop = api, team_id, card, stop
        self._request, self._result, self._readable, self._show_status = request, result, readable, show_status
        self._folder = RunFolder(request.out)
        self._answered, self._is_wanted = threading.Event(), False

    @property
    def is_possible(self) -> bool:
        """Whether the run has come to its end and has target photos that can be left out."""
        return self._request.settings.mode == "uda" and self._result.iteration >= self._request.settings.iterations

    def show(self) -> None:
        """Show the scores, and what is known of the comparison."""
        scores = Scores.read(self._folder.scores)
        if scores is not None:
            control = Scores.read(RunFolder(self._folder.control).scores)
            ended = how_far(self._result.iteration, self._request.settings.iterations)
            self._card.show_scores(scores, control, ended, self._folder.errors, f"{time.time():.0f}")
            if control is not None and is_comparable(scores, control):
                self._say(verdict(scores, control))

    def hand_over(self, experiment: Path) -> None:
        """Put model card, scores and pictures into the folder that is uploaded; without them the upload goes on."""
        try:
            if self._folder.scores.is_file():
                shutil.copy(self._folder.scores, experiment)
            if self._folder.errors.is_dir():
                shutil.copytree(self._folder.errors, experiment / self._folder.errors.name, dirs_exist_ok=True)
            if self._folder.card.is_file():
                text = self._readable(self._folder.card.read_text(encoding="utf-8"))
                (experiment / self._folder.card.name).write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning(f"The model card is not in the experiment: {error}")

    def answer(self, *, wanted: bool) -> None:
        """Whoever is at the page wants the comparison, or wants the app to end."""
        self._is_wanted = wanted
        self._answered.set()

    def linger(self, remote_dir: str | None, *, at_once: bool, somebody_watches: bool) -> None:
        """Compare when asked, and return when there is nothing more to wait for.

        Args:
            remote_dir: of the experiment in Team Files, whose model card gets the verdict.
            at_once: it was asked for before the training.
            somebody_watches: who is at the page may ask for it, and read the verdict there.
        """
        if not self.is_possible:
            if at_once:
                self._card.say_of_comparison("The comparison is left out, as the run was stopped.", "warning")
            return
        if at_once:
            self.answer(wanted=True)
        elif not somebody_watches:
            return
        else:
            minutes = LINGER_S // 60
            self._card.say_of_comparison(f"Not known yet. The app ends by itself in {minutes} minutes.")
            self._card.offer_comparison(may_begin=True, may_end=True)
        if self._answered.wait(LINGER_S) and self._is_wanted:
            self._answered.clear()
            self._card.offer_comparison(may_begin=False, may_end=False)
            self._compare(remote_dir)
            if not somebody_watches:
                return
            self._card.offer_comparison(may_begin=False, may_end=True)
            # The verdict is to be read here too, and not only on the model card.
            self._answered.wait(LINGER_S)
        self._card.offer_comparison(may_begin=False, may_end=False)

    def _compare(self, remote_dir: str | None) -> None:
        self._stop.clear()
        state = TrainingState()
        state.subscribe(self._tell)
        try:
            result = run_in_process(control_of(self._request), state=state, stop=self._stop)
            if result.iteration < self._request.settings.iterations:
                self._say("The comparison was stopped.", "warning")
                return
            renew_comparison(self._folder.card)
            self.show()
            self._upload(remote_dir)
        except (SettingsError, ProjectError, TrainingError, WriteError) as error:
            self._say(f"There is no comparison. {self._readable(str(error))}", "warning")

    def _say(self, sentence: str, kind: str = "info") -> None:
        self._card.say_of_comparison(sentence, kind)
        self._show_status(sentence, kind)

    def _tell(self, state: TrainingState, change: Change) -> None:
        if isinstance(change, PhaseChanged | Started | Timed | Progressed | Validated) and state.result is None:
            place = (
                f"iteration {state.iteration} of {state.total_iterations}" if state.total_iterations else "preparing"
            )
            left = pace_and_rest(state.seconds_per_iteration, state.seconds_left)
            self._say(f"Training without target photos: {place}{f', {left}' if left else ''}.")

    def _upload(self, remote_dir: str | None) -> None:
        if remote_dir is None:
            return
        card = self._folder.card.with_name("uploaded_card.md")
        remote = f"{remote_dir.rstrip('/')}/{self._folder.card.name}"
        try:
            card.write_text(self._readable(self._folder.card.read_text(encoding="utf-8")), encoding="utf-8")
            if self._api.file.exists(self._team_id, remote):
                self._api.file.remove(self._team_id, remote)
            self._api.file.upload(self._team_id, str(card), remote)
        except (requests.RequestException, OSError) as error:
            logger.warning(f"The model card in Team Files does not have the comparison: {error!r}")
