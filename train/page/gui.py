"""The page of Train HRDA as a whole: what an app state may say, and how the cards know of each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from supervisely.app import get_synced_data_dir
from supervisely.app.widgets import Checkbox
from supervisely.nn.utils import ModelSource

from common.data.choice import RESERVED
from common.data.project import DRAWABLE
from common.hrda import SettingsError
from common.hrda.checks import closest, received
from train.instance.domains import InputError, Inputs, check_apart, find
from train.page.live import forget_error
from train.page.samples import SampleSource
from train.run.comparison import require_comparable
from train.run.folder import Resumable, resumable
from train.run.preparation import check_ignored
from train.sdk.gui import DomainTrainGUI
from train.settings.training import TrainSettings

FRAMEWORK = "HRDA"


class HRDATrainGUI(DomainTrainGUI):
    """The page of Train HRDA."""

    def __init__(self, *args: Any) -> None:
        self.run_folder = Path(get_synced_data_dir()) / "run"
        """Where a run's checkpoints and previews lie; the SDK empties its own folders at every start."""
        super().__init__(*args)
        self.offer_to_continue()

    @property
    def wants_to_continue(self) -> bool:
        """Whether the interrupted run is to go on."""
        return self.training_process.continue_checkbox.is_checked()

    def offer_to_continue(self) -> None:
        """Offer to continue an interrupted run where there is one."""
        found = resumable(self.run_folder)
        if found is not None and found.iteration >= found.total_iterations:
            found = None
        self.training_process.offer_to_continue(None if found is None else describe_run(found))

    def connect_cards(self) -> None:
        """Have cards follow what is chosen on others."""
        selector, classes = self.input_selector, self.classes_selector
        selector.on_change(lambda: classes.set_facts(selector.facts("source"), selector.facts("validation")))
        settings = self.hyperparameters_selector
        settings.use_source(self._sample_source)
        settings.on_change(self.model_selector.show_settings)
        settings.use_target(self._wrong_target)
        selector.use_missing(lambda: self._wrong_target(settings.settings))
        selector.on_choice(settings.show_target)
        # What one card says is missing, the other says too, whichever of the two was changed.
        selector.on_choice(selector.show_missing)
        settings.on_change(lambda _: selector.show_missing())
        selector.show_missing()
        self._take_errors_back()
        flow, model = self.step_flow, self.model_selector
        for step, is_reselect, is_open in (
            ("input_selector", False, True),
            ("input_selector", True, False),
            ("model_selector", False, False),
            ("model_selector", True, True),
        ):
            flow.add_on_select_actions(step, [partial(model.compare_networks, is_open)], is_reselect=is_reselect)
        # The SDK turns the editor's lock over: whoever opened an earlier step again would find an open editor locked.
        for is_reselect in (False, True):
            lock = partial(setattr, settings.editor, "readonly", not is_reselect)
            self.step_flow.add_on_select_actions("hyperparameters_selector", [lock], is_reselect=is_reselect)
        self.model_selector.weights.on_change(
            lambda pretrained: self.hyperparameters_selector.set_value("pretrained", pretrained)
        )
        self.hyperparameters_selector.on_change(lambda settings: classes.show_ignored(settings.data.ignored_classes))
        classes.on_ignored(self._ignore_classes)
        self.model_selector.show_settings(self.hyperparameters_selector.settings)

    def _ignore_classes(self, names: list[str]) -> None:
        forget_error(self.classes_selector.validator_text)
        try:
            self.hyperparameters_selector.set_value("data.ignored_classes", names)
        except SettingsError as error:
            self.classes_selector.refuse(str(error))

    def _wrong_target(self, settings: TrainSettings) -> str | None:
        selector = self.input_selector
        return missing_target(settings, selector.has_target) or selector.measured_target(settings.mode)

    def _take_errors_back(self) -> None:
        """Have what is said of a mistake go when a person changes what it may be said of."""
        classes, start, samples = self.classes_selector, self.training_process, self.hyperparameters_selector.samples
        classes.classes_table.value_changed(lambda _: forget_error(classes.validator_text))
        for name in self.step_flow.steps:
            # Before anything of a finished step can be changed, it is opened again.
            actions = [lambda: forget_error(start.validator_text), samples.forget_error]
            self.step_flow.add_on_select_actions(name, actions, is_reselect=True)
            self.step_flow.add_on_select_actions(name, actions)

    def _sample_source(self) -> SampleSource:
        chosen = [name for name in self.classes_selector.get_selected_classes() if name not in RESERVED]
        return SampleSource(self.input_selector.get_inputs().source, self.project_meta, tuple(chosen))

    def load_from_app_state(self, app_state: str | dict, click_cb: bool = True, validate_steps: bool = True) -> None:
        """Fill the page in; see the base class."""
        with self.model_selector.not_asking():
            super().load_from_app_state(app_state, click_cb, validate_steps)

    def show_start(self, app_state: dict[str, Any]) -> None:
        """Show on the start card what an app state says of device, continuing and comparing."""
        start = self.training_process
        if app_state.get("device"):
            start.choose_device(app_state["device"])
        _tick(start.compare_checkbox, app_state.get("compare") or False)
        if "continue" in app_state:
            _tick(start.continue_checkbox, app_state["continue"] or False)

    def check_state(self, app_state: dict[str, Any]) -> None:
        """Refuse settings, classes or a model that do not exist, and a mode without the domain that it needs.

        Raises:
            SettingsError, InputError, ValueError: with what to do.
        """
        text = app_state.get("hyperparameters")
        if text is not None and not isinstance(text, str):
            raise SettingsError(f"hyperparameters must be YAML text. Received: {received(text)}.")
        settings = TrainSettings.from_yaml(
            self.hyperparameters_selector.get_hyperparameters() if text is None else text
        )
        inputs = self.read_input(app_state.get("input"))
        check_target(settings, inputs)
        if settings.mode == "supervised":
            check_apart(find(self.api, inputs), settings.mode)
        self._check_model(app_state.get("model"))
        self._check_classes(app_state.get("classes"))
        check_ignored(settings.data.ignored_classes, app_state["classes"])
        self._check_start(app_state)
        if app_state.get("compare"):
            require_comparable(settings, inputs.validation is not None)

    def read_input(self, state: Any) -> Inputs:
        """The domains of an app state's `input`."""
        return Inputs.from_state(state, self.project_id)

    def fit_to_launch(self, app_state: dict[str, Any]) -> dict[str, Any]:
        """The app state of an experiment with the project that this app was started on as source.

        That of the experiment may be another: then all datasets are used.
        """
        inputs = app_state.get("input")
        source = inputs.get("source") if isinstance(inputs, Mapping) else None
        if not isinstance(source, Mapping) or source.get("project_id") == self.project_id:
            return app_state
        return {**app_state, "input": {**inputs, "source": {"project_id": self.project_id}}}

    def check_input(self, inputs: Inputs) -> None:
        """Look the domains up on the instance."""
        find(self.api, inputs)

    def _check_start(self, app_state: Mapping[str, Any]) -> None:
        name, device, go_on = (app_state.get(key) for key in ("experiment_name", "device", "continue"))
        for key in ("continue", "compare"):
            if not isinstance(app_state.get(key), bool | None):
                raise ValueError(f"{key} must be true, false or be left out. Received: {received(app_state[key])}.")
        if name and (not isinstance(name, str) or set("\\/") & set(name)):
            raise ValueError(f"experiment_name must have no slashes: it names a folder. Received: {received(name)}.")
        if device is not None and not isinstance(device, str):
            raise ValueError(f"device must be 'cpu' or such as 'cuda:0', or be left out. Received: {received(device)}.")
        if go_on and resumable(self.run_folder) is None:
            raise ValueError("There is no interrupted run to continue in this app. Leave continue out to start anew.")

    def _check_model(self, model: Any) -> None:
        source = model.get("source") if isinstance(model, Mapping) else None
        if source == ModelSource.PRETRAINED:
            name, names = model.get("model_name"), [entry["meta"]["model_name"] for entry in self.models]
            if name not in names:
                raise ValueError(f"There is no model '{name}': {closest(str(name), names)}")
        elif source == ModelSource.CUSTOM and "checkpoint_path" in model:
            self.model_selector.experiment_selector.require_former(model["checkpoint_path"])
        elif source == ModelSource.CUSTOM:
            task_id, checkpoint = model.get("task_id"), model.get("checkpoint")
            experiments = self.model_selector.experiment_selector
            if not experiments.has_experiment(task_id):
                raise ValueError(f"This team has no {FRAMEWORK} experiment of task {task_id}.")
            experiment = experiments.get_selected_row_by_task_id(task_id)
            if checkpoint not in experiment.checkpoints_names:
                hint = closest(str(checkpoint), experiment.checkpoints_names)
                raise ValueError(f"The experiment of task {task_id} has no checkpoint '{checkpoint}': {hint}")
        else:
            first = self.models[0]["meta"]["model_name"]
            raise ValueError(
                f'model must look like {{"source": "{ModelSource.PRETRAINED}", "model_name": "{first}"}}, '
                f'{{"source": "{ModelSource.CUSTOM}", "task_id": 1, "checkpoint": "best.pth"}} or '
                f'{{"source": "{ModelSource.CUSTOM}", "checkpoint_path": "/HRDA/1_cracks/best.pth"}}. '
                f"Received: {received(model)}."
            )

    def _check_classes(self, classes: Any) -> None:
        every = [obj_class for obj_class in self.project_meta.obj_classes if obj_class.name not in RESERVED]
        drawable = [obj_class for obj_class in every if obj_class.geometry_type in DRAWABLE]
        if not isinstance(classes, list) or not classes:
            raise ValueError(
                f"classes must be a list of class names of the source project. Received: {received(classes)}."
            )
        for given in classes:
            if given in {key for obj_class in drawable for key in (obj_class.name, obj_class.sly_id)}:
                continue
            for obj_class in every:
                if given in (obj_class.name, obj_class.sly_id):
                    shape = obj_class.geometry_type.geometry_name()
                    raise ValueError(f"The class '{obj_class.name}' is of shape {shape}, which covers no area.")
            names = [obj_class.name for obj_class in drawable]
            raise ValueError(f"The source project has no class '{given}': {closest(str(given), names)}")


