"""What a request can ask of its answer, by HTTP: thresholds, background, confidence, probabilities; other runtimes."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import requests
import supervisely as sly
import torch
from PIL import Image
from rasterio.features import rasterize

from common.hrda import Predictor, load_checkpoint
from common.hrda.catalogue import MIT_SHAPES
from common.hrda.checks import CheckpointError
from common.hrda.prediction.runtime import TorchNetwork
from serve.__main__ import main
from serve.answers import status_and_message
from serve.batch.local import predict_local
from serve.batch.outputs import chosen_formats
from serve.batch.worker import Worker
from serve.errors import RequestError
from serve.model import deployment as deployment_module
from serve.model.deployment import Deployment
from serve.model.settings import ServeSettings
from tests.serve.conftest import CLASSES, PALETTE


@pytest.fixture(scope="module")
def probabilities(checkpoint: Path, image: np.ndarray) -> np.ndarray:
    network = TorchNetwork(load_checkpoint(checkpoint).model.eval(), "cpu")
    return Predictor(network).probabilities([image])[0]


def post(running: SimpleNamespace, route: str, photo: Path, **settings: object) -> requests.Response:
    state = json.dumps({"settings": settings})
    with photo.open("rb") as file:
        answer = requests.post(f"{running.url}/{route}", files={"files": file}, data={"state": state}, timeout=60)
    answer.raise_for_status()
    return answer


def annotation(running: SimpleNamespace, photo: Path, **settings: object) -> sly.Annotation:
    objects = [sly.ObjClass(name, sly.Bitmap, color=list(rgb)) for name, rgb in zip(CLASSES, PALETTE, strict=True)]
    meta = sly.ProjectMeta(objects, [sly.TagMeta("confidence", sly.TagValueType.ANY_NUMBER)])
    answer = post(running, "inference_image", photo, **settings).json()
    return sly.Annotation.from_json(answer["annotation"], meta)


def mask(labels: list[sly.Label], name: str, shape: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(shape, np.uint8)
    for label in labels:
        if label.obj_class.name == name:
            label.draw(drawn, color=1)
    return drawn > 0


def test_background_is_left_out_where_it_is_not_wanted(running: SimpleNamespace, photo: Path):
    with_it, without = (annotation(running, photo, background=wanted).labels for wanted in (True, False))
    assert CLASSES[0] in {label.obj_class.name for label in with_it}
    assert {label.obj_class.name for label in without} == {label.obj_class.name for label in with_it} - {CLASSES[0]}


def test_unwanted_classes_and_the_background_make_one_label(running: SimpleNamespace, photo: Path):
    labels = annotation(running, photo, classes=["__bg__", "crack"], thresholds={"crack": 0.3}).labels
    assert sorted(label.obj_class.name for label in labels) == ["__bg__", "crack"]
    assert sum(int(mask(labels, name, (90, 140)).sum()) for name in ("__bg__", "crack")) == 90 * 140


def test_confidence_is_the_mean_probability_of_the_labels_pixels(
    running: SimpleNamespace, photo: Path, probabilities: np.ndarray
):
    labels = annotation(running, photo, confidence=True).labels
    assert labels
    for label in labels:
        inside = mask([label], label.obj_class.name, (90, 140))
        expected = probabilities[CLASSES.index(label.obj_class.name)][inside].mean()
        assert abs(label.tags.get("confidence").value - expected) < 2e-3
    assert not annotation(running, photo).labels[0].tags


def test_probabilities_of_all_classes_come_as_an_archive(
    running: SimpleNamespace, photo: Path, probabilities: np.ndarray
):
    answer = post(running, "predict_probabilities", photo)
    content = np.load(io.BytesIO(answer.content))
    assert content["probabilities"].dtype == np.float16
    np.testing.assert_allclose(content["probabilities"], probabilities, atol=1e-3)
    assert tuple(content["classes"]) == CLASSES


REGION = {"points": {"exterior": [[20, 10], [99, 79]], "interior": []}}


def ask(running: SimpleNamespace, photo: Path, route: str = "inference_image", **state: object) -> requests.Response:
    with photo.open("rb") as file:
        data = {"state": json.dumps(state)}
        answer = requests.post(f"{running.url}/{route}", files={"files": file}, data=data, timeout=60)
    answer.raise_for_status()
    return answer


@pytest.mark.parametrize("state", [{}, {"rectangle": REGION}, {"settings": {"classes": ["crack"]}}])
def test_answer_comes_as_index_mask_and_as_outlines_of_the_same(state: dict, running: SimpleNamespace, photo: Path):
    objects = [sly.ObjClass(name, sly.Bitmap) for name in CLASSES]
    found = sly.Annotation.from_json(ask(running, photo, **state).json()["annotation"], sly.ProjectMeta(objects)).labels
    answer = ask(running, photo, format="masks", **state)
    assert answer.headers["Content-Type"] == "image/png"
    labels = np.asarray(Image.open(io.BytesIO(answer.content)))
    for index, name in enumerate(CLASSES[1:], start=1):
        np.testing.assert_array_equal(labels == index, mask(found, name, (90, 140)))
    answer = ask(running, photo, format="geojson", tolerance=0.0, **state)
    assert answer.headers["Content-Type"] == "application/geo+json"
    features = answer.json()["features"]
    for index, name in enumerate(CLASSES[1:], start=1):
        shapes = [each["geometry"] for each in features if each["properties"]["class"] == name]
        drawn = rasterize(shapes, labels.shape) if shapes else np.zeros(labels.shape)
        np.testing.assert_array_equal(drawn == 1, labels == index)
    assert (labels > 0).any(), "nothing found proves nothing"


def test_measures_are_those_that_a_folder_gets(running: SimpleNamespace, photo: Path, tmp_path: Path):
    answer = ask(running, photo, "measure", mm_per_pixel=2.0, settings={"stride": 64})
    assert answer.headers["Content-Type"] == "application/json"
    deployment = running.server.deployment
    worker = Worker(deployment, {"stride": 64})
    predict_local(worker, photo, tmp_path, formats=chosen_formats("csv"), options={"mm_per_pixel": 2.0})
    for table, rows in answer.json().items():
        with (tmp_path / "csv" / f"{table}.csv").open(newline="") as file:
            expected = [{**row, "photo": "image"} for row in csv.DictReader(file)]
        assert expected
        assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows] == [
            {name: row[name] for name in given} for row, given in zip(expected, rows, strict=True)
        ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network exported on the command line, beside its checkpoint."""
    from tests.serve.conftest import write_checkpoint

    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        # One block a stage: exporting takes as long as there are blocks.
        patch.setitem(MIT_SHAPES, "mit_b0", (32, (1, 1, 1, 1)))
        path = write_checkpoint(folder / "small.pth", input={"short_edge": 64, "long_edge": 96})
        assert main(["export", "--model", str(path), "--output", str(folder)]) == 0
        network = TorchNetwork(load_checkpoint(path).model.eval(), "cpu")
    image = np.random.default_rng(7).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    np.save(folder / "expected.npy", Predictor(network, input_scale=(64, 96)).predict([image])[0])
    return folder / "small.onnx"


