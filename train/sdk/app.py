"""The app as the SDK sees it: every reach into names of `TrainApp` that the SDK does not promise lies here.

The SDK's `TrainApp` knows one project, which it splits. This module turns that into hooks that `train/app.py` fills in
with promised names only: which parts the page has, how the photos get here, what the splits are. Others lie beside it:
the page's own reaches in `train/sdk/gui.py`, those for the model benchmark in `train/sdk/benchmark.py`, those for how a
training begins and ends in `train/sdk/starting.py`. The SDK is pinned; `REACHES` lists what is overridden or used, and
a test fails when another version of the SDK changes one of them.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import supervisely.nn.training.gui.gui as gui_module
import supervisely.nn.training.train_app as train_app_module
from supervisely import is_production, logger
from supervisely.app.fastapi.websocket import WebsocketManager
from supervisely.nn.training import resume_manifest

from common.replacing import replaced
from common.web.browsers import tell_each_alone
from train.sdk.gui import DomainTrainGUI, Refused
from train.sdk.starting import StartedTrainApp

__all__ = ["DomainTrainApp", "DomainTrainGUI", "Refused", "Split", "SplitItem"]

REACHES = {
    # Overridden
    "TrainApp._prepare": "several domains are downloaded; the SDK would split one project and drop its unchosen labels",
    "TrainApp._prepare_working_dir": "it empties the folder; photos that are needed again are kept",
    "TrainApp._workflow_input": "the other domains belong to the workflow's picture too",
    "TrainApp._has_splits_selector": "there are splits, though no card to choose them on",
    "TrainApp._get_train_val_splits_for_app_state": "the app state names the domains instead of a split",
    "TrainApp._postprocess_splits": "the validation images lie in another project",
    "TrainApp._get_resume_app_state": "its 'input' would name the source only",
    "TrainApp._wrapped_resume_upload": "the same button retries an upload without a restart of the app",
    "TrainApp._finalize": "an upload that breaks off is tried again before the app ends",
    "TrainApp._set_training_output": "the result card shows the best checkpoint",
    "TrainApp._export_weights": "the classes beside an export are the network's, the background included",
    # Called or read
    "TrainApp._download_model": "last step of the preparation",
    "TrainApp._read_project": "sets sly_project, which exports and reports read",
    "TrainApp._update_project_custom_data": "notes the collections in the source project",
    "TrainApp._train_split": "length and items are read when the experiment is described and a crashed upload resumed",
    "TrainApp._val_split": "as _train_split",
    "TrainApp._train_collection_id": "is written into experiment_info.json",
    "TrainApp._val_collection_id": "as _train_collection_id",
    "TrainApp._resume_ctx": "what a second try of the upload goes on from",
    "TrainApp._is_resume_upload": "whether the app was started again after a failed upload",
}
"""Private names of the SDK, and why they are needed."""

RETRY_PAUSES_S = (10.0, 60.0, 300.0)
"""Pauses before an upload is tried again when nobody sits at the page."""


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


class DomainTrainApp(StartedTrainApp):
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
        self._retry = threading.Event()
        self._retry_is_offered = False
        self.remote_dir: str | None = None
        """Folder of the experiment in Team Files, once it is uploaded."""
        cards = {name: part for name, part in parts.items() if name != "TrainGUI"}
        with replaced(gui_module, **cards), replaced(train_app_module, TrainGUI=parts["TrainGUI"]):
            super().__init__(framework_name, models, hyperparameters, app_options)
        self.gui.finish()
        tell_each_alone(WebsocketManager())
        if not self._is_resume_upload:
            self.gui.training_process.resume_button.click(self._wrapped_resume_upload)

    def collect_data(self) -> tuple[Split, Split]:
        """Download the photos, the source to `self.project_dir`; return what is learnt from and what measured on."""
        raise NotImplementedError

    def uploaded(self) -> None:
        """The experiment is in Team Files; the app is about to end."""

    def linger(self, *, somebody_watches: bool) -> None:
        """The experiment is in Team Files: what was asked for, or is asked for at the page now, can still be done.
        Raises nothing."""

    def kept_folders(self) -> Sequence[Path]:
        """Folders below `work_dir` that the next training needs."""
        return []

    def save_and_leave(self) -> None:
        """End the app as soon as what is trained is uploaded."""
        self.is_leaving = True
        self._retry.set()

    def get_app_state(self, experiment_info: dict | None = None) -> dict:
        """The app state with which this run can be repeated, its domains included."""
        state = super().get_app_state(experiment_info)
        return state | {
            "model": self.gui.model_selector.to_state() or state["model"],
            "input": self.gui.input_selector.get_inputs().to_state(),
            "device": self.device,
            "compare": self.gui.training_process.compare_checkbox.is_checked(),
        }

    def _prepare_working_dir(self) -> None:
        aside = Path(self.work_dir).with_name("kept")
        shutil.rmtree(aside, ignore_errors=True)
        kept = [folder for folder in self.kept_folders() if folder.is_dir()]
        for folder in kept:
            aside.mkdir(exist_ok=True)
            folder.rename(aside / folder.name)
        super()._prepare_working_dir()
        for folder in kept:
            shutil.rmtree(folder, ignore_errors=True)
            (aside / folder.name).rename(folder)

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
        for domain in (inputs.target, inputs.validation, inputs.labelled_target):
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

    def _get_resume_app_state(self, experiment_info: dict) -> dict:
        state = super()._get_resume_app_state(experiment_info)
        return state | {"input": self.gui.input_selector.get_inputs().to_state()}

    def _wrapped_resume_upload(self) -> None:
        if self._retry_is_offered:
            self._retry.set()
            return
        with self._at_work("The upload ended with an error"):
            super()._wrapped_resume_upload()

    def _finalize(self, experiment_info: dict, resume: bool = False) -> None:
        try:
            self._finalize_patiently(experiment_info, resume)
            if not self.is_leaving:
                self.linger(somebody_watches=self._somebody_watches)
            self.uploaded()
        finally:
            # From here on the SDK ends the app by itself.
            self._is_finalized, self.has_work_left = True, False

    def _finalize_patiently(self, experiment_info: dict, resume: bool) -> None:
        pauses = iter(RETRY_PAUSES_S)
        while True:
            try:
                super()._finalize(experiment_info, resume)
            except Exception as error:
                manifest = resume_manifest.load(self.work_dir, self.task_id)
                if manifest is None or not self._wait_for_retry(error, pauses):
                    raise
                self._resume_ctx, experiment_info, resume = manifest, manifest["experiment_info"], True
                resume_manifest.bump_attempt(self.work_dir)
            else:
                return

    def _wait_for_retry(self, error: Exception, pauses: Iterator[float]) -> bool:
        is_patient = self._somebody_watches and not self.is_leaving
        pause = None if is_patient else next(pauses, None)
        if pause is None and not is_patient:
            return False
        logger.warning(f"The upload broke off: {error!r}", exc_info=True)
        place = f"All files lie in {self.output_dir} on the machine of this app."
        following = "Press Retry upload once the instance answers." if is_patient else f"Next try in {pause:.0f} s."
        sentence = f"The upload broke off ({type(error).__name__}). Nothing is lost. {place} {following}"
        self._retry.clear()
        self._retry_is_offered = True
        self.gui.training_process.offer_retry(sentence)
        self.gui.show_status(sentence, "warning")
        self._retry.wait(pause)
        self._retry_is_offered = False
        self.gui.training_process.offer_retry(None)
        return True

    def _export_weights(self, experiment_info: dict) -> tuple[dict[str, str], str | None]:
        exported, classes = super()._export_weights(experiment_info)
        if classes is not None:
            names = [obj_class.name for obj_class in self.create_model_meta(self.task_type).obj_classes]
            Path(classes).write_text(json.dumps(dict(enumerate(names))), encoding="utf-8")
        return exported, classes

    def _set_training_output(
        self, experiment_info: dict, remote_dir: str, file_info: Any, mb_eval_report: Any = None
    ) -> None:
        super()._set_training_output(experiment_info, remote_dir, file_info, mb_eval_report)
        self.remote_dir = remote_dir
        self.gui.training_artifacts.show_result(
            experiment_info["experiment_name"],
            experiment_info["best_checkpoint"],
            experiment_info.get("evaluation_metrics") or {},
        )
        if self.gui.hyperparameters_selector.is_export_required() and not experiment_info.get("export"):
            # The SDK says so in the log only.
            self.gui.show_status(
                "The experiment is in Team Files, without the ONNX file: the log says why it could not be written. "
                "Download the checkpoint and export it: python -m serve export --model best.pth --output best.onnx",
                "warning",
            )
