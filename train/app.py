"""Train HRDA as an app: the page's parts, and a run from three projects to an experiment in Team Files."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import Response
from supervisely import Bitmap, ObjClass, OpenMode, Project, ProjectMeta, logger
from supervisely.nn.utils import ModelSource

from common.data.project import BACKGROUND, ProjectError
from common.hrda import ModelSettings, SettingsError, load_checkpoint
from common.hrda.checkpoints import CheckpointError
from common.hrda.settings import closest
from train.cards import AnyInstanceTrainingLogs, SettingsSelector
from train.engine import Domains, RunResult, TrainingError, run
from train.inputs import FoundDomain, InputError, Inputs, download, find, overlap_with_target
from train.page.classes import DRAWABLE, AnyShapeClassesSelector
from train.page.domains import DomainSelector
from train.readers import TensorBoardScalars
from train.sdk import AnyDeviceTrainingProcess, DomainTrainApp, DomainTrainGUI, Refused, Split, SplitItem
from train.settings import DEFAULT_YAML, TrainSettings
from train.state import Change, CheckpointWritten, Progressed, Said, Started, TrainingState, Validated

FRAMEWORK = "HRDA"
MODELS = Path(__file__).with_name("models.json")
APP_OPTIONS = Path(__file__).with_name("app_options.yaml")


class HRDATrainGUI(DomainTrainGUI):
    """The page of Train HRDA."""

    def check_state(self, app_state: dict[str, Any]) -> None:
        """Refuse settings, classes or a model that do not exist, and a mode without the domain that it needs.

        Raises:
            SettingsError, InputError, ValueError: with what to do.
        """
        text = app_state.get("hyperparameters")
        if text is not None and not isinstance(text, str):
            raise SettingsError(f"hyperparameters must be YAML text. Received: {text!r}.")
        settings = TrainSettings.from_yaml(
            self.hyperparameters_selector.get_hyperparameters() if text is None else text
        )
        check_target(settings, self.read_input(app_state.get("input")))
        self._check_model(app_state.get("model"))
        self._check_classes(app_state.get("classes"))
        name = app_state.get("experiment_name")
        if name and set("\\/") & set(name):
            raise ValueError(f"experiment_name must have no slashes: it names a folder. Received: {name!r}.")

    def read_input(self, state: Any) -> Inputs:
        """The three domains of an app state's `input`."""
        return Inputs.from_state(state, self.project_id)

    def check_input(self, inputs: Inputs) -> None:
        """Look the three domains up on the instance."""
        find(self.api, inputs)

    def _check_model(self, model: Any) -> None:
        source = model.get("source") if isinstance(model, Mapping) else None
        if source == ModelSource.PRETRAINED:
            name, names = model.get("model_name"), [entry["meta"]["model_name"] for entry in self.models]
            if name not in names:
                raise ValueError(f"There is no model '{name}': {closest(str(name), names)}")
        elif source == ModelSource.CUSTOM:
            task_id, checkpoint = model.get("task_id"), model.get("checkpoint")
            experiment = self.model_selector.experiment_selector.get_selected_row_by_task_id(task_id)
            if experiment is None:
                raise ValueError(f"This team had no {FRAMEWORK} experiment of task {task_id} when the app was started.")
            if checkpoint not in experiment.checkpoints_names:
                hint = closest(str(checkpoint), experiment.checkpoints_names)
                raise ValueError(f"The experiment of task {task_id} has no checkpoint '{checkpoint}': {hint}")
        else:
            raise ValueError(
                f'model must look like {{"source": "{ModelSource.PRETRAINED}", "model_name": "mit_b0"}} or '
                f'{{"source": "{ModelSource.CUSTOM}", "task_id": 1, "checkpoint": "best.pth"}}. Received: {model!r}.'
            )

    def _check_classes(self, classes: Any) -> None:
        every = [obj_class for obj_class in self.project_meta.obj_classes if obj_class.name != BACKGROUND]
        drawable = [obj_class for obj_class in every if obj_class.geometry_type in DRAWABLE]
        if not isinstance(classes, list) or not classes:
            raise ValueError(f"classes must be a list of class names of the source project. Received: {classes!r}.")
        for given in classes:
            if given in {key for obj_class in drawable for key in (obj_class.name, obj_class.sly_id)}:
                continue
            for obj_class in every:
                if given in (obj_class.name, obj_class.sly_id):
                    shape = obj_class.geometry_type.geometry_name()
                    raise ValueError(f"The class '{obj_class.name}' is of shape {shape}, which covers no area.")
            names = [obj_class.name for obj_class in drawable]
            raise ValueError(f"The source project has no class '{given}': {closest(str(given), names)}")


