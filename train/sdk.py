"""The app as the SDK sees it: every reach into names that the SDK does not promise lies here.

The SDK's `TrainApp` knows one project, which it splits. This module turns that into hooks that `train/app.py` fills in
with promised names only: which parts the page has, how the photos get here, what the splits are. The SDK is pinned;
`REACHES` lists what is overridden or used, and a test fails when another version of the SDK changes one of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import requests
import supervisely.nn.training.gui.gui as gui_module
import supervisely.nn.training.gui.utils as gui_utils
import supervisely.nn.training.train_app as train_app_module
from fastapi import FastAPI, HTTPException
from supervisely import Api, is_production, logger
from supervisely.nn.training.gui.gui import TrainGUI
from supervisely.nn.training.gui.training_process import TrainingProcess
from supervisely.nn.training.train_app import TrainApp

REACHES = {
    # Overridden
    "TrainApp._prepare": "three domains are downloaded; the SDK would split one project and drop its unchosen labels",
    "TrainApp._workflow_input": "target and validation belong to the workflow's picture too",
    "TrainApp._has_splits_selector": "there are splits, though no card to choose them on",
    "TrainApp._get_train_val_splits_for_app_state": "the app state names the domains instead of a split",
    "TrainApp._postprocess_splits": "the validation images lie in another project",
    "TrainApp._generate_experiment_info": "the scores of our own measurement take the place of the SDK's benchmark",
    "TrainApp._get_resume_app_state": "its 'input' would name the source only",
    "TrainApp._wrapped_start_training": "one training at a time; errors reach an API user as one sentence",
    "TrainApp._show_error": "the page and /train_status say what is wrong instead of pointing to the log",
    "TrainGUI._init_input": "an app state's three domains are shown and checked",
    # Called or read
    "TrainApp._download_model": "last step of the preparation",
    "TrainApp._read_project": "sets sly_project, which exports and reports read",
    "TrainApp._update_project_custom_data": "notes the collections in the source project",
    "TrainApp._train_split": "length and items are read when the experiment is described and a crashed upload resumed",
    "TrainApp._val_split": "as _train_split",
    "TrainApp._train_collection_id": "is written into experiment_info.json",
    "TrainApp._val_collection_id": "as _train_collection_id",
    "TrainApp._api": "the instance",
    "TrainApp._server": "to add a route",
    "TrainGUI._api": "the instance",
    "SelectCudaDevice._include_cpu_option": "without it a machine without CUDA has no device to choose",
}
"""Private names of the SDK, and why they are needed."""


class Refused(HTTPException):
    """A request that cannot be carried out. An API user gets the status and the sentence, the page the sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(status_code=status, detail=sentence)

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class SplitItem:
    """An image of a split, as the SDK notes it to resume a crashed upload."""

    dataset_name: str
    name: str
    image_id: int


@dataclass(frozen=True)
class Split:
    """The images of one side, which all lie in one project."""

    project_id: int
    items: list[SplitItem]


class AnyDeviceTrainingProcess(TrainingProcess):
    """The start card, which offers the CPU too."""

    def __init__(self, app_options: dict) -> None:
        super().__init__(app_options)
        self.select_device._include_cpu_option = True
        self.select_device.refresh()


