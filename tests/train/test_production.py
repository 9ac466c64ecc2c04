"""The production path: what an instance is told of a training, and the way back from its saved app state."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from supervisely.nn.benchmark.comparison.model_comparison import ModelComparison
from supervisely.nn.experiments import ExperimentInfo, get_experiment_infos

from tests.train.apps import HYPERPARAMETERS, IMAGES, TRAIN_LIMIT_S, App, Instance, running_instance, started

SELECTIONS = [f"{role}_{kind}" for role in ("source", "target", "validation") for kind in ("project", "all", "tree")]
SELECTIONS += ["classes_table", "model_table", "model_tabs", "settings_editor", "form_iterations"]


@dataclass
class Run:
    """A training with its benchmark, in production mode."""

    experiment: ExperimentInfo
    output: dict[str, Any]
    """The task's output."""
    selections: dict[str, Any]
    """What was chosen on the page."""
    statuses: set[str]
    log: Path


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running_instance(tmp_path_factory.mktemp("production")) as made:
        yield made


@pytest.fixture(scope="module")
def state(instance: Instance) -> dict[str, Any]:
    state = instance.state(experiment_name="production", hyperparameters=f"# kept\n{HYPERPARAMETERS}")
    state["hyperparameters"] = state["hyperparameters"].replace("max_images: 1", "max_images: null")
    [dataset] = instance.api.dataset.get_list(instance.projects["validation"])
    state["input"]["validation"]["dataset_ids"] = [dataset.id]
    return state


@pytest.fixture(scope="module")
def run(instance: Instance, state: dict[str, Any]) -> Run:
    with started(instance, "production") as app:
        answer = app.post("train_from_api", {"app_state": state, "wait": False})
        assert answer.status_code == 200, f"{answer.text}\n{app.tail()}"
        selections, statuses = read_selections(app), set()
        deadline = time.monotonic() + TRAIN_LIMIT_S
        while app.process.poll() is None and time.monotonic() < deadline:
            try:
                statuses.add(app.status())
            except OSError:
                break
            time.sleep(0.2)
        assert app.process.wait(60) == 0, app.tail()
    [experiment] = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    output = instance.api.task.get_info_by_id(app.task_id)["meta"]["output"]
    return Run(experiment, output, selections, statuses, app.log)


def read_selections(app: App) -> dict[str, Any]:
    """State of the widgets in which a person chooses, by their ids."""
    state = app.post("sly/state").json()
    return {name: state.get(name) for name in SELECTIONS}


def test_task_output_names_experiment_and_report(run):
    told = run.output["experiment"]["data"]
    assert told["artifacts_dir"] == run.experiment.artifacts_dir
    assert told["evaluation_report_id"] == run.experiment.evaluation_report_id
    assert run.output["general"]["title"] == run.experiment.artifacts_dir, "the folder, for the task's own page"


def test_experiment_links_the_report_of_the_validation_photos(instance, run):
    report = instance.api.file.get_info_by_id(run.experiment.evaluation_report_id)
    assert report.path.startswith("/model-benchmark/")
    assert report.path.endswith("/visualizations/template.vue")
    link = f"/model-benchmark?id={report.id}"
    assert run.experiment.evaluation_report_link.endswith(link)
    assert instance.read(run.experiment, "Model Evaluation Report.lnk").read_text(encoding="utf-8") == link
    files = instance.api.file.listdir(instance.sandbox.team_id, report.path.rsplit("/", 1)[0], recursive=True)
    [overview] = [path for path in files if "markdown_overview" in path]
    local = instance.folder / "overview.md"
    instance.api.file.download(instance.sandbox.team_id, overview, str(local))
    text = local.read_text(encoding="utf-8")
    assert f'href="/projects/{instance.projects["validation"]}/datasets"' in text
    assert f"{IMAGES} images in train, {IMAGES} images in validation" in text
    assert any("benchmark" in status.lower() or "evaluation" in status.lower() for status in run.statuses)


