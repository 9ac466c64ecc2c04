"""Cards of the page that differ from the SDK's."""

from __future__ import annotations

from supervisely.nn.training.gui.hyperparameters_selector import HyperparametersSelector
from supervisely.nn.training.gui.training_logs import TrainingLogs

from common.hrda import SettingsError
from train.settings import TrainSettings


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
