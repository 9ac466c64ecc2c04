"""Other runtimes than PyTorch: through every door the same, only what is here, and nobody's file is written over."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import requests
import torch
from supervisely.nn.utils import ModelSource, RuntimeType

from common.hrda.files import sum_of
from common.hrda.prediction.exported import METADATA_KEY, read_export
from serve.__main__ import main
from serve.batch.worker import Worker
from serve.errors import RequestError
from serve.gate.deploy_request import completed
from serve.model import exports
from serve.model.deployment import RUNTIMES, offered_runtimes
from serve.model.exports import export_beside
from tests.serve.requests_of_clients import encoded, post, upload
from tests.tiny import CLASSES, tiny_description, tiny_export


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Checkpoints that were exported; what is written in place of a real export, which takes long, is a tiny one."""
    exported = []

    def write(checkpoint: Path, path: Path) -> None:
        network = tiny_export()
        description = tiny_description() | {"source": sum_of(checkpoint)}
        onnx.helper.set_model_props(network, {METADATA_KEY: json.dumps(description)})
        onnx.save_model(network, path)
        exported.append(checkpoint)

    monkeypatch.setattr(exports, "export_checkpoint", write)
    return exported


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    return Path(shutil.copy(checkpoint, tmp_path / "best.pth"))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    onnx.save_model(tiny_export(), tmp_path / "network.onnx")
    return tmp_path / "network.onnx"


@pytest.fixture
def restored(running: SimpleNamespace, checkpoint: Path) -> Iterator[SimpleNamespace]:
    """The running service, which serves the checkpoint again afterwards."""
    yield running
    assert deploy(running, checkpoint).status_code == 200


def deploy(running: SimpleNamespace, path: Path, **more: Any) -> requests.Response:
    params = {"model_source": "Custom models", "model_files": {"checkpoint": str(path)}, "device": "cpu", **more}
    return post(running, "deploy_from_api", {"deploy_params": params})


def test_names_are_those_of_the_sdk():
    assert set(RUNTIMES) == {RuntimeType.PYTORCH, RuntimeType.ONNXRUNTIME, RuntimeType.TENSORRT}
    for runtime in RUNTIMES:
        assert completed({"model_files": {"checkpoint": "a.pth"}, "runtime": runtime})["runtime"] == runtime
    with pytest.raises(RequestError, match="PyTorch or ONNXRuntime or TensorRT"):
        completed({"model_files": {"checkpoint": "a.pth"}, "runtime": "onnx"})


def test_export_is_written_once_and_belongs_to_its_checkpoint(model: Path, exporter: list[Path]):
    exported = export_beside(model)
    assert exported == model.with_suffix(".onnx")
    assert read_export(exported).source == sum_of(model)
    before = exported.read_bytes()
    assert export_beside(model) == exported
    assert (exporter, exported.read_bytes()) == ([model], before)


def test_file_that_is_no_export_of_the_checkpoint_is_left_alone(model: Path, exporter: list[Path], network: Path):
    mine = model.with_suffix(".onnx")
    for content in (b"mine", network.read_bytes()):
        mine.write_bytes(content)
        with pytest.raises(RequestError, match=r"best.onnx is there already and is no export of best.pth"):
            export_beside(model)
        assert mine.read_bytes() == content
    mine.unlink()
    export_beside(model)
    former = mine.read_bytes()
    model.write_bytes(model.read_bytes() + b"trained on")
    with pytest.raises(RequestError, match="as it is now"):
        export_beside(model)
    assert mine.read_bytes() == former


def test_no_door_writes_over_an_existing_file(
    restored: SimpleNamespace, model: Path, photo: Path, exporter: list[Path], monkeypatch, capsys
):
    mine = model.with_suffix(".onnx")
    mine.write_bytes(b"mine")
    answer = deploy(restored, model, runtime="ONNXRuntime")
    assert (answer.status_code, "is there already" in answer.json()["message"]) == (400, True)
    with pytest.raises(RequestError, match="is there already"):
        Worker.from_file(model, "cpu", "ONNXRuntime")
    monkeypatch.setattr(sys, "argv", ["serve"])
    words = ["--model", str(model), "--device", "cpu", "--runtime", "ONNXRuntime"]
    for command in (["predict", str(photo), *words], ["deploy", *words]):
        assert main(command) == 2
        assert "is there already" in capsys.readouterr().err
    assert (mine.read_bytes(), exporter) == (b"mine", [])