def _tick(checkbox: Checkbox, is_ticked: bool) -> None:
    if is_ticked:
        checkbox.check()
    else:
        checkbox.uncheck()


def describe_run(run: Resumable) -> str:
    """An interrupted run in a few words."""
    return f"iteration {run.iteration} of {run.total_iterations}; {run.encoder}; {', '.join(run.classes)}"


def require_fit(run: Resumable, settings: TrainSettings, classes: list[str]) -> None:
    """Make sure that an interrupted run can go on with what is chosen.

    Args:
        run: the interrupted run.
        settings: what is chosen now.
        classes: the chosen classes without the background.

    Raises:
        SettingsError: it cannot; says why and what to do.
    """
    before = list(run.classes)
    remedy = 'or untick "Continue the interrupted run" to start anew'
    if classes != before:
        raise SettingsError(
            f"The interrupted run learns {', '.join(before)}, and {', '.join(classes)} is chosen now. "
            f"Choose its classes again, {remedy}."
        )
    if settings.model.encoder != run.encoder:
        raise SettingsError(
            f"The interrupted run trains {run.encoder}, and {settings.model.encoder} is chosen now. "
            f"Choose its model again, {remedy}."
        )
    if settings.iterations <= run.iteration:
        raise SettingsError(
            f"The interrupted run is at iteration {run.iteration} and would end at {settings.iterations}. "
            f"Raise iterations, {remedy}."
        )


def needs_target(settings: TrainSettings) -> bool:
    """Whether the mode looks at target photos."""
    return settings.mode in ("uda", "supervised")


def check_target(settings: TrainSettings, inputs: Inputs) -> None:
    """Refuse a mode that needs target photos without any, or a labelled target without other photos to measure on.

    Raises:
        InputError: there are none.
    """
    missing = missing_target(settings, inputs.target is not None)
    if missing:
        raise InputError(missing)
    if settings.mode == "supervised" and inputs.validation is None:
        raise InputError(
            "Mode 'supervised' learns from the target's labels: choose other labelled photos to measure on."
        )


def missing_target(settings: TrainSettings, has_target: bool) -> str | None:
    """Why settings cannot work without a target project; None if they can, or if one is chosen."""
    if has_target or not needs_target(settings):
        return None
    other = "switch Adaptation off (mode: source-only)" if settings.mode == "uda" else "set mode: source-only"
    return (
        f"Mode '{settings.mode}' needs target photos, and no target project is chosen. Choose one in step Photos "
        f"(input.target), or {other}."
    )