class DomainTrainGUI(TrainGUI):
    """The page. An app state is either carried out whole or refused with a sentence that says what is wrong."""

    def __init__(self, *args: Any) -> None:
        self.is_training = False
        self._is_built = False
        super().__init__(*args)
        self.hyperparameters_selector.run_model_benchmark_checkbox.uncheck()
        self.hyperparameters_selector.model_benchmark_field.hide()
        self.hyperparameters_selector.model_benchmark_learn_more.hide()

    def finish(self) -> None:
        """From now on an app state that cannot be carried out is an error and not only a note on the page."""
        self._is_built = True

    def show_status(self, sentence: str, kind: str) -> None:
        """Show how the training stands; `/train_status` answers the same. What went wrong starts with 'Error'.

        Args:
            sentence: for a person.
            kind: 'info', 'success', 'warning' or 'error'.
        """
        self.training_process.validator_text.set(sentence, kind)
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

    def validate_app_state(self, app_state: dict) -> dict:
        """Check an app state and fill in what it leaves out.

        Raises:
            ValueError, KeyError: it cannot be carried out.
        """
        if not isinstance(app_state, dict):
            raise ValueError(f"app_state must be an object. Received: {app_state!r}.")
        options = dict(app_state.get("options") or {})
        export = options.pop("export", None) or {}
        if any(export.values()):
            raise ValueError("This app does not export to ONNX or TensorRT. Leave options.export out.")
        if (options.get("model_benchmark") or {}).get("enable"):
            logger.info("The validation scores of the training take the place of the model benchmark.")
        options["model_benchmark"] = {"enable": False, "speed_test": False}
        options.setdefault("cache_project", True)
        app_state = {**app_state, "options": options, "train_val_split": {}}
        self.check_state(app_state)
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
        try:
            app_state = _read_state(app_state)
            self._rewind()
            super().load_from_app_state(app_state, click_cb, validate_steps)
            if click_cb and validate_steps:
                self._require_all_steps()
                self.show_status("All steps are valid.", "success")
        except KeyError as error:
            self._refuse(str(error.args[0]), validate_steps or not click_cb, error)
        except ValueError as error:
            self._refuse(str(error), validate_steps or not click_cb, error)
        except requests.RequestException as error:
            raise Refused(f"The instance does not answer as expected: {error}", 502) from error

    def _init_input(self, input_settings: Any, options: dict, click_cb: bool = True, validate: bool = True) -> bool:
        inputs = self.read_input(input_settings)
        if validate:
            self.check_input(inputs)
        self.input_selector.set_inputs(inputs)
        return super()._init_input(input_settings, options, click_cb, validate)

    def _refuse(self, sentence: str, may_be_completed: bool, error: Exception) -> None:
        self.input_selector.validator_text.set(sentence, "error")
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


