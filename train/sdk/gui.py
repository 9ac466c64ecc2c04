"""The page as the SDK sees it: every reach into names of `TrainGUI` that the SDK does not promise lies here."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any, Self

import requests
import supervisely.nn.training.gui.utils as gui_utils
from fastapi import HTTPException
from supervisely import Api, is_production, logger
from supervisely.nn.training.gui.gui import TrainGUI

from common.hrda.checks import PlainSettings, SettingsError, received, schema, section

REACHES = {
    "TrainGUI._init_input": "an app state's domains are shown and checked",
    "TrainGUI._init_model": "a model may also be a checkpoint of the former app, which has no task",
    "TrainGUI._run_from_experiment": "an experiment that is gone does not keep the app from starting",
    "TrainGUI._api": "the instance",
}
"""Private names of the SDK, and why they are needed."""


@schema
class BenchmarkOptions(PlainSettings):
    """The report on the validation photos."""

    enable: bool | None = None
    """Whether it is made; null: in production."""
    speed_test: bool = False
    """Passed over: the SDK's speed test needs the serving app's class, which this app does not have."""


@schema
class ExportOptions(PlainSettings):
    """Other formats of the best checkpoint."""

    enable: bool = False
    """Passed over: what counts is which format is asked for."""
    ONNXRuntime: bool = False
    """Whether it is exported as ONNX too."""
    TensorRT: bool = False
    """Refused: an engine fits only the graphics card that made it."""


@schema
class Options(PlainSettings):
    """An app state's `options`, as the SDK's clients send them."""

    convert_class_shapes: bool = True
    """Passed over: shapes of all kinds are drawn."""
    cache_project: bool = True
    """Whether the agent keeps the photos for the next run."""
    model_benchmark: section(BenchmarkOptions) = BenchmarkOptions()
    """The report."""
    export: section(ExportOptions) = ExportOptions()
    """Other formats."""

    @classmethod
    def from_state(cls, options: Any) -> Self:
        """Read them; what is null is left out.

        Raises:
            SettingsError: unknown or of a wrong kind, or an export that there is not.
        """
        if options is not None and not isinstance(options, dict):
            raise SettingsError(f"options must be an object. Received: {received(options)}.")
        try:
            made = cls.from_dict({name: value for name, value in (options or {}).items() if value is not None})
        except SettingsError as error:
            raise SettingsError(f"In options: {error}") from error
        if made.export.TensorRT:
            raise SettingsError(
                "The training does not export to TensorRT: an engine fits only the graphics card that made it, and "
                "Serve HRDA makes it there. Leave options.export.TensorRT out; options.export.ONNXRuntime exports ONNX."
            )
        return made

    def to_sdk(self) -> dict[str, Any]:
        """What the SDK's page reads."""
        enabled = is_production() if self.model_benchmark.enable is None else self.model_benchmark.enable
        benchmark = {"enable": enabled, "speed_test": False}
        return self.to_dict() | {"model_benchmark": benchmark, "export": {"ONNXRuntime": self.export.ONNXRuntime}}


