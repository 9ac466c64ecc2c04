"""What a training can start from besides random weights: an experiment, or a checkpoint of the former HRDA app."""

from __future__ import annotations

from typing import Any

import requests
from supervisely import Api
from supervisely.app.widgets import Container, Field, RadioTabs, Select, Text
from supervisely.nn.experiments import ExperimentInfo, get_experiment_infos
from supervisely.nn.task_type import TaskType

from common.hrda.catalogue import FORMER_APP_WEIGHTS
from train.instance.former_checkpoints import FOLDER, FormerCheckpoint, find_former_checkpoint, find_former_checkpoints
from train.page.live import BackgroundButton
from train.sdk.experiments import RenewableExperimentSelector

EXPERIMENTS = "Experiments"
FORMER = "Former HRDA app"
_KEPT = (
    "Encoder and decoder are built as in the checkpoint and keep its weights. The decoder's last layer has a row for "
    "each class: rows of classes with the same name are kept, those of new classes start at random. "
    "Iterations count from 0."
)
_LICENCE = f"The former app started from {FORMER_APP_WEIGHTS}: that holds for what is trained from its checkpoints."


class StartWeightsSelector(RenewableExperimentSelector):
    """The tab of custom models. What is chosen on either of its tabs is given out as an experiment, as the SDK asks.

    Args:
        api: of the instance.
        team_id: whose experiments and files are offered.
        experiment_infos: experiments to begin with.
        framework: under which experiments are filed.
    """

    def __init__(self, api: Api, team_id: int, experiment_infos: list[ExperimentInfo], *, framework: str) -> None:
        super().__init__(api, team_id, experiment_infos, widget_id="experiments")
        self._framework = framework
        self._former: dict[str, FormerCheckpoint] = {}
        self.former_select = Select([], filterable=True, placeholder="No checkpoint", widget_id="former_checkpoint")
        self.former_text = Text("", widget_id="former_text")
        self.refresh_button = BackgroundButton("Look for new ones", plain=True, widget_id="models_refresh")
        self.refresh_text = Text("", widget_id="models_refresh_text")
        self.refresh_text.hide()
        former = Field(self.former_select, "Checkpoint", f"Files {FOLDER}/…/*.pth of Team Files, newest first")
        self.tabs = RadioTabs(
            [EXPERIMENTS, FORMER],
            [self, Container([former, self.former_text])],
            ["Trained by this app", "Checkpoints that the former app left in Team Files"],
            widget_id="custom_tabs",
        )
        kept = Text(_KEPT, "info", widget_id="weights_kept")
        self.content = Container([self.tabs, self.refresh_button, self.refresh_text, kept])
        self.refresh_button.click(self.refresh)
        try:
            self._offer(find_former_checkpoints(api, team_id))
        except requests.RequestException as error:
            self._say(f"The checkpoints of the former app could not be listed: {error}", "warning")

    @property
    def former(self) -> FormerCheckpoint | None:
        """The chosen checkpoint of the former app; None if an experiment is to be chosen."""
        if self.tabs.get_active_tab() != FORMER:
            return None
        return self._former.get(self.former_select.get_value())

    def require_former(self, path: Any) -> FormerCheckpoint:
        """The checkpoint of the former app at a path of Team Files.

        Raises:
            ValueError: there is none.
        """
        return find_former_checkpoint(self.api, self.team_id, path, list(self._former.values()))

    def choose_former(self, path: str) -> None:
        """Choose the checkpoint of the former app at a path of Team Files, offered or not."""
        if path not in self._former:
            self._offer([FormerCheckpoint(path), *self._former.values()])
        self.former_select.set_value(path)
        self.tabs.set_active_tab(FORMER)

    def choose_experiments(self) -> None:
        """Go to the tab of experiments."""
        self.tabs.set_active_tab(EXPERIMENTS)

    def has_experiment(self, task_id: Any) -> bool:
        """Whether there is an experiment of a task; new ones are looked for if it is not known."""
        if self.get_selected_row_by_task_id(task_id) is None:
            self.refresh()
        return self.get_selected_row_by_task_id(task_id) is not None

    def refresh(self) -> None:
        """Look for new experiments and checkpoints, and say how that went."""
        self._say("Looking…", "info")
        self.loading = True
        try:
            experiments = get_experiment_infos(self.api, self.team_id, self._framework)
            former = find_former_checkpoints(self.api, self.team_id)
            self.renew(experiments)
            self._offer(former)
        except requests.RequestException as error:
            self._say(f"The instance does not answer as expected: {error}", "error")
        else:
            self._say(f"{len(experiments)} experiments, {len(former)} checkpoints of the former app.", "success")
        finally:
            self.loading = False

    # ------------------------------------------------------------------------------------------ what the SDK asks for
    def get_selected_experiment_info(self) -> ExperimentInfo | None:
        """What is chosen, a checkpoint of the former app as an experiment of its own; None if nothing is."""
        if self.tabs.get_active_tab() != FORMER:
            return super().get_selected_experiment_info()
        return None if self.former is None else as_experiment(self.former, self._framework)

    def get_selected_checkpoint_name(self) -> str | None:
        """File name of the chosen checkpoint."""
        if self.tabs.get_active_tab() != FORMER:
            return super().get_selected_checkpoint_name()
        return None if self.former is None else self.former.name

    def get_selected_checkpoint_path(self) -> str | None:
        """Path of the chosen checkpoint in Team Files."""
        if self.tabs.get_active_tab() != FORMER:
            return super().get_selected_checkpoint_path()
        return None if self.former is None else self.former.path

    def disable(self) -> None:
        """Let nothing be changed."""
        for widget in (self.tabs, self.former_select, self.refresh_button):
            widget.disable()
        super().disable()

    def enable(self) -> None:
        """Let the choice be changed again."""
        for widget in (self.tabs, self.former_select, self.refresh_button):
            widget.enable()
        super().enable()

    def _offer(self, checkpoints: list[FormerCheckpoint]) -> None:
        chosen = self.former_select.get_value()
        self._former = {checkpoint.path: checkpoint for checkpoint in checkpoints}
        self.former_select.set([Select.Item(path, one.label) for path, one in self._former.items()])
        if chosen in self._former:
            self.former_select.set_value(chosen)
        if checkpoints:
            self.former_text.set(_LICENCE, "warning")
        else:
            self.former_text.set(f"Team Files have no checkpoint below {FOLDER}.", "info")

    def _say(self, sentence: str, kind: str) -> None:
        self.refresh_text.set(sentence, kind)
        self.refresh_text.show()


def as_experiment(checkpoint: FormerCheckpoint, framework: str) -> ExperimentInfo:
    """A checkpoint of the former app as the SDK knows experiments: no files besides it, no project, no task."""
    return ExperimentInfo(
        experiment_name=checkpoint.folder,
        framework_name=framework,
        model_name="former HRDA",
        task_type=TaskType.SEMANTIC_SEGMENTATION,
        project_id=None,
        task_id=None,
        model_files={},
        model_meta="",
        checkpoints=[checkpoint.name],
        best_checkpoint=checkpoint.name,
        hyperparameters="",
        artifacts_dir=checkpoint.folder,
    )