class DomainTrainApp(TrainApp):
    """A training app whose photos come from several projects."""

    def __init__(
        self, framework_name: str, models: str, hyperparameters: str, app_options: str, parts: Mapping[str, type]
    ) -> None:
        """Build the page and the server; makes calls to the instance.

        Args:
            framework_name: under which experiments are filed and found.
            models: path of the list of models.
            hyperparameters: path of the default settings.
            app_options: path of the SDK's options.
            parts: classes that take the place of the SDK's: `TrainGUI`, a `DomainTrainGUI`, and names of cards.
        """
        self._training_lock = threading.Lock()
        cards = {name: part for name, part in parts.items() if name != "TrainGUI"}
        with replaced(gui_module, **cards), replaced(train_app_module, TrainGUI=parts["TrainGUI"]):
            super().__init__(framework_name, models, hyperparameters, app_options)
        self.gui.finish()

    def collect_data(self) -> tuple[Split, Split]:
        """Download the photos, the source to `self.project_dir`; return what is learnt from and what measured on."""
        raise NotImplementedError

    @property
    def api(self) -> Api:
        """The instance."""
        return self._api

    @property
    def server(self) -> FastAPI:
        """The app's own server."""
        return self._server

    @property
    def is_model_benchmark_enabled(self) -> bool:
        """Never: the SDK's benchmark needs the serving app's class, and training measures on the same photos."""
        return False

    def get_app_state(self, experiment_info: dict | None = None) -> dict:
        """The app state with which this run can be repeated, its three domains included."""
        return super().get_app_state(experiment_info) | {"input": self.gui.input_selector.get_inputs().to_state()}

    def _prepare(self) -> None:
        if is_production():
            self._workflow_input()
        train, validation = self.collect_data()
        self._read_project()
        self._train_split, self._val_split = train.items, validation.items
        self._splits = {"train": train, "val": validation}
        self._train_collection_id, self._val_collection_id = (
            self._collect(name, split) for name, split in self._splits.items()
        )
        self._update_project_custom_data(self._train_collection_id, self._val_collection_id)
        self._download_model()

    def _workflow_input(self) -> None:
        super()._workflow_input()
        inputs = self.gui.input_selector.get_inputs()
        for domain in (inputs.target, inputs.validation):
            if domain is not None and domain.project_id != self.project_id:
                try:
                    self.api.app.workflow.add_input_project(domain.project_id)
                except Exception as error:
                    # The workflow is a picture of where things come from: no reason to end a training.
                    logger.warning(f"Project {domain.project_id} is missing in the workflow: {error!r}")

    @property
    def _has_splits_selector(self) -> bool:
        return True

    def _get_train_val_splits_for_app_state(self) -> dict:
        return {}

    def _postprocess_splits(self, project_id: int | None = None) -> dict:
        return {
            name: {"dataset_ids": None, "images_ids": [item.image_id for item in split.items]}
            for name, split in self._splits.items()
        }

    def _collect(self, name: str, split: Split) -> int:
        existing = {collection.name for collection in self.api.entities_collection.get_list(split.project_id)}
        number = 1
        while f"{name}_{number:03d}" in existing:
            number += 1
        description = f"{name} images of the experiment {self.gui.training_process.get_experiment_name()}"
        collection = self.api.entities_collection.create(split.project_id, f"{name}_{number:03d}", description)
        self.api.entities_collection.add_items(collection.id, [item.image_id for item in split.items])
        return collection.id

    def _generate_experiment_info(
        self,
        remote_dir: str,
        experiment_info: dict,
        eval_metrics: dict | None = None,
        evaluation_report_id: int | None = None,
        evaluation_report_link: str | None = None,
        primary_metric_name: str | None = None,
        export_weights: dict | None = None,
    ) -> dict:
        return super()._generate_experiment_info(
            remote_dir,
            experiment_info,
            experiment_info.get("evaluation_metrics") or eval_metrics or {},
            evaluation_report_id,
            evaluation_report_link,
            experiment_info.get("primary_metric") or primary_metric_name,
            export_weights or {},
        )

    def _get_resume_app_state(self, experiment_info: dict) -> dict:
        state = super()._get_resume_app_state(experiment_info)
        return state | {"input": self.gui.input_selector.get_inputs().to_state()}

    def _wrapped_start_training(self) -> None:
        if not self._training_lock.acquire(blocking=False):
            raise Refused("A training is running in this app already.", 409)
        self.gui.is_training = True
        try:
            super()._wrapped_start_training()
        except Refused:
            raise
        except Exception as error:
            raise Refused(_sentence("The training ended with an error", error), 500) from error
        finally:
            self.gui.is_training = False
            self._training_lock.release()

    def _show_error(self, message: str, e: Exception | None = None) -> None:
        if isinstance(e, Refused):
            # The sentence says it all; the SDK would log where it was raised.
            super()._show_error(f"Error: {e.detail}")
        else:
            super()._show_error(message if e is None else _sentence(message, e), e)


@contextmanager
def replaced(module: ModuleType, **parts: Any) -> Iterator[None]:
    """Let names of `module` stand for something else within the block: the SDK looks its parts up by them.

    Raises:
        AttributeError: the module has no such name any more.
    """
    before = {name: getattr(module, name) for name in parts}
    for name, part in parts.items():
        setattr(module, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


def _read_state(app_state: Any) -> Any:
    if not isinstance(app_state, str):
        return app_state
    is_text = app_state.lstrip().startswith("{")
    try:
        return json.loads(app_state if is_text else Path(app_state).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"app_state must be an object, JSON text of one, or a file with it: {error}.") from error


def _sentence(message: str, error: Exception) -> str:
    return str(error) if isinstance(error, Refused) else f"{message.rstrip('.')}. {type(error).__name__}: {error}"
