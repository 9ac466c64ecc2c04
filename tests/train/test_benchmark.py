"""The model benchmark against the sandbox: the served model, the SDK's evaluation, the report in Team Files."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import supervisely as sly
import torch
from supervisely.nn.benchmark.base_benchmark import WORKSPACE_NAME
from supervisely.nn.benchmark.comparison.model_comparison import ModelComparison
from supervisely.task.progress import tqdm_sly

from common.data.project import open_project, prepare_labelled
from common.data.transforms import InputScale
from common.hrda import CheckpointBundle, InferenceSettings, ModelSettings, build_segmentor, save_checkpoint
from sandbox.synthetic.projects import write_project
from sandbox.testing import Sandbox, running_sandbox
from train import benchmark
from train.benchmark import Measuring, run_benchmark, serving
from train.run.validation import measure
from train.sdk.benchmark import BenchmarkedTrainApp, BenchmarkError, BenchmarkReport, TrainedModel
from train.sdk.masks import MaskBenchmark

CLASSES = ("__bg__", "crack")
MODEL = ModelSettings(encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=16, attention_channels=16)
INFERENCE = InferenceSettings(stride=(64, 64))
ARTIFACTS = "/experiments/1_cracks/7_HRDA"


@dataclass
class Setting:
    """The sandbox with validation photos in two datasets, a checkpoint, and Serve HRDA running with it."""

    sandbox: Sandbox
    api: sly.Api
    data: Path
    served: str
    trained: TrainedModel
    measuring: Measuring


def write_model(path: Path) -> Path:
    torch.manual_seed(0)
    model = build_segmentor(MODEL).eval()
    settings = {"model": MODEL.to_dict()}
    palette = ((0, 0, 0), (220, 20, 60))
    # Served with it nearly all pixels would be cracks; the report must not make use of it.
    metrics = {"student/best_threshold/crack": 0.02}
    save_checkpoint(path, CheckpointBundle(model, CLASSES, palette, settings=settings, metrics=metrics))
    return path


def write_photos(folder: Path) -> None:
    """JPEGs in `ds0` and in `ds0/night`, two of them of the same name; one label is a polygon."""
    for dataset, seed in (("ds0", 2), ("night", 3)):
        write_project(folder, "real_like", 2, seed=seed, size=(96, 80), dataset=dataset, workers=1)
    nested = folder / "ds0" / "datasets"
    nested.mkdir()
    (folder / "night").rename(nested / "night")
    for path in nested.rglob("*0300000*"):
        path.rename(path.with_name(path.name.replace("0300000", "0200000")))
    meta = json.loads((folder / "meta.json").read_text())
    for obj_class in meta["classes"]:
        obj_class["shape"] = "any"
    (folder / "meta.json").write_text(json.dumps(meta))
    path = next((folder / "ds0" / "ann").glob("*0200001*"))
    annotation = json.loads(path.read_text())
    points = {"exterior": [[10, 10], [60, 20], [30, 80]], "interior": []}
    annotation["objects"] = [{"classTitle": "crack", "tags": [], "geometryType": "polygon", "points": points}]
    path.write_text(json.dumps(annotation))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("benchmark")
    write_photos(folder / "data" / "validation")
    model = write_model(folder / "best.pth")
    with running_sandbox(folder / "state", folder / "data") as sandbox, pytest.MonkeyPatch.context() as patch:
        task = sandbox.create_task("Train HRDA")["id"]
        for name, value in sandbox.env(ENV="production", TASK_ID=task, OMP_NUM_THREADS=1).items():
            patch.setenv(name, value)
        patch.delenv("PROJECT_ID", raising=False)
        api = sly.Api(sandbox.address, sandbox.token)
        [project] = sandbox.imported
        photos = [photo for dataset in api.dataset.get_list(project.project_id, recursive=True)
                  for photo in api.image.get_list(dataset.id)]  # fmt: skip
        stored = api.file.upload(sandbox.team_id, str(model), f"{ARTIFACTS}/checkpoints/best.pth")
        trained = TrainedModel(
            model, stored, [photo.id for photo in photos], folder / "benchmark", "/model-benchmark/1_cracks/7_Train",
            {"app_session_id": task, "images_count": 5},
        )  # fmt: skip
        measuring = Measuring(project.project_id, ["crack"], inference=INFERENCE.to_dict())
        with serving(model, "cpu", folder / "serve", threading.Event()) as address:
            yield Setting(sandbox, api, folder / "data" / "validation", address, trained, measuring)


@pytest.fixture
def served(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The model that runs already is used, instead of one that starts anew for each test."""

    @contextlib.contextmanager
    def running(*_: Any) -> Iterator[str]:
        yield setting.served

    monkeypatch.setattr(benchmark, "serving", running)
    return setting


def run(setting: Setting, folder: Path, stop: threading.Event, progress: Any = tqdm_sly) -> BenchmarkReport:
    trained = replace(setting.trained, folder=folder)
    bars = {"progress": progress, "progress_secondary": tqdm_sly}
    return run_benchmark(setting.api, trained, setting.measuring, stop=stop, **bars)