def test_exported_network_serves_alone_with_classes_and_scale(exported: Path, image: np.ndarray):
    deployment = Deployment.from_file(exported, "cpu", "ONNXRuntime")
    assert deployment.classes == CLASSES
    assert deployment.palette == PALETTE
    assert deployment.input_scale == (64, 96)
    [found] = deployment.predict([image], ServeSettings())
    assert (found.labels == np.load(exported.with_name("expected.npy"))).mean() > 0.999


def test_network_that_computes_what_pytorch_did_says_so(exported: Path):
    told = Deployment.from_file(exported, "cpu", "ONNXRuntime").self_check
    share = float(re.fullmatch(r"differs from PyTorch by (\S+) of the largest value", told)[1])
    assert share < 1e-3


@pytest.mark.parametrize("name", ["backbone", "decoder", "attention"])
def test_file_of_which_one_weight_was_changed_is_refused(
    running: SimpleNamespace, photo: Path, exported: Path, tmp_path: Path, name: str
):
    """Nothing else tells: the file is whole, and its shapes and numbers are as ever."""
    network = onnx.load(exported)
    weights = [each for each in network.graph.initializer if each.name.startswith(name) and len(each.dims) > 1]
    changed = max(weights, key=lambda each: np.abs(onnx.numpy_helper.to_array(each)).max())
    values = onnx.numpy_helper.to_array(changed).copy()
    values.flat[0] += 20 * np.abs(values).max()
    changed.CopyFrom(onnx.numpy_helper.from_array(values, changed.name))
    wrong = tmp_path / "wrong.onnx"
    onnx.save_model(network, wrong)
    with pytest.raises(CheckpointError, match="wrong.onnx does not compute what PyTorch did when it was exported"):
        Deployment.from_file(wrong, "cpu", "ONNXRuntime")
    params = {"model_source": "Custom models", "model_files": {"checkpoint": str(wrong)}, "runtime": "ONNXRuntime"}
    state = {"deploy_params": params | {"device": "cpu"}}
    answer = requests.post(f"{running.url}/deploy_from_api", json={"state": state}, timeout=60)
    assert answer.status_code == 400 and "Export it from its checkpoint again" in answer.json()["message"]
    assert post(running, "inference_image", photo).status_code == 200, "the model before it goes on"
    info = requests.post(f"{running.url}/get_session_info", json={"state": {}}, timeout=60).json()
    assert info["self_check"] == "PyTorch itself"


def test_compiled_network_that_computes_something_else_is_left_out(
    checkpoint: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def wrongly(part):
        return lambda *inputs: (
            [2 * each for each in part(*inputs)] if isinstance(part(*inputs), list | tuple) else (1.5 * part(*inputs))
        )

    monkeypatch.setattr(deployment_module, "why_not_compiled", lambda kind: None)
    monkeypatch.setattr(torch, "compile", wrongly)
    deployment = Deployment.from_file(checkpoint, "cpu")
    [plain], [compiled] = (deployment.predict([image], ServeSettings(compile=asked)) for asked in (False, True))
    np.testing.assert_array_equal(compiled.labels, plain.labels)
    assert "compile is left out: the compiled network differs from PyTorch by" in caplog.text
    monkeypatch.setattr(torch, "compile", lambda part: part)
    deployment = Deployment.from_file(checkpoint, "cpu")
    deployment.predict([image], ServeSettings(compile=True))
    assert deployment.self_check == "compiled: differs from PyTorch by 0 of the largest value"


def test_runtime_that_is_not_installed_is_named(exported: Path):
    with pytest.raises(RequestError, match="Install onnxruntime-gpu and TensorRT"):
        Deployment.from_file(exported, "cpu", "TensorRT")


def test_export_of_what_is_no_checkpoint_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.pth").write_text("no checkpoint")
    assert main(["export", "--model", str(tmp_path / "notes.pth"), "--output", str(tmp_path / "out.onnx")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main(["export", "--model", str(tmp_path / "missing.pth")])
    assert "export needs a checkpoint" in capsys.readouterr().err


def test_what_an_instance_says_is_passed_on_in_part():
    answer = requests.Response()
    answer.status_code, answer._content = 400, json.dumps({"details": {"message": "x" * 10_000}}).encode()
    status, message = status_and_message(requests.HTTPError(response=answer))
    assert status == 400 and "status 400: xxx" in message and len(message) < 400
