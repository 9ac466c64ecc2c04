"""The table of experiments on both pages: by name, task, date and foreground IoU.

The SDK's own table names an experiment by its task alone. The two classes here stand before the SDK's, which only the
apps may import:

    class Row(ScoredRow, ExperimentSelector.ModelRow):
        text = Text

    class Experiments(ScoredExperiments, ExperimentSelector):
        ModelRow, sdk_table = Row, ExperimentSelector
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from common.replacing import replaced

FOREGROUND_IOU = "mBestIoU"
"""Under this name an experiment keeps the mean IoU of its classes without the background, each at its best threshold,
as the result card shows it."""
NOT_MEASURED = "not measured"
_UNKNOWN = -1.0
"""Sorts what was not measured below all that was."""


class ScoredRow:
    """An experiment in the table; goes before the SDK's row."""

    text: type
    """The SDK's widget for text."""

    def __init__(
        self, api: Any, team_id: int, task_type: str, experiment_info: Any, project_info: Any | None = None
    ) -> None:
        super().__init__(api, team_id, task_type, experiment_info, project_info)
        self.name = str(experiment_info.experiment_name)
        self.iou = foreground_iou(experiment_info.evaluation_metrics)
        name, model = escape(self.name), escape(str(experiment_info.model_name))
        self._own_cells = [
            self.text(f'<b>{name}</b><div style="color: #7f858e">{model}</div>'),
            self.text(NOT_MEASURED if self.iou is None else f"{100 * self.iou:.1f}%"),
        ]

    def to_table_row(self) -> list[str]:
        """The cells."""
        task, _, data, checkpoints, _, report = super().to_table_row()
        name, iou = (json.dumps({"widget_id": cell.widget_id, "widgets": []}) for cell in self._own_cells)
        return [name, task, iou, checkpoints, data, report]

    @classmethod
    def widgets_templates(cls) -> list[Any]:
        """A widget for each column."""
        task, _, data, checkpoints, _, report = super().widgets_templates()
        return [cls.text(""), task, cls.text(""), checkpoints, data, report]

    def search_text(self) -> str:
        """What a search looks through."""
        return f"{self.name} {super().search_text()}"

    def sort_values(self) -> list[Any]:
        """By what each column sorts."""
        task, _, data, checkpoints, _, report = super().sort_values()
        iou = _UNKNOWN if self.iou is None else self.iou
        return [self.name.lower(), task, iou, checkpoints, data, report]


class ScoredExperiments:
    """The table; goes before the SDK's."""

    ModelRow: type
    """Of its rows, a `ScoredRow`."""
    sdk_table: type
    """The SDK's table, which names its own kind of row."""
    # The SDK sets the checkpoints apart by their place, and does not sort by them and by the next column. Without the
    # link to the session, which its task has too, all of them fit into a card 1000 pixels wide.
    COLUMNS = ("EXPERIMENT", "TASK", "FOREGROUND IOU", "CHECKPOINT", "TRAINING DATA", "REPORT")

    def set_experiment_infos(self, experiment_infos: list[Any]) -> None:
        """Show these experiments."""
        with replaced(self.sdk_table, ModelRow=self.ModelRow):
            super().set_experiment_infos(experiment_infos)


def foreground_iou(metrics: Any) -> float | None:
    """The foreground IoU, 0 to 1, of what an experiment says of its scores, which is anybody's file; None if it does
    not say it."""
    value = metrics.get(FOREGROUND_IOU) if isinstance(metrics, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None