def predictions(setting: Setting) -> list[sly.ProjectInfo]:
    """The projects that benchmarks have made."""
    workspace = setting.api.workspace.get_info_by_name(setting.sandbox.team_id, WORKSPACE_NAME)
    return [] if workspace is None else setting.api.project.get_list(workspace.id)


def read(setting: Setting, path: str, folder: Path) -> str:
    local = folder / Path(path).name
    setting.api.file.download(setting.sandbox.team_id, path, str(local))
    return local.read_text(encoding="utf-8")


def test_report_agrees_with_our_own_validation(served, tmp_path):
    """JPEGs, two photos of one name, a polygon, nested datasets: the very pixels that the training counted."""
    result = run(served, tmp_path / "run", threading.Event())

    labelled = prepare_labelled(open_project(served.data), ["crack"], tmp_path / "masks", role="validation")
    bundle_model = build_segmentor(MODEL)
    bundle_model.load_state_dict(torch.load(served.trained.checkpoint, weights_only=True)["state_dict"])
    ours = measure(
        bundle_model, [(record.image_path, mask) for record, mask in labelled], CLASSES, inference=INFERENCE,
        scale=InputScale(long_edge=None, short_edge=None), device=torch.device("cpu"),
    ).compute()  # fmt: skip
    assert 0 < ours["iou/crack"] < 1, "a model that says nothing would prove nothing"
    assert result.metrics["mIoU"] == pytest.approx(ours["mIoU"], abs=1e-9)
    assert result.metrics["mRecall"] == pytest.approx((ours["recall/crack"] + ours["recall/__bg__"]) / 2, abs=1e-9)
    assert (result.primary_metric, result.note) == ("mIoU", "")

    files = served.api.file.listdir(served.sandbox.team_id, served.trained.remote_dir, recursive=True)
    names = {path.removeprefix(f"{served.trained.remote_dir}/") for path in files}
    assert {"visualizations/template.vue", "visualizations/state.json", "evaluation/eval_data.zip"} <= names
    assert result.report.path == f"{served.trained.remote_dir}/visualizations/template.vue"
    link = read(served, f"{ARTIFACTS}/Model Evaluation Report.lnk", tmp_path)
    assert link == f"/model-benchmark?id={result.report.id}"

    [overview] = [path for path in files if "markdown_overview" in path]
    text = read(served, overview, tmp_path)
    assert "2 classes, 5 images in train, 4 images in validation" in text
    assert f"{ARTIFACTS}/checkpoints/best.pth" in text.replace("\\", "")
    [table] = [path for path in files if "model_predictions_table" in path and "click" not in path]
    rows = [row["row"][0] for row in json.loads(read(served, table, tmp_path))["content"]]
    assert sorted(rows) == [
        "ds0/night/real_like_0200000.jpg", "ds0/night/real_like_0300001.jpg",
        "ds0/real_like_0200000.jpg", "ds0/real_like_0200001.jpg",
    ]  # fmt: skip
    [gallery] = [path for path in files if "explore_predictions_gallery" in path and "click" in path]
    shown = json.loads(read(served, gallery, tmp_path))["clickData"].values()
    assert all(len(set(photo["imagesIds"])) == 3 for photo in shown), "photo, truth and prediction"
    assert sorted(photo["title"].removeprefix("Image: ") for photo in shown) == sorted(rows)
    [matrix] = [path for path in files if "confusion_matrix_chart" in path and "click" not in path]
    chart = json.loads(read(served, matrix, tmp_path))["chartContent"]["data"][0]
    assert (chart["x"], chart["y"]) == (["crack", "__bg__"], ["__bg__", "crack"])
    assert chart["z"][1][0] == pytest.approx(ours["recall/crack"], abs=5e-4)

    compare(served, [served.trained.remote_dir] * 2, tmp_path)


def compare(setting: Setting, evaluations: list[str], folder: Path) -> None:
    """As the app Compare Models does, with the SDK's own comparison."""
    comparison = ModelComparison(
        setting.api, evaluations, workdir=str(folder / "compared"), team_id=setting.sandbox.team_id
    )
    for evaluation in comparison.eval_results:
        classes = evaluation.inference_info["inference_settings"]["classes"]
        assert [*classes, "mean"] == evaluation.mp.class_names == ["crack", "__bg__", "mean"]
    comparison.visualize()
    remote = comparison.upload_results(setting.sandbox.team_id, "/model-comparison/1_cracks/HRDA vs HRDA")
    files = setting.api.file.listdir(setting.sandbox.team_id, remote, recursive=True)
    [chart] = [
        path for path in files if "frequently_confused" in path and "click" not in path and path.endswith("json")
    ]
    bars = json.loads(read(setting, chart, folder))["chartContent"]["data"]
    assert [sorted(bar["x"]) for bar in bars] == [["__bg__-crack", "crack-__bg__"]] * 2
    assert comparison.get_report_link().endswith(f"/model-benchmark?id={comparison.report.id}")


