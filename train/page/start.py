"""The card from which a training is started and stopped."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from supervisely import logger
from supervisely.app.widgets import (
    Button,
    Card,
    Checkbox,
    Container,
    Field,
    Flexbox,
    Input,
    SelectCudaDevice,
    Text,
)
from supervisely.nn.training.gui.training_process import TrainingProcess

from common.hrda import SettingsError
from common.hrda.training.ranks import Ranks
from common.web.guide import LINK
from train.page.live import BackgroundButton, forget_error, put, send
from train.run.processes import require_learnable
from train.settings.training import TrainSettings


class StartCard(TrainingProcess):
    """Device, name, Start, Stop and save, and what is offered after an interruption.

    Its widgets have the names that the SDK looks for.

    Args:
        app_options: of the SDK.
    """

    title = "Training"
    description = "Start the training. It can be stopped at any time: what is trained is saved and uploaded"

    def __init__(self, app_options: dict[str, Any]) -> None:
        self.app_options = app_options
        self.is_multi_gpu = torch.cuda.device_count() > 1
        self.select_device = SelectCudaDevice(
            sort_by_free_ram=True,
            include_cpu_option=True,
            width_px=275,
            multiple=self.is_multi_gpu,
            widget_id="device",
        )
        several = ". Several share the batch" if self.is_multi_gpu else ""
        self.select_device_field = Field(
            self.select_device, "Device", f"A graphics card trains many times faster than the CPU{several}"
        )
        self.experiment_name_input = Input("Enter experiment name", widget_id="experiment_name")
        self.experiment_name_field = Field(
            self.experiment_name_input, "Experiment name", "Under this name the result is listed"
        )
        self.continue_text = Text("", widget_id="continue_text")
        self.continue_checkbox = Checkbox(self.continue_text, widget_id="continue_checkbox")
        self.continue_checkbox.hide()
        self.compare_checkbox = Checkbox("Compare without target photos afterwards", widget_id="compare_checkbox")
        self.compare_field = Field(
            self.compare_checkbox,
            "Comparison",
            "Trains once more without them, which takes as long again, and says what they brought",
        )
        self.start_button = BackgroundButton("Start", is_awaited=True, icon="zmdi zmdi-play", widget_id="start_button")
        self.stop_button = Button(
            "Stop and save", "danger", icon="zmdi zmdi-stop", show_loading=False, widget_id="stop_button"
        )
        self.stop_button.hide()
        self.resume_button = BackgroundButton(
            "Retry upload",
            is_awaited=True,
            button_type="success",
            icon="zmdi zmdi-cloud-upload",
            widget_id="retry_upload",
        )
        self.resume_button.hide()
        self.resume_info_text = Text("", widget_id="retry_text")
        self.resume_info_text.hide()
        self.validator_text = Text("", widget_id="training_status")
        self.validator_text.hide()
        buttons = Flexbox([self.start_button, self.stop_button, self.resume_button])
        self.display_widgets = [
            self.select_device_field,
            self.experiment_name_field,
            self.continue_checkbox,
            self.compare_field,
            self.resume_info_text,
            buttons,
            self.validator_text,
        ]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            lock_message=self.lock_message,
            content_top_right=Text(LINK),
        )
        self.card.lock()
        for widget in (self.select_device, self.experiment_name_input, self.continue_checkbox):
            widget.value_changed(lambda _: forget_error(self.validator_text))

    @property
    def widgets_to_disable(self) -> list:
        """What cannot be changed while a training runs."""
        return [*super().widgets_to_disable, self.continue_checkbox, self.compare_checkbox]

    def chosen_devices(self, settings: TrainSettings) -> str:
        """The names of the chosen devices, with commas.

        Raises:
            SettingsError: none is chosen, or they cannot share the batch or learn from it.
        """
        names = self.get_devices()
        if not names:
            raise SettingsError("Choose a device to train on.")
        if len(names) > 1 and "cpu" in names:
            raise SettingsError("Choose graphics cards or the CPU as device, not both.")
        require_learnable(settings, Ranks(count=len(names)))
        return ",".join(names)

    def choose_device(self, name: str) -> None:
        """Select 'cpu', 'cuda:N' or several with commas; what is not here is left for whatever is selected."""
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        names = name.split(",")
        if set(names) <= set(here) and (len(names) == 1 or self.is_multi_gpu):
            self.select_device.set_device(names if self.is_multi_gpu else name)
        else:
            logger.warning(f"This machine has no device {name}, only {', '.join(here)}: {self.get_device()} is used.")

    def offer_to_continue(self, description: str | None) -> None:
        """Show, ticked, that an interrupted run can be continued; None: there is none.

        Args:
            description: what is known of the run, such as 'iteration 40 of 200'.
        """
        if description is None:
            self.continue_checkbox.uncheck()
            self.continue_checkbox.hide()
            return
        self.continue_text.set(f"Continue the interrupted run ({escape(description, quote=False)})", "text")
        self.continue_checkbox.check()
        self.continue_checkbox.show()

    def show_running(self, is_running: bool) -> None:
        """Offer what can be done while a training runs, or while none does."""
        put(self.stop_button, hide=not is_running, disabled=False)
        put(self.start_button, loading=is_running)
        put(self.continue_checkbox, disabled=is_running)
        put(self.compare_checkbox, disabled=is_running)
        send()

    def show_stopping(self) -> None:
        """Show that the stop is on its way."""
        put(self.stop_button, disabled=True)
        send()

    def offer_retry(self, sentence: str | None) -> None:
        """Offer to upload again, and say why; None: there is nothing to retry."""
        if sentence is not None:
            self.resume_info_text.set(sentence, "warning")
        put(self.resume_info_text, hide=sentence is None)
        put(self.resume_button, hide=sentence is None, loading=False, disabled=False)
        send()
