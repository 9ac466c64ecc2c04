"""The main job over real HTTP: instance, Train HRDA, Team Files, Serve HRDA, and two SDK clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import supervisely as sly
import yaml
from supervisely.nn.inference import Session

from common.data.images import read_image
from common.hrda import Predictor, load_checkpoint
from common.hrda.prediction.labelling import LabelRule
from common.hrda.prediction.runtime import TorchNetwork
from sandbox.demo import arms, domains, progress, report
from sandbox.demo import demonstration as demo
from sandbox.demo.watched import Watched
from sandbox.synthetic.projects import write_project
from sandbox.testing import running_sandbox

SETTINGS = {
    "iterations": 4,
    "batch_size": 2,
    "log_interval": 1,
    "self_training_start": 0.5,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 16, "attention_channels": 8},
    "optimizer": {"lr": 1e-3, "warmup_iterations": 1},
    "inference": {"stride": [64, 64]},
    "data": {"scale": {"long_edge": None, "short_edge": None}, "workers": 0},
    "validation": {"interval": 4},
    "checkpoint": {"interval": 4},
}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("projects")
    for role, (domain, _, seed, labelled) in domains.GENERATED.items():
        write_project(folder / role, domain, 4, seed=seed, size=(96, 80), labelled=labelled)
    return {role: str(folder / role) for role in domains.GENERATED}


@pytest.mark.parametrize("mode", ["development", "production"])
def test_projects_in_checkpoint_out_annotations_back(tmp_path: Path, specs: dict[str, str], mode: str) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    said: list[str] = []
    with running_sandbox(tmp_path / "instance") as sandbox:
        api = sly.Api(sandbox.address, sandbox.token)
        uploaded = domains.upload(api, sandbox.workspace_id, specs, said.append)

        task_id = demo.new_task(sandbox, "config.json")
        state = arms.app_state(uploaded, ["crack"], settings, seed=0)
        with demo.train_app(sandbox, task_id, uploaded, tmp_path, mode) as train_hrda:
            experiment = arms.train_in_app(train_hrda, state, api, sandbox.team_id, task_id, said.append)
        remote = f"{experiment.artifacts_dir.rstrip('/')}/checkpoints/{experiment.best_checkpoint}"
        files = {Path(f["path"]).name for f in api.file.list(sandbox.team_id, experiment.artifacts_dir)}
        assert {"best.pth", "last.pth", "experiment_info.json", "model_meta.json", "app_state.json"} <= files
        local = tmp_path / "best.pth"
        api.file.download(sandbox.team_id, remote, str(local))
        bundle = load_checkpoint(local)
        assert bundle.classes == ("__bg__", "crack")
        assert bundle.iteration == SETTINGS["iterations"]
        assert bundle.teacher is not None
        assert set(bundle.best_thresholds) == {"crack"}, "the run measured it, and what serves finds it"
        rule = LabelRule({1: bundle.best_thresholds["crack"]})

        serve_task = demo.new_task(sandbox, "serve/config.json")
        with demo.serve_app(sandbox, serve_task, tmp_path, mode) as serve_hrda:
            demo.deploy(serve_hrda, remote)
            assert serve_hrda.post("is_deployed", {})["deployed"]

            predictor = Predictor(TorchNetwork(bundle.model, "cpu"), input_scale=bundle.input_scale)
            images = api.image.get_list(api.dataset.get_list(uploaded["val"].project_id)[0].id)
            paths = {path.name: path for path in Path(specs["val"]).rglob("img/*")}
            model = api.nn.connect(serve_task)
            session = Session(api, session_url=serve_hrda.address)
            predictions = model.predict(image_id=[image.id for image in images], show_progress=False)
            for image, prediction in zip(images, predictions, strict=True):
                expected = predictor.segment([read_image(paths[image.name])], rule)[0].labels == 1
                for annotation in (prediction.annotation, session.inference_image_id(image.id)):
                    assert annotation.img_size == expected.shape
                    np.testing.assert_array_equal(foreground(annotation), expected)

            demo.annotate(api, serve_task, uploaded["target"], said.append)
            target = api.image.get_list(api.dataset.get_list(uploaded["target"].project_id)[0].id)
            assert api.annotation.download(target[0].id).annotation["objects"]

            photos = report.read_photos(specs["val"], ["crack"], tmp_path / "cache")
            masks = demo.served_masks(api, serve_task, uploaded["val"], photos[:1])
        result, [ours, *_] = report.measure(local, photos)
        assert 0 <= result.iou <= result.best_iou <= 100
        assert masks[0].shape == ours.shape
        watched = Watched(demo.parse(["--out", str(tmp_path), "--no-compare"]), ["crack"], said.append)
        watched.show_results({"HRDA": report.measure(local, photos)}, photos, [0], masks)
        shown = (tmp_path / "index.html").read_text()
        assert "Done." in shown and f"<td>{result.iou:.1f}</td>" in shown
        assert shown.count("<svg") == len(progress.CHARTS), "the app's curves are drawn"
        # A photo, its truth and one arm, side by side at one height.
        assert read_image(tmp_path / "comparison.png").shape[1] == 3 * round(80 * report.PICTURE_HEIGHT / 96)
        assert set(report.table({"HRDA": result}).split()) >= {"HRDA", "IoU", f"{result.iou:.1f}%"}
        assert report.table({"HRDA": result}) in (tmp_path / "comparison.txt").read_text()


def foreground(annotation: sly.Annotation) -> np.ndarray:
    mask = np.zeros(annotation.img_size, dtype=np.uint8)
    for label in annotation.labels:
        if label.obj_class.name == "crack":
            label.draw(mask, color=1)
    return mask > 0