def test_exported_network_deploys_by_its_path_without_a_team(
    restored: SimpleNamespace, network: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TEAM_ID", raising=False)
    assert network.is_absolute()
    answer = deploy(restored, network, runtime="ONNXRuntime")
    assert answer.json() == {"result": "model was successfully deployed"}
    deployed = restored.server.deployment
    assert (deployed.runtime, deployed.classes) == ("ONNXRuntime", CLASSES)
    names = {label["classTitle"] for label in upload(restored, encoded(image)).json()["annotation"]["objects"]}
    assert names and names <= set(CLASSES)


def test_checkpoint_deploys_as_its_export(restored: SimpleNamespace, model: Path, exporter: list[Path]):
    assert deploy(restored, model, runtime="ONNXRuntime").status_code == 200
    assert (exporter, restored.server.deployment.name) == ([model], "best.onnx")


def test_page_deploys_the_runtime_that_was_chosen(page, network: Path):
    assert page.gui.runtime_select.get_items() == list(offered_runtimes()) == ["PyTorch", "ONNXRuntime"]
    page.gui.model_source_tabs.set_active_tab(ModelSource.EXTERNAL)
    page.gui.external_models_selector.set_checkpoint_path(str(network))
    page.gui.runtime_select.set_value("ONNXRuntime")
    try:
        page.gui.deploy_with_current_params()
        assert page.deployment.runtime == "ONNXRuntime"
    finally:
        page.gui.runtime_select.set_value("PyTorch")


def test_command_line_starts_a_service_with_the_runtime(network: Path, no_instance, monkeypatch):
    import serve.server
    from tests.serve.conftest import own_app

    started = []
    monkeypatch.setattr(serve.server.HRDAServer, "serve", lambda server: started.append(server.deployment))
    monkeypatch.setattr(sys, "argv", ["serve"])
    with own_app():
        assert main(["deploy", "--model", str(network), "--device", "cpu", "--runtime", "ONNXRuntime"]) == 0
    assert [(found.runtime, found.name) for found in started] == [("ONNXRuntime", "network.onnx")]


@pytest.mark.parametrize(
    ("name", "runtime", "sentence"),
    [
        ("network.onnx", "TensorRT", "TensorRT is not here: .*Install onnxruntime-gpu and TensorRT"),
        ("network.onnx", "PyTorch", "network.onnx is an exported network: deploy it with the runtime ONNXRuntime"),
        ("network.engine", "ONNXRuntime", "network.engine is no file for ONNXRuntime, which runs .onnx files and"),
        ("network.onnx", "onnx", "PyTorch or ONNXRuntime or TensorRT"),
    ],
)
def test_what_does_not_run_here_is_told_and_the_old_model_stays(
    running: SimpleNamespace, network: Path, image: np.ndarray, name: str, runtime: str, sentence: str
):
    path = network.with_name(name)
    path.touch()
    before, info = upload(running, encoded(image)).json(), post(running, "get_session_info").json()
    answer = deploy(running, path, runtime=runtime)
    assert answer.status_code == 400
    assert re.search(sentence, answer.json()["message"])
    assert upload(running, encoded(image)).json()["annotation"]["objects"] == before["annotation"]["objects"]
    assert post(running, "get_session_info").json() == info


def test_runtimes_that_are_not_installed_are_not_offered(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    assert offered_runtimes() == ("PyTorch", "ONNXRuntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider"])
    assert offered_runtimes() == ("PyTorch",)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    )
    assert offered_runtimes() == ("PyTorch", "ONNXRuntime"), "the package tensorrt is not here"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert offered_runtimes() == ("PyTorch",)


BAD = [
    ("three outputs with two names", {"classes": ["__bg__", "crack"], "palette": [[0, 0, 0]] * 2}),
    ("a colour out of range", {"palette": [[0, 0, 0], [0, 0, 256], [0, 0, 0]]}),
    ("a scale of nothing", {"input": {"short_edge": 0, "long_edge": -5}}),
    ("weights in a list", {"state_dict": [1, 2]}),
    ("a newer format", {"format": "hrda-supervisely/2"}),
]


@pytest.mark.parametrize("change", [change for _, change in BAD], ids=[kind for kind, _ in BAD])
def test_checkpoint_that_cannot_be_deployed_leaves_the_old_model(
    running: SimpleNamespace, model: Path, image: np.ndarray, change: dict[str, Any]
):
    content = torch.load(model, weights_only=True)
    if "input" in change:
        change = {"settings": content["settings"] | change}
    torch.save(content | change, model)
    before, info = upload(running, encoded(image)).json(), post(running, "get_session_info").json()
    answer = deploy(running, model)
    assert (answer.status_code, "best.pth" in answer.json()["message"]) == (400, True)
    assert upload(running, encoded(image)).json()["annotation"]["objects"] == before["annotation"]["objects"]
    assert post(running, "get_session_info").json() == info