def test_model_that_finds_nothing_is_reported_with_a_note(served, tmp_path, monkeypatch):
    """Ratios without a denominator must not end the report."""
    predict, api = MaskBenchmark.predict, served.api

    def nothing_found(self: MaskBenchmark, *args: Any) -> None:
        predict(self, *args)
        project = self.dt_project_info.id
        background = sly.ProjectMeta.from_json(api.project.get_meta(project)).get_obj_class("__bg__")
        for dataset in api.dataset.get_list(project, recursive=True):
            for photo in api.image.get_list(dataset.id):
                size = photo.height, photo.width
                label = sly.Label(sly.Bitmap(np.ones(size, bool)), background)
                api.annotation.upload_ann(photo.id, sly.Annotation(size, [label]))

    monkeypatch.setattr(MaskBenchmark, "predict", nothing_found)
    result = run(served, tmp_path / "run", threading.Event())
    assert result.note.startswith("The model finds none of its classes in the 4 validation photos.")
    assert 0.3 < result.metrics["mIoU"] < 0.5, "the background alone is right"
    json.dumps(result.metrics, allow_nan=False)


def test_stop_ends_the_benchmark_and_leaves_no_projects(served, tmp_path):
    stop, before = threading.Event(), len(predictions(served))

    def bar(*args: Any, **kwargs: Any) -> Any:
        if "inference" in kwargs["message"]:
            assert len(predictions(served)) == before + 1
            stop.set()
        return tqdm_sly(*args, **kwargs)

    with pytest.raises(BenchmarkError, match="^The model benchmark was stopped"):
        run(served, tmp_path / "run", stop, bar)
    assert len(predictions(served)) == before
    with pytest.raises(BenchmarkError, match="left out because the training was stopped"):
        run(served, tmp_path / "again", stop)


def test_failure_is_a_sentence_and_leaves_no_projects(served, tmp_path, monkeypatch):
    before = len(predictions(served))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(served.api.file, "upload_directory", full)
    with pytest.raises(
        BenchmarkError, match="training and its checkpoints are not affected. OSError: the disk is full"
    ):
        run(served, tmp_path / "run", threading.Event())
    assert len(predictions(served)) == before


@pytest.mark.parametrize("outcome", ["failed", "noted"])
def test_page_says_how_the_benchmark_went(outcome):
    """Whatever happens in it, the checkpoints are uploaded already and the experiment is described next."""
    page, bar, file = MagicMock(), MagicMock(), MagicMock(id=5)

    def measure(trained: TrainedModel) -> BenchmarkReport:
        assert (trained.checkpoint, trained.image_ids) == (Path("out/checkpoints/best.pth"), [3, 4])
        if outcome == "failed":
            raise BenchmarkError("It has no result.")
        return BenchmarkReport(file, file, {"mIoU": 0.5}, "mIoU", "Nothing was found.")

    app = MagicMock(spec=BenchmarkedTrainApp, gui=page, measure=measure, team_id=1, task_id=7)
    app.configure_mock(progress_bar_main=bar, progress_bar_secondary=bar)
    app.configure_mock(_api=MagicMock(), _benchmark_dir_name="benchmark", _train_split=[1, 2])
    experiment, splits = {"best_checkpoint": "out/checkpoints/best.pth"}, {"val": {"images_ids": [3, 4]}}
    result = BenchmarkedTrainApp._run_model_benchmark(app, "out", "/experiments/a/b", experiment, splits, None)
    text = page.training_artifacts.model_benchmark_fail_text
    if outcome == "failed":
        assert result == (None, None, None, {}, None)
        text.set.assert_called_once_with("It has no result.", "warning")
    else:
        assert result == (file, file, 5, {"mIoU": 0.5}, "mIoU")
        text.set.assert_called_once_with("Nothing was found.", "warning")
        text.show.assert_called_once_with()
    assert bar.hide.call_count == 2


def test_served_model_keeps_off_the_task_of_the_training(setting):
    """In production it would overwrite the page of the training, whose task it is started from."""
    environment = benchmark.serving_environment(Path("folder"))
    assert environment["ENV"] == "development"
    assert not {"TASK_ID", "SUPERVISELY_TASK_ID"} & set(environment)
    assert environment["SERVER_ADDRESS"] == setting.sandbox.address


def test_model_that_does_not_start_is_said_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.delenv("SERVER_ADDRESS", raising=False)
    with (
        pytest.raises(BenchmarkError, match="Serve HRDA ended with status 2. Its last line: .*there is no checkpoint"),
        serving(tmp_path / "gone.pth", "cpu", tmp_path / "serve", threading.Event()),
    ):
        pass


def test_served_model_ends_with_the_process_that_started_it(tmp_path):
    """A killed training would else leave a model on the GPU."""
    child = "import os, sys, time\nfrom serve.__main__ import end_with\nend_with(os.getppid(), 0.05)\ntime.sleep(60)"
    parent = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)\n"
    script = parent + "import time; time.sleep(2)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=benchmark.ROOT, capture_output=True, text=True, check=True
    )
    deadline = time.monotonic() + 10
    while is_running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(done.stdout))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