class HRDATrainApp(DomainTrainApp):
    """The app Train HRDA."""

    def __init__(self) -> None:
        parts = {
            "TrainGUI": HRDATrainGUI,
            "InputSelector": DomainSelector,
            "ClassesSelector": AnyShapeClassesSelector,
            "HyperparametersSelector": SettingsSelector,
            "TrainingProcess": AnyDeviceTrainingProcess,
            "TrainingLogs": AnyInstanceTrainingLogs,
        }
        super().__init__(FRAMEWORK, str(MODELS), str(DEFAULT_YAML), str(APP_OPTIONS), parts)
        self._stop = threading.Event()
        self._found: dict[str, FoundDomain] = {}
        self.start(self.train)

        @self.server.post("/stop_training")
        def stop_training(response: Response) -> dict[str, str]:
            """End the training after the current iteration; what is trained is saved and uploaded."""
            if not self.gui.is_training:
                response.status_code = 409
                return {"detail": "No training is running."}
            self._stop.set()
            return {"result": "the training ends after this iteration"}

    @property
    def classes(self) -> list[str]:
        """The chosen classes in the project's order, without the background."""
        return [name for name in super().classes if name != BACKGROUND]

    @property
    def folders(self) -> dict[str, Path]:
        """Where the photos of each domain lie during a run."""
        work_dir = Path(self.work_dir)
        return {
            "source": Path(self.project_dir),
            "target": work_dir / "target",
            "validation": work_dir / "validation",
        }

    def collect_data(self) -> tuple[Split, Split]:
        """Download what the mode needs of the three domains.

        Raises:
            Refused: settings or domains cannot work.
        """
        self._stop.clear()
        try:
            settings = self.run_settings()
            inputs = self.gui.input_selector.get_inputs()
            check_target(settings, inputs)
            found = find(self.api, inputs)
        except (SettingsError, InputError) as error:
            raise Refused(str(error)) from error
        overlap = overlap_with_target(found)
        if overlap:
            logger.warning(overlap)
        if not needs_target(settings):
            found.pop("target", None)
        self._found = found
        for role, domain in found.items():
            message = f"Downloading {role} photos of '{domain.project.name}'"
            with self.progress_bar_main(message=message, total=domain.images_count) as bar:
                self.progress_bar_main.show()
                use_cache = self.gui.input_selector.get_cache_value()
                download(self.api, domain, self.folders[role], use_cache=use_cache, progress=bar.update)
        learnt_from = "target" if settings.mode == "supervised" else "source"
        return tuple(
            Split(found[role].project.id, split_items(self.folders[role])) for role in (learnt_from, "validation")
        )

    def run_settings(self) -> TrainSettings:
        """The settings of the page, with the network that the model card says.

        Raises:
            SettingsError: the text cannot be read, or asks for what does not exist.
        """
        settings = TrainSettings.from_yaml(self.hyperparameters_yaml)
        if self.model_source == ModelSource.CUSTOM:
            return settings
        if settings.model.encoder != self.model_name:
            logger.info(
                f"The chosen model {self.model_name} takes the place of {settings.model.encoder} in the settings."
            )
        return replace(settings, model=replace(settings.model, encoder=self.model_name))

    def train(self) -> dict[str, Any]:
        """Train on the downloaded photos.

        Returns:
            What the SDK uploads: checkpoints, the run's settings as the one config, and the scores.

        Raises:
            Refused: photos, labels or settings cannot be trained with, or the training has diverged.
        """
        out = Path(self.work_dir) / "run"
        target = str(self.folders["target"]) if self.folders["target"].is_dir() else None
        domains = Domains(str(self.folders["source"]), target, str(self.folders["validation"]))
        state = TrainingState()
        state.subscribe(PageProgress(self))
        state.subscribe(TensorBoardScalars(Path(self.log_dir)))
        try:
            settings, start = self.run_settings(), self.model_files.get("checkpoint")
            if start is not None:
                settings = with_network_of(settings, Path(start))
            result = run(
                settings,
                domains,
                out,
                classes=self.classes,
                device=self.device or "auto",
                state=state,
                stop=self._stop,
                init_checkpoint=start and Path(start),
            )
        except ProjectError as error:
            raise Refused(self._without_folders(str(error))) from error
        except (SettingsError, CheckpointError, TrainingError) as error:
            raise Refused(str(error)) from error
        config = out / "config.yaml"
        config.write_text(settings.to_yaml(), encoding="utf-8")
        return {
            "model_name": settings.model.encoder,
            "task_type": self.task_type,
            "checkpoints": [str(path) for path in result.checkpoints],
            "best_checkpoint": result.best.name,
            "model_files": {"config": str(config)},
            "evaluation_metrics": scores_of_served_model(result),
            "primary_metric": "mIoU",
        }

    def _without_folders(self, sentence: str) -> str:
        # Folders of the agent mean nothing to whoever chose the projects.
        for role, domain in self._found.items():
            sentence = sentence.replace(str(self.folders[role]), f"project '{domain.project.name}'")
        return sentence

    def create_model_meta(self, task_type: str) -> ProjectMeta:
        """The classes that the model tells apart, by index: the background first, all drawn as bitmaps."""
        background = ObjClass(BACKGROUND, Bitmap, color=[0, 0, 0])
        chosen = [self.project_meta.get_obj_class(name).clone(geometry_type=Bitmap) for name in self.classes]
        return ProjectMeta(obj_classes=[background, *chosen])


