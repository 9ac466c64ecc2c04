"""The table of experiments to serve."""

from __future__ import annotations

from supervisely.app.widgets import ExperimentSelector, Text

from common.web.experiments import ScoredExperiments, ScoredRow


class ExperimentRow(ScoredRow, ExperimentSelector.ModelRow):
    """An experiment with its name and foreground IoU."""

    text = Text


class Experiments(ScoredExperiments, ExperimentSelector):
    """The experiments of a team."""

    ModelRow, sdk_table = ExperimentRow, ExperimentSelector
