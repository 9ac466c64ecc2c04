"""Train HRDA as an app: a run from three projects to an experiment in Team Files."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from supervisely import Bitmap, ObjClass, OpenMode, Project, ProjectMeta, logger
from supervisely.nn.utils import ModelSource

from common.data.choice import BACKGROUND, RESERVED
from common.data.project import ProjectError
from common.hrda import ModelSettings, SettingsError, load_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.prediction.runtime import RuntimeUnavailableError, export_checkpoint, require_exporter
from common.hrda.settings import SHAPING
from common.web.guide import add_guide
from train.benchmark import Measuring, run_benchmark
from train.instance.domains import FoundDomain, InputError, check_apart, download, find, overlap_with_target, spoken
from train.leaving import Leaving, end_well
from train.page.classes import AnyShapeClassesSelector
from train.page.comparison import Comparison
from train.page.domains import DomainSelector
from train.page.gui import FRAMEWORK, HRDATrainGUI, check_target, needs_target, require_fit
from train.page.history import RunHistory
from train.page.model import HRDAModelSelector
from train.page.monitor import Monitor, MonitorCard
from train.page.previews import ROUTE, picture_file
from train.page.result import ROUTE as ERRORS_ROUTE
from train.page.result import ResultCard, error_picture
from train.page.settings import SettingsSelector
from train.page.start import StartCard
from train.process import ProcessWatch, run_in_process
from train.run.comparison import require_comparable
from train.run.domains import Domains, uses_labelled_target
from train.run.folder import RunFolder, resumable
from train.run.readers import TensorBoardScalars, shown
from train.run.request import RunRequest
from train.run.state import RunResult, TrainingError, TrainingState
from train.sdk.app import DomainTrainApp, Refused, Split, SplitItem
from train.sdk.benchmark import BenchmarkError, BenchmarkReport, TrainedModel
from train.settings.training import DEFAULT_YAML, TrainSettings

MODELS = Path(__file__).with_name("models.json")
APP_OPTIONS = Path(__file__).with_name("app_options.yaml")
PHOTOS_NOTE = "photos.json"
"""What lies in the folders of photos, so that a run that is continued need not download them again."""


class HRDATrainApp(DomainTrainApp):
    """The app Train HRDA."""

    def __init__(self) -> None:
        parts = {
            "TrainGUI": HRDATrainGUI,
            "InputSelector": DomainSelector,
            "ModelSelector": HRDAModelSelector,
            "ClassesSelector": AnyShapeClassesSelector,
            "HyperparametersSelector": SettingsSelector,
            "TrainingProcess": StartCard,
            "TrainingLogs": MonitorCard,
            "TrainingArtifacts": ResultCard,
        }
        self._stop = threading.Event()
        self._found: dict[str, FoundDomain] = {}
        self._continues = False
        self._watch = ProcessWatch()
        self._comparison: Comparison | None = None
        super().__init__(FRAMEWORK, str(MODELS), str(DEFAULT_YAML), str(APP_OPTIONS), parts)
        self.leaving = Leaving(lambda: self.has_work_left, self.save_and_leave)
        self.start(self.train)
        self.export_onnx(export_best)
        self.gui.training_process.stop_button.click(self.stop)
        self.gui.training_artifacts.compare_button.click(lambda: self._answer_comparison(wanted=True))
        self.gui.training_artifacts.end_button.click(lambda: self._answer_comparison(wanted=False))
        self.gui.connect_cards()

        @self.server.post("/stop_training")
        def stop_training() -> dict[str, str]:
            """End the training after the current iteration; what is trained is saved and uploaded."""
            if not self.gui.is_training:
                raise Refused("No training is running that could be stopped: see /train_status.", 409)
            self.stop()
            return {"result": "the training ends after this iteration"}

        add_guide(self.server)

        @self.server.get(f"/{ROUTE}/{{iteration}}/{{name}}")
        def preview(iteration: str, name: str) -> FileResponse:
            """A picture of a validation."""
            path = picture_file(self.gui.run_folder / "previews", iteration, name)
            if path is None:
                raise Refused("There is no such picture: the page names those that there are.", 404)
            return FileResponse(path, headers={"Cache-Control": "no-cache"})

        @self.server.get(f"/{ERRORS_ROUTE}/{{name}}")
        def errors(name: str) -> FileResponse:
            """A validation photo with its errors."""
            path = error_picture(RunFolder(self.gui.run_folder).errors, name)
            if path is None:
                raise Refused("There is no such picture: the page names those that there are.", 404)
            return FileResponse(path, headers={"Cache-Control": "no-cache"})

    def trouble(self) -> str | None:
        """Why the app should be started anew, for a monitor; None while all is well."""
        return self._watch.trouble()

    def stop(self) -> None:
        """Have the running training save, and upload what it has."""
        self._stop.set()
        self.gui.training_process.show_stopping()

    def save_and_leave(self) -> None:
        """Stop, upload and end the app."""
        super().save_and_leave()
        self._answer_comparison(wanted=False)
        self.stop()

    @property
    def classes(self) -> list[str]:
        """The chosen classes in the project's order, without the background."""
        return [name for name in super().classes if name not in RESERVED]

    @property
    def folders(self) -> dict[str, Path]:
        """Where the photos of each domain lie during a run."""
        work_dir = Path(self.work_dir)
        return {
            "source": Path(self.project_dir),
            "target": work_dir / "target",
            "validation": work_dir / "validation",
            "labelled_target": work_dir / "labelled_target",
        }

    def begin_work(self) -> None:
        """Forget the stop of an earlier training."""
        self._stop.clear()

    def linger(self, *, somebody_watches: bool) -> None:
        """Compare with a run without target photos, at once where that was asked for, or while somebody may ask."""
        if self._comparison is not None:
            at_once = self.gui.training_process.compare_checkbox.is_checked()
            self._comparison.linger(self.remote_dir, at_once=at_once, somebody_watches=somebody_watches)

    def _answer_comparison(self, *, wanted: bool) -> None:
        if self._comparison is not None:
            self._comparison.answer(wanted=wanted)

    def uploaded(self) -> None:
        """Forget the run, which needs no continuing."""
        end_well()
        shutil.rmtree(self.gui.run_folder, ignore_errors=True)

    def given_up(self) -> None:
        """Offer to continue what was interrupted."""
        self.gui.offer_to_continue()

    def collect_data(self) -> tuple[Split, Split]:
        """Download what the run needs of the domains.

        Raises:
            Refused: settings or domains cannot work, or the training is stopped meanwhile.
        """
        try:
            settings = self.run_settings()
            self.gui.training_process.chosen_devices(settings)
            self._continues = self.gui.wants_to_continue
            self._check_interrupted(settings)
            inputs = self.gui.input_selector.get_inputs()
            if self.gui.training_process.compare_checkbox.is_checked():
                require_comparable(settings, inputs.validation is not None)
            check_target(settings, inputs)
            found = find(self.api, inputs)
            check_apart(found, settings.mode)
            if self.gui.hyperparameters_selector.is_export_required():
                require_exporter()
        except (SettingsError, InputError, RuntimeUnavailableError) as error:
            raise Refused(str(error)) from error
        overlap = overlap_with_target(found)
        if overlap:
            logger.warning(overlap)
        if not needs_target(settings) and "validation" in found:
            found.pop("target", None)
        if not uses_labelled_target(settings):
            found.pop("labelled_target", None)
        self._found = found
        for role, domain in found.items():
            self._fetch(role, domain)
        learnt_from = "target" if settings.mode == "supervised" else "source"
        compared_on = "validation" if "validation" in found else "target"
        return tuple(
            Split(found[role].project.id, split_items(self.folders[role])) for role in (learnt_from, compared_on)
        )

    def kept_folders(self) -> Sequence[Path]:
        """Photos and curves of the run that is to go on."""
        if not self.gui.wants_to_continue or resumable(self.gui.run_folder) is None:
            return []
        return [*self.folders.values(), Path(self.log_dir)]

    def _check_interrupted(self, settings: TrainSettings) -> None:
        interrupted = resumable(self.gui.run_folder)
        if not self._continues:
            # The training of an app that was killed may still be saving there.
            RunFolder(self.gui.run_folder).remove()
        elif interrupted is None:
            raise SettingsError('There is no interrupted run any more. Untick "Continue the interrupted run".')
        else:
            require_fit(interrupted, settings, self.classes)

    def _fetch(self, role: str, domain: FoundDomain) -> None:
        folder = self.folders[role]
        note, content = folder / PHOTOS_NOTE, {"datasets": sorted(dataset.id for dataset in domain.datasets.values())}
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == content:
            logger.info(f"The {spoken(role)} photos are here from the interrupted run.")
            return
        shutil.rmtree(folder, ignore_errors=True)
        use_cache = self.gui.input_selector.get_cache_value()
        message = f"Downloading {spoken(role)} photos of '{domain.project.name}'"
        with self.progress_bar_main(message=message, total=domain.images_count) as bar:
            self.progress_bar_main.show()

            def arrived(count: int) -> None:
                if self._stop.is_set():
                    raise Refused("Stopped before the training began. Nothing was trained.")
                bar.update(count)

            download(self.api, domain, folder, use_cache=use_cache, progress=arrived)
        note.write_text(json.dumps(content), encoding="utf-8")

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
        """Train on the downloaded photos, in a process of its own.

        Returns:
            What the SDK uploads: checkpoints, the run's settings as the one config, and the scores.

        Raises:
            Refused: photos, labels or settings cannot be trained with, or the training cannot go on.
        """
        out = self.gui.run_folder
        folders = {role: str(folder) for role, folder in self.folders.items() if role in self._found}
        domains = Domains(
            folders["source"], folders.get("target"), folders.get("validation"), folders.get("labelled_target")
        )
        state = TrainingState()
        try:
            settings, start = self.run_settings(), self.model_files.get("checkpoint")
            if start is not None:
                settings = with_network_of(settings, Path(start))
            history = RunHistory(out)
            card, show_status = self.gui.training_logs, self.gui.show_status
            with Monitor(card, show_status, self._stop, history, self.classes) as monitor:
                state.subscribe(monitor)
                state.subscribe(TensorBoardScalars(Path(self.log_dir)))
                request = RunRequest(
                    settings,
                    domains,
                    out,
                    classes=tuple(self.classes),
                    device=self.gui.training_process.chosen_devices(settings),
                    resume=self._continues,
                    init_checkpoint=start and Path(start),
                )
                result = run_in_process(request, state=state, stop=self._stop, watch=self._watch)
        except (ProjectError, TrainingError) as error:
            raise Refused(self._without_folders(str(error))) from error
        except (SettingsError, CheckpointError) as error:
            raise Refused(str(error)) from error
        if result.iteration == 0:
            raise Refused("Stopped before the first iteration. Nothing was trained.")
        self._comparison = Comparison(
            self.api,
            self.team_id,
            self.gui.training_artifacts,
            self._stop,
            request,
            result,
            self._without_folders,
            show_status,
        )
        self._comparison.show()
        self._comparison.hand_over(Path(self.output_dir))
        # As the run has them, with what the encoder started from.
        config = Path(shutil.copyfile(RunFolder(out).settings, out / "config.yaml"))
        return {
            "model_name": settings.model.encoder,
            "task_type": self.task_type,
            "checkpoints": [str(path) for path in result.checkpoints],
            "best_checkpoint": result.best.name,
            "model_files": {"config": str(config)},
            "evaluation_metrics": scores_of_served_model(result),
            "primary_metric": "mIoU",
        }

    def measure(self, trained: TrainedModel) -> BenchmarkReport:
        """Let the SDK's benchmark measure the best checkpoint on the validation photos.

        Raises:
            BenchmarkError: there is no result, or nothing labelled to measure on.
        """
        settings, validation = self.run_settings(), self.gui.input_selector.get_inputs().validation
        if validation is None:
            raise BenchmarkError("There is no report: without labelled photos nothing can be measured.")
        measuring = Measuring(
            project_id=validation.project_id,
            classes=self.classes,
            device=self.device or "cpu",
            unchosen=settings.data.unchosen,
            inference=settings.inference.to_dict(),
        )
        bars = {"progress": self.progress_bar_main, "progress_secondary": self.progress_bar_secondary}
        return run_benchmark(self.api, trained, measuring, stop=self._stop, **bars)

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
    return replace(settings, model=replace(settings.model, **{name: getattr(stored, name) for name in SHAPING}))


def export_best(experiment: Mapping[str, Any]) -> str:
    """Write the network of an experiment's best checkpoint as ONNX; the path of the file."""
    checkpoint = Path(experiment["best_checkpoint"])
    path = checkpoint.parents[1] / "export" / f"{checkpoint.stem}.onnx"
    path.parent.mkdir(exist_ok=True)
    export_checkpoint(checkpoint, path)
    return str(path)


def scores_of_served_model(result: RunResult) -> dict[str, float]:
    """Scores, of those that are shown, of the model that the best checkpoint is served with; empty if nothing was
    measured."""
    model = "teacher" if load_checkpoint(result.best).serve_teacher else "student"
    return shown(
        {
            name.removeprefix(f"{model}/"): value
            for name, value in result.metrics.items()
            if name.startswith(f"{model}/")
        }
    )
