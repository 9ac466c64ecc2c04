"""The step of the SDK's app that measures the trained model: every reach into names for it lies here.

The SDK would run the serving app's class in this process and on the source project. Here the hook `measure` does it,
on the validation project, and whatever goes wrong in it is a sentence on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisely import ProjectMeta, logger
from supervisely.api.file_api import FileInfo
from supervisely.nn.training.train_app import TrainApp

REACHES = {
    # Overridden
    "TrainApp._run_model_benchmark": "measured on the validation project, by the serving app in its own process",
    "TrainApp._convert_and_split_gt_project": "labels of any shape are drawn; no project is converted for it",
    "TrainApp._generate_experiment_info": "scores of the training are kept beside those of the benchmark",
    # Called or read
    "TrainApp._get_eval_results_dir_name": "where reports of the team lie",
    "TrainApp._postprocess_splits": "which images are measured on",
    "TrainApp._train_split": "the report says how many photos were learnt from",
    "TrainApp._benchmark_dir_name": "what lies in this folder is not uploaded when an upload is resumed",
    "TrainApp._api": "the instance",
}
"""Private names of the SDK, and why they are needed."""


class BenchmarkError(RuntimeError):
    """The benchmark has no result. The text says why, for a person."""


@dataclass(frozen=True)
class TrainedModel:
    """What is measured on which photos, and where the results go."""

    checkpoint: Path
    """The best checkpoint on this machine."""
    remote_checkpoint: FileInfo
    """The same in Team Files, for the report."""
    image_ids: Sequence[int]
    """The validation photos, of any datasets of one project."""
    folder: Path
    """Local folder for what is downloaded and written."""
    remote_dir: str
    """Folder in Team Files for evaluation and report."""
    train_info: Mapping[str, Any] = field(default_factory=dict)
    """What the report says of the training: `app_session_id` and `images_count`."""


@dataclass(frozen=True)
class BenchmarkReport:
    """A finished benchmark."""

    report: FileInfo
    """The report's page; its id is the report's."""
    link: FileInfo
    """The file that opens it from Team Files."""
    metrics: dict[str, float]
    """The SDK's scores by name, from 0 to 1."""
    primary_metric: str
    """The name of the score to compare models by."""
    note: str = ""
    """What a person should know before reading the report, or nothing."""


class BenchmarkedTrainApp(TrainApp):
    """A training app whose model is measured by the hook `measure`."""

    def measure(self, trained: TrainedModel) -> BenchmarkReport:
        """Measure a trained model, which is in Team Files already.

        Raises:
            BenchmarkError: there is no result; the text says why, for a person.
        """
        raise NotImplementedError

    def _run_model_benchmark(
        self,
        local_artifacts_dir: str,
        remote_artifacts_dir: str,
        experiment_info: dict,
        splits_data: dict,
        model_meta: ProjectMeta,
        gt_project_id: int | None = None,
    ) -> tuple[FileInfo | None, FileInfo | None, int | None, dict[str, float], str | None]:
        card = self.gui.training_artifacts
        try:
            checkpoint = Path(experiment_info["best_checkpoint"])
            remote = f"{remote_artifacts_dir.rstrip('/')}/checkpoints/{checkpoint.name}"
            result = self.measure(
                TrainedModel(
                    checkpoint,
                    self._api.file.get_info_by_path(self.team_id, remote),
                    splits_data["val"]["images_ids"],
                    Path(local_artifacts_dir) / self._benchmark_dir_name,
                    self._get_eval_results_dir_name(),
                    {
                        "app_session_id": self.task_id if self.task_id > 0 else None,
                        "images_count": len(self._train_split),
                    },
                )
            )
        except BenchmarkError as error:
            logger.warning(str(error))
            card.model_benchmark_fail_text.set(str(error), "warning")
            return None, None, None, {}, None
        finally:
            self.progress_bar_main.hide()
            self.progress_bar_secondary.hide()
        if result.note:
            logger.warning(result.note)
            card.model_benchmark_fail_text.set(result.note, "warning")
            card.model_benchmark_fail_text.show()
        return result.link, result.report, result.report.id, result.metrics, result.primary_metric

    def _convert_and_split_gt_project(self, task_type: str) -> tuple[None, dict]:
        return None, self._postprocess_splits()

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
        # A score that both have is the benchmark's: it is the one in the report, and of all validation photos.
        return super()._generate_experiment_info(
            remote_dir,
            experiment_info,
            (experiment_info.get("evaluation_metrics") or {}) | (eval_metrics or {}),
            evaluation_report_id,
            evaluation_report_link,
            primary_metric_name or experiment_info.get("primary_metric"),
            export_weights or {},
        )