class Refused(HTTPException):
    """A request that cannot be carried out. An API user gets the status and the sentence, the page the sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(status_code=status, detail=sentence)

    def __str__(self) -> str:
        return self.detail


class DomainTrainGUI(TrainGUI):
    """The page. An app state is either carried out whole or refused with a sentence that says what is wrong."""

    def __init__(self, *args: Any) -> None:
        self.is_training = False
        self._is_built = False
        self._is_trusted = False
        self.refused_launch: str | None = None
        """Why the training that the launch of the task asked for cannot be."""
        super().__init__(*args)
        if not is_production():
            self.hyperparameters_selector.run_model_benchmark_checkbox.uncheck()

    def finish(self) -> None:
        """From now on an app state that cannot be carried out is an error and not only a note on the page."""
        self._is_built = True

    def show_status(self, sentence: str, kind: str) -> None:
        """Show how the training stands; `/train_status` answers the same. What went wrong starts with 'Error'.

        Args:
            sentence: for a person.
            kind: 'info', 'success', 'warning' or 'error'.
        """
        # The page reads HTML, and names of projects and classes are anybody's.
        self.training_process.validator_text.set(escape(sentence, quote=False), kind)
        self.training_process.validator_text.show()

    @property
    def api(self) -> Api:
        """The instance."""
        return self._api

    def check_state(self, app_state: dict[str, Any]) -> None:
        """Raise ValueError, with a sentence, if an app state cannot work."""
        raise NotImplementedError

    def read_input(self, state: Any) -> Any:
        """What the input card's `set_inputs` takes, from the app state's `input`; ValueError if that cannot be read."""
        raise NotImplementedError

    def check_input(self, inputs: Any) -> None:
        """Raise ValueError, with a sentence, if the instance does not have the domains."""
        raise NotImplementedError

    def show_start(self, app_state: dict[str, Any]) -> None:
        """Show on the start card what an app state says of device, continuing and comparing."""
        raise NotImplementedError

    def fit_to_launch(self, app_state: dict[str, Any]) -> dict[str, Any]:
        """The app state of an experiment, for the project that this app was started on."""
        raise NotImplementedError

    def validate_app_state(self, app_state: dict) -> dict:
        """Check an app state and fill in what it leaves out.

        Raises:
            ValueError, KeyError: it cannot be carried out.
        """
        if not isinstance(app_state, dict):
            raise ValueError(f"app_state must be an object. Received: {received(app_state)}.")
        options = Options.from_state(app_state.get("options"))
        app_state = {**app_state, "options": options.to_sdk(), "train_val_split": {}}
        if not self._is_trusted:
            self.check_state(app_state)
        model = app_state.get("model")
        if isinstance(model, dict) and "checkpoint_path" in model:
            # The SDK asks for these two; its own are experiments, which have a task.
            app_state["model"] = {"task_id": None, "checkpoint": model["checkpoint_path"], **model}
        return super().validate_app_state(app_state)

    def load_from_app_state(self, app_state: str | dict, click_cb: bool = True, validate_steps: bool = True) -> None:
        """Fill the page in.

        Raises:
            Refused: a training is running, or the app state cannot be carried out; then nothing is started. While the
                app starts, a state that the platform sends along is only reported on the page, where a person can
                complete it.
        """
        if self.is_training:
            raise Refused("A training is running in this app already. Wait for its end, or start another app.", 409)
        # So the SDK restores the page of a run that is trained already, and whose upload is to be resumed.
        self._is_trusted = click_cb and not validate_steps
        try:
            app_state = _read_state(app_state)
            if not click_cb and isinstance(app_state, dict):
                # So the SDK shows an experiment that is to be repeated or gone on from, maybe on another project.
                app_state = self.fit_to_launch(app_state)
            self._rewind()
            super().load_from_app_state(app_state, click_cb, validate_steps)
            self.show_start(app_state)
            if click_cb and validate_steps:
                self._require_all_steps()
                self.show_status("All steps are valid.", "success")
        except (KeyError, ValueError) as error:
            sentence = str(error.args[0] if isinstance(error, KeyError) else error)
            if not self._is_built and isinstance(app_state, dict) and app_state.get("start_training"):
                self.refused_launch = sentence
            self._refuse(sentence, validate_steps or not click_cb, error)
        except requests.RequestException as error:
            raise Refused(f"The instance does not answer as expected: {error}", 502) from error

    def _run_from_experiment(self, train_task_id: int, train_mode: str) -> None:
        try:
            super()._run_from_experiment(train_task_id, train_mode)
        except (KeyError, ValueError, requests.RequestException) as error:
            self._refuse(f"The experiment of task {train_task_id} cannot be shown: {error}", True, error)

    def _init_input(self, input_settings: Any, options: dict, click_cb: bool = True, validate: bool = True) -> bool:
        inputs = self.read_input(input_settings)
        if validate:
            self.check_input(inputs)
        self.input_selector.set_inputs(inputs)
        return super()._init_input(input_settings, options, click_cb, validate)

    def _init_model(
        self, model_settings: dict, options: dict | None = None, click_cb: bool = True, validate: bool = True
    ) -> bool:
        self.model_selector.choose(model_settings)
        if "checkpoint_path" not in model_settings:
            is_valid = super()._init_model(model_settings, options, click_cb, validate)
            self.model_selector.show_network()
            return is_valid
        is_valid = not validate or self.model_selector.validate_step()
        if is_valid and click_cb:
            self.model_selector_cb()
            self.set_next_step()
        return is_valid

    def _refuse(self, sentence: str, may_be_completed: bool, error: Exception) -> None:
        self.input_selector.validator_text.set(escape(sentence, quote=False), "error")
        self.input_selector.validator_text.show()
        self.show_status(f"Error: {sentence}", "error")
        logger.warning(f"App state refused: {sentence}")
        if self._is_built or not may_be_completed:
            raise Refused(sentence) from error

    def _rewind(self) -> None:
        # The steps' buttons are toggles: loading a second time would lock the cards again.
        for step in self._steps_with_button():
            gui_utils.button_clicked[step.button.widget_id] = False
        self.hyperparameters_selector.editor.readonly = False
        self.set_first_step()

    def _require_all_steps(self) -> None:
        # The SDK stops silently at the first step that does not validate.
        for step in self._steps_with_button():
            if not gui_utils.button_clicked[step.button.widget_id]:
                raise ValueError(f"{step.title}: {step.validator_text.text}")

    def _steps_with_button(self) -> list[Any]:
        return [self.input_selector, self.model_selector, self.classes_selector, self.hyperparameters_selector]


def _read_state(app_state: Any) -> Any:
    if not isinstance(app_state, str):
        return app_state
    is_text = app_state.lstrip().startswith("{")
    try:
        return json.loads(app_state if is_text else Path(app_state).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"app_state must be an object, JSON text of one, or a file with it: {error}.") from error
