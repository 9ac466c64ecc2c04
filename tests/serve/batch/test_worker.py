"""A checkpoint at work without a server: the same labels, and the same annotations as the server's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from supervisely.nn.inference import Inference
from supervisely.nn.utils import RuntimeType

from common.hrda import InferenceSettings, Predictor, SettingsError, load_checkpoint
from common.hrda.prediction.runtime import TorchNetwork
from serve.batch.local import settings_of_words
from serve.batch.outputs import FORMATS
from serve.batch.result import Photo
from serve.batch.worker import Worker
from serve.model import exports
from serve.model.deployment import PYTORCH, TENSORRT, Deployment
from serve.model.settings import read_settings
from tests.serve.conftest import CLASSES


def annotated(worker: Worker, image: np.ndarray) -> dict[str, Any]:
    """What the format supervisely writes of an image."""
    format = FORMATS["supervisely"]
    [result] = worker.results([Photo("night/a.jpg", "night/a", image)], format.needs)
    [(name, content)] = format.files(result, worker.options())
    assert name == "night/a.jpg.json"
    return json.loads(content)


@pytest.fixture(scope="module")
def deployment(checkpoint: Path) -> Deployment:
    return Deployment.from_file(checkpoint, "cpu")


def test_labels_are_those_of_the_predictor(checkpoint: Path, image: np.ndarray):
    worker = Worker.from_file(checkpoint, "cpu", settings={"stride": 64, "batch_size": 2})
    found = worker.labels([image, image[:70, :64]])
    predictor = Predictor(
        TorchNetwork(load_checkpoint(checkpoint).model.eval(), "cpu"), InferenceSettings(stride=(64, 64), batch_size=2)
    )
    for labels, expected in zip(found, predictor.predict([image, image[:70, :64]]), strict=True):
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"confidence": True},
        {"background": False, "min_component": 20},
        {"classes": ["crack"], "thresholds": {"crack": 0.3}, "confidence": True},
        {"classes": ["crack", "__bg__"], "conf": 0.3},
        {"classes": "all", "stride": 64},
    ],
)
def test_annotation_is_what_the_server_answers(
    settings: dict[str, Any], running: SimpleNamespace, deployment: Deployment, photo: Path, image: np.ndarray
):
    with photo.open("rb") as file:
        state = json.dumps({"settings": settings})
        answer = requests.post(
            f"{running.url}/inference_image", files={"files": file}, data={"state": state}, timeout=60
        )
    answer.raise_for_status()
    annotation = annotated(Worker(deployment, settings), image)
    assert annotation["objects"], "no areas prove nothing"
    assert json.dumps(annotation) == json.dumps(answer.json()["annotation"])


def test_image_without_areas_has_an_annotation_without_objects(deployment: Deployment, image: np.ndarray):
    settings = {"background": False, "min_component": image.size}
    annotation = annotated(Worker(deployment, settings), image)
    assert annotation["size"] == {"height": 90, "width": 140}
    assert annotation["objects"] == []


def test_classes_of_a_command_line_are_a_list_in_text(deployment: Deployment, image: np.ndarray):
    listed, text = ({"classes": given} for given in (["crack"], "[crack]"))
    assert annotated(Worker(deployment, text), image) == annotated(Worker(deployment, listed), image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strid": 64}, "stride"),
        ({"stride": 63}, "stride"),
        ({"window": 64, "stride": 128}, "stride"),
        ({"thresholds": {"crak": 0.5}}, "crack"),
        ({"classes": "crack"}, "list of class names"),
        ({"classes": ["crak"]}, "no class 'crak'"),
        ({"rectangle": None}, "requests to a server"),
    ],
)
def test_wrong_settings_are_refused_before_an_image_is_read(
    settings: dict[str, Any], message: str, deployment: Deployment
):
    with pytest.raises(SettingsError, match=message):
        Worker(deployment, settings)


def test_runtimes_have_the_names_of_the_sdk():
    assert (PYTORCH, TENSORRT) == (RuntimeType.PYTORCH, RuntimeType.TENSORRT)


def test_other_runtimes_get_an_export_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch, deployment: Deployment):
    read = []
    monkeypatch.setattr(exports, "export_beside", lambda path: path.with_suffix(".onnx"))
    monkeypatch.setattr(Deployment, "from_file", lambda *args: read.append(args) or deployment)
    Worker.from_file("model.pth", "cpu", "ONNXRuntime")
    Worker.from_file("given.onnx", "cpu", "ONNXRuntime")
    Worker.from_file("model.pth", "cpu")
    assert read == [
        (Path("model.onnx"), "cpu", "ONNXRuntime"),
        (Path("given.onnx"), "cpu", "ONNXRuntime"),
        (Path("model.pth"), "cpu", "PyTorch"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["stride=64", "batch_size=2", "flip=True", "long_side=null", "input_scale=original"],
        ["window:128", "scales=[0.75, 1.0]", "thresholds={crack: 0.3, stain: 0.25}", "background=FALSE"],
        ["FILE"],
    ],
)
def test_words_mean_what_they_mean_to_the_sdk(words: list[str], tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text("stride: [64, 128]\nthresholds: {crack: 0.35}\nconfidence: true\n")
    words = [str(file) if word == "FILE" else word for word in words]
    sdk = SimpleNamespace(
        _args=SimpleNamespace(settings=list(words)),
        _read_settings=lambda given: Inference._read_settings(None, given),
        _validate_settings=lambda given: None,
    )
    Inference._parse_inference_settings_from_args(sdk)
    assert read_settings(settings_of_words(words)) == read_settings(sdk._args.settings)


def test_settings_of_a_json_file_and_what_is_neither(tmp_path: Path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"classes": list(CLASSES[1:])}, indent="\t"))
    assert settings_of_words([str(file)]) == {"classes": list(CLASSES[1:])}
    file.write_text("[64]")
    with pytest.raises(SettingsError, match="names and values"):
        settings_of_words([str(file)])
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        settings_of_words(["stride"])
    with pytest.raises(SettingsError, match="cannot be read"):
        settings_of_words([str(tmp_path / "none.yaml")])