class PageProgress:
    """Shows a run on the page and in `/train_status`."""

    _SECONDS_BETWEEN_UPDATES = 1.0

    def __init__(self, app: HRDATrainApp) -> None:
        self._bar_widget = app.progress_bar_main
        self._show_status = app.gui.show_status
        self._bar: Any = None
        self._score = ""
        self._shown_at = 0.0

    def __call__(self, state: TrainingState, change: Change) -> None:
        """Show a change."""
        match change:
            case Started(_, total_iterations):
                self._bar = self._bar_widget(message="Training", total=total_iterations)
                self._bar_widget.show()
            case Progressed(iteration, scalars):
                self._show_progress(iteration, state.total_iterations, scalars)
            case Validated(iteration, metrics):
                score = max(metrics[f"{model}/mIoU"] for model in ("student", "teacher"))
                self._score = f". mIoU {100 * score:.1f}% at iteration {iteration}"
                logger.info(f"Validation at iteration {iteration}", extra={"metrics": dict(metrics)})
            case CheckpointWritten(path):
                logger.info(f"Saved {Path(path).name}")
            case Said(text):
                logger.info(text)

    def _show_progress(self, iteration: int, total: int, scalars: Mapping[str, float]) -> None:
        self._bar.update(iteration - self._bar.n)
        now = time.monotonic()
        if now - self._shown_at >= self._SECONDS_BETWEEN_UPDATES or iteration == total:
            self._shown_at = now
            losses = ", ".join(f"{name} {value:.3g}" for name, value in scalars.items())
            self._show_status(f"Training: iteration {iteration} of {total}. {losses}{self._score}", "info")


def needs_target(settings: TrainSettings) -> bool:
    """Whether the mode looks at target photos."""
    return settings.mode in ("uda", "supervised")


def check_target(settings: TrainSettings, inputs: Inputs) -> None:
    """Refuse a mode that needs target photos without any.

    Raises:
        InputError: there are none.
    """
    if needs_target(settings) and inputs.target is None:
        raise InputError(
            f"Mode '{settings.mode}' needs target photos, and no target project is chosen. Choose one (input.target), "
            "or set mode: source-only."
        )


def split_items(folder: Path) -> list[SplitItem]:
    """The images of a downloaded project."""
    return [
        SplitItem(dataset.name, name, dataset.get_item_info(name).id)
        for dataset in Project(str(folder), OpenMode.READ).datasets
        for name in dataset.get_items_names()
    ]


def with_network_of(settings: TrainSettings, checkpoint: Path) -> TrainSettings:
    """`settings` with encoder and decoder of a checkpoint, so that its weights fit.

    Raises:
        CheckpointError: it cannot be read.
    """
    stored = ModelSettings.from_dict(load_checkpoint(checkpoint).settings["model"])
    names = ("encoder", "decoder_channels", "attention_channels", "attention_classwise")
    return replace(settings, model=replace(settings.model, **{name: getattr(stored, name) for name in names}))


def scores_of_served_model(result: RunResult) -> dict[str, float]:
    """Scores of the model that the best checkpoint is served with; empty if nothing was measured."""
    model = "teacher" if load_checkpoint(result.best).serve_teacher else "student"
    return {
        name.removeprefix(f"{model}/"): value for name, value in result.metrics.items() if name.startswith(f"{model}/")
    }