def test_scores_of_benchmark_and_training_are_one(instance, run):
    """Both count the same pixels of the same photos: one mIoU, and the means of our scores of the classes."""
    info = json.loads(instance.read(run.experiment, "experiment_info.json").read_text(encoding="utf-8"))
    scores = info["evaluation_metrics"]
    assert info["primary_metric"] == "mIoU"
    assert scores["mIoU"] == pytest.approx((scores["iou/crack"] + scores["iou/__bg__"]) / 2, abs=1e-9)
    assert scores["mRecall"] == pytest.approx((scores["recall/crack"] + scores["recall/__bg__"]) / 2, abs=1e-9)
    assert "PixelAcc" in scores, "of the benchmark"


def test_workflow_shows_three_projects_and_what_came_of_them(instance, run):
    storage = instance.sandbox.storage
    nodes = [
        (row["direction"], json.loads(row["payload"]))
        for row in storage.all("SELECT direction, payload FROM workflow WHERE task_id=?", run.experiment.task_id)
    ]
    inputs = [node for direction, node in nodes if direction == "input"]
    version = next(node["id"] for node in inputs if node["type"] == "project_version")
    projects = {node["id"] for node in inputs if node["type"] == "project"}
    projects.add(storage.value("SELECT project_id FROM versions WHERE id=?", version))
    assert projects == set(instance.projects.values())
    outputs = {node["type"]: node["id"] for direction, node in nodes if direction == "output"}
    assert outputs["folder"] == f"{run.experiment.artifacts_dir}checkpoints"
    assert instance.api.file.get_info_by_id(outputs["file"]).name == "Model Evaluation Report.lnk"


def test_nothing_that_the_sdk_asked_for_was_missing(run):
    log = run.log.read_text(encoding="utf-8", errors="replace")
    assert "does not know the method" not in log
    assert '"level": "error"' not in log


def test_saved_app_state_brings_the_same_page_back(instance, state, run):
    """As the platform starts the app again from an experiment."""
    saved = json.loads(instance.read(run.experiment, "app_state.json").read_text(encoding="utf-8"))
    assert saved["hyperparameters"] == state["hyperparameters"], "to the letter, comments included"
    assert saved["options"]["model_benchmark"]["enable"] is True
    with started(instance, "production", name="again", **{"modal.state.guiState": json.dumps(saved)}) as app:
        assert app.status() == "All steps are valid.", app.tail()
        again = read_selections(app)
    assert again == run.selections
    # Not the defaults of the page, which would be the same without any app state.
    assert [dataset["id"] for dataset in again["validation_tree"]["value"]] == saved["input"]["validation"][
        "dataset_ids"
    ]
    assert again["target_project"]["value"] == instance.projects["target"]
    assert (again["classes_table"]["checkboxes"], saved["classes"]) == ([True, False], ["crack"])
    assert again["settings_editor"]["text"] == state["hyperparameters"]


def test_evaluation_of_a_training_is_read_and_compared_by_the_sdk(instance, run, tmp_path):
    """As the apps Evaluator and Compare Models read what lies in Team Files."""
    report = instance.api.file.get_info_by_id(run.experiment.evaluation_report_id)
    folder = str(PurePosixPath(report.path).parents[1])
    comparison = ModelComparison(instance.api, [folder, folder], workdir=str(tmp_path))
    comparison.visualize()
    scores = run.experiment.evaluation_metrics
    for evaluation in comparison.eval_results:
        assert evaluation.gt_project_id == instance.projects["validation"]
        assert evaluation.key_metrics["mIoU"] == pytest.approx(scores["mIoU"])
        assert evaluation.val_images_cnt == IMAGES
    uploaded = comparison.upload_results(instance.sandbox.team_id, "/model-comparison/twice")
    assert instance.api.file.dir_exists(instance.sandbox.team_id, uploaded)
