"""Cards of the page that differ from the SDK's."""

from __future__ import annotations

from typing import Any

import supervisely.nn.training.gui.classes_selector as classes_module
from supervisely import AlphaMask, AnyGeometry, Bitmap, Multipolygon, Polygon, Rectangle
from supervisely.app.widgets import ClassesTable
from supervisely.nn.training.gui.classes_selector import ClassesSelector
from supervisely.nn.training.gui.hyperparameters_selector import HyperparametersSelector
from supervisely.nn.training.gui.training_logs import TrainingLogs

from common.data.project import BACKGROUND
from common.hrda import SettingsError
from train.sdk import replaced
from train.settings import TrainSettings

DRAWABLE = [Bitmap, Polygon, Multipolygon, Rectangle, AlphaMask, AnyGeometry]
"""Shapes of classes that can be trained: all of them are drawn into masks here, none is converted by the SDK."""


class AnyShapeClassesSelector(ClassesSelector):
    """The classes card: every shape that can be drawn is offered, and none needs converting."""

    def __init__(self, project_id: int, classes: list, model_selector: Any, app_options: dict) -> None:
        with replaced(classes_module, ClassesTable=_drawable_classes_table):
            super().__init__(project_id, classes, model_selector, app_options)
        self.convert_class_shapes_checkbox.hide()

    def validate_step(self) -> bool:
        """Check that a class is chosen."""
        chosen = [name for name in self.get_selected_classes() if name != BACKGROUND]
        if chosen:
            self.validator_text.set(f"Classes: {', '.join(chosen)}", "success")
        else:
            self.validator_text.set("Choose at least one class besides the background.", "error")
        self.validator_text.show()
        return bool(chosen)


class SettingsSelector(HyperparametersSelector):
    """The settings card, which accepts only settings that can be trained with."""

    def validate_step(self) -> bool:
        """Check the text and say in the card what is wrong."""
        try:
            settings = TrainSettings.from_yaml(self.get_hyperparameters())
        except SettingsError as error:
            self.validator_text.set(str(error), "error")
            self.validator_text.show()
            return False
        self.validator_text.set(f"Mode {settings.mode}, {settings.iterations} iterations.", "success")
        self.validator_text.show()
        return True


class NoViewer:
    """Takes the place of the button that opens the saved curves, on instances without the app that shows them."""

    payload: dict | None = None

    def set_check_existing_task_cb(self, code: str) -> None:
        """There is no task to look for."""

    def enable(self) -> None:
        """There is nothing to press."""

    def show(self) -> None:
        """There is nothing to show."""


class AnyInstanceTrainingLogs(TrainingLogs):
    """The logs card; without it the SDK fails after the upload on instances that lack the viewer of curves."""

    def __init__(self, app_options: dict) -> None:
        super().__init__(app_options)
        if self.tensorboard_offline_button is None:
            self.tensorboard_offline_button = NoViewer()


def _drawable_classes_table(project_id: int, allowed_types: list) -> ClassesTable:
    return ClassesTable(project_id=project_id, allowed_types=DRAWABLE)
