"""The SDK's list of experiments, which it reads once: every reach into names of it lies here."""

from __future__ import annotations

from supervisely.app.widgets import ExperimentSelector, Text
from supervisely.nn.experiments import ExperimentInfo

from common.web.experiments import ScoredExperiments, ScoredRow

REACHES = {
    "ExperimentSelector._experiment_infos": "the filters go by it",
    "ExperimentSelector._project_infos_map": "a row shows the project that was learnt from",
    "ExperimentSelector._get_project_infos_map": "to fill it for experiments that are new",
}
"""Private names of the SDK, and why they are needed."""


class ExperimentRow(ScoredRow, ExperimentSelector.ModelRow):
    """An experiment with its name and foreground IoU."""

    text = Text


class RenewableExperimentSelector(ScoredExperiments, ExperimentSelector):
    """A list of experiments that can be read anew."""

    ModelRow, sdk_table = ExperimentRow, ExperimentSelector

    def renew(self, experiments: list[ExperimentInfo]) -> None:
        """Show `experiments` in place of those shown; the chosen one stays chosen if it is among them."""
        chosen = ExperimentSelector.get_selected_experiment_info(self)
        self._experiment_infos = experiments
        self._project_infos_map = self._get_project_infos_map(experiments)
        self.table.clear()
        self.set_experiment_infos(experiments)
        if chosen is not None and self.get_selected_row_by_task_id(chosen.task_id) is not None:
            self.set_selected_row_by_task_id(chosen.task_id)
