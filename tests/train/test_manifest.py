"""config.json, the root app's manifest, read by the SDK's own release command."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import supervisely
import yaml

from train.settings.training import DEFAULT_YAML, TrainSettings

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
MODELS = json.loads((ROOT / "train" / "models.json").read_text(encoding="utf-8"))
SERVE = ROOT / "serve" / "config.json"
REQUIRED = {
    "type", "version", "name", "description", "categories", "entrypoint", "port", "docker_image", "instance_version",
    "task_location", "need_gpu", "gpu", "license", "files",
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone that is pushed to a remote, with the files that the manifests name."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=tmp_path, check=True)

    manifests = [path for path in (ROOT / "config.json", SERVE) if path.is_file()]
    named = {name for path in manifests for name in json.loads(path.read_text(encoding="utf-8"))["files"].values()}
    for path in [*manifests, *(ROOT / name for name in named)]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "release")
    git("remote", "add", "origin", "https://github.com/owner/hrda.git")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    git("config", "branch.main.remote", "origin")
    git("config", "branch.main.merge", "refs/heads/main")
    return tmp_path


@pytest.mark.parametrize("sub_app", [None, "serve"])
def test_release_command_takes_both_manifests(sub_app: str | None, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    if sub_app and not SERVE.is_file():
        pytest.skip("there is no serve/config.json")
    command = importlib.import_module("supervisely.cli.release.run") and sys.modules["supervisely.cli.release.run"]
    released = {}

    def release(_server, _token, _key, _repo, config, _readme, _note, _version, _modal, _slug, _user, sub, *rest):
        released.update(config=config, sub_app=sub, files=rest[-1])
        return SimpleNamespace(status_code=200, json=lambda: {"success": True})

    monkeypatch.setenv("SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("API_TOKEN", "t" * 32)
    monkeypatch.delenv("APP_RELEASE_TOKEN", raising=False)
    monkeypatch.setattr(command, "get_user_data", lambda *_: {"id": 1, "login": "tester"})
    monkeypatch.setattr(command, "get_instance_version", lambda *_: {"version": MANIFEST["instance_version"]})
    monkeypatch.setattr(command, "get_app_from_instance", lambda *_: {"id": 1})
    monkeypatch.setattr(command, "release", release)
    monkeypatch.chdir(checkout)
    assert command.run(None, sub_app, "owner/hrda", True, "v0.1.0", "first release", False)
    assert released["config"] == json.loads((checkout / (sub_app or ".") / "config.json").read_text(encoding="utf-8"))
    assert released["sub_app"] == (sub_app or "")
    assert released["files"] and all(Path(path).is_file() for path in released["files"].values())


def wanted_of_an_instance() -> str:
    """What the pinned SDK works with, by the table that it comes with: the last entry that is not newer than it."""
    table = json.loads((Path(supervisely.__file__).parent / "versions.json").read_text(encoding="utf-8"))
    known = {
        instance: numbers(sdk) for instance, sdk in table.items() if numbers(sdk) <= numbers(supervisely.__version__)
    }
    return max(known, key=numbers)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_both_manifests_are_complete_and_of_one_release():
    manifests = [MANIFEST] + ([json.loads(SERVE.read_text(encoding="utf-8"))] if SERVE.is_file() else [])
    for manifest in manifests:
        assert set(manifest) >= REQUIRED
        assert (manifest["type"], manifest["version"], manifest["port"]) == ("app", "2.0.0", 8000)
        assert {"neural network", "images", "semantic segmentation", "framework:HRDA"} <= set(manifest["categories"])
        assert manifest["license"] == {"type": "Apache-2.0"}
        assert manifest["instance_version"] == wanted_of_an_instance()
        assert f"FROM nvidia/cuda:{manifest['cuda_version']}." in (ROOT / "docker" / "Dockerfile").read_text()
        words = manifest["entrypoint"].split()
        assert words[words.index("--ws") + 1] == "websockets"
        assert words[words.index("--ws-max-size") + 1] == "65536", "pages send next to nothing"
    assert len({manifest["docker_image"] for manifest in manifests}) == 1


def test_manifest_starts_from_an_image_project():
    assert (MANIFEST["name"], MANIFEST["task_location"]) == ("Train HRDA", "workspace_tasks")
    assert MANIFEST["context_menu"]["target"] == ["images_project"]
    assert "train" in MANIFEST["categories"] and "serve" not in MANIFEST["categories"]
    assert (MANIFEST["need_gpu"], MANIFEST["gpu"]) == (False, "preferred"), "it runs on a CPU too"


def test_framework_name_is_the_one_that_experiments_are_filed_under():
    from train.app import FRAMEWORK

    assert MANIFEST["framework"]["name"] == FRAMEWORK
    assert f"framework:{FRAMEWORK}" in MANIFEST["categories"]
    assert MANIFEST["framework"]["models"] == len(MODELS)


def test_manifest_says_the_formats_that_the_page_offers_to_export():
    options = yaml.safe_load((ROOT / "train" / "app_options.yaml").read_text(encoding="utf-8"))
    formats = {"ONNX": "onnx", "TensorRT": "tensorrt"}
    offered = [name for name, key in formats.items() if options.get(f"export_{key}_supported", False)]
    framework = MANIFEST["framework"]
    assert framework["export"] == offered
    assert [name for name, key in formats.items() if framework[key]] == offered


def test_entrypoint_names_the_app_that_is_there():
    words = MANIFEST["entrypoint"].split()
    assert words[:3] == ["python", "-m", "uvicorn"]
    module, attribute = words[3].split(":")
    text = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert re.search(rf"^{attribute} = ", text, re.MULTILINE)
    assert words[words.index("--port") + 1] == str(MANIFEST["port"])


def test_files_are_those_that_the_app_reads():
    from train.app import MODELS as MODELS_PATH

    assert ROOT / MANIFEST["files"]["models"] == MODELS_PATH
    assert ROOT / MANIFEST["files"]["hyperparams"] == DEFAULT_YAML


def test_every_model_of_the_list_can_be_trained():
    from dataclasses import replace

    from common.hrda.catalogue import ENCODERS

    names = [entry["meta"]["model_name"] for entry in MODELS]
    assert names == list(ENCODERS)
    for entry in MODELS:
        assert entry["Model"] == entry["meta"]["model_name"]
        assert entry["meta"]["task_type"] == "semantic segmentation"
        assert entry["meta"]["model_files"] == {}, "random initialisation: there is nothing to download"
        settings = TrainSettings()
        assert replace(settings, model=replace(settings.model, encoder=entry["Model"])).model.encoder == entry["Model"]


def test_model_sizes_of_the_list_are_the_networks():
    from common.hrda import ModelSettings, build_segmentor

    [entry] = [entry for entry in MODELS if entry["Model"] == "mit_b0"]
    model = build_segmentor(ModelSettings(encoder="mit_b0"))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, model.backbone)]
    assert [entry["Parameters (M)"], entry["Encoder parameters (M)"]] == [f"{size:.1f}" for size in sizes]


def test_the_list_says_what_the_catalogue_says():
    from common.hrda import ModelSettings
    from common.hrda.catalogue import ENCODERS
    from common.hrda.training.memory import parameter_counts

    for entry in MODELS:
        spec = ENCODERS[entry["Model"]]
        encoder, whole = parameter_counts(ModelSettings(encoder=entry["Model"]))
        assert encoder == spec.parameters
        assert entry["Encoder"] == spec.title
        assert entry["Encoder parameters (M)"] == f"{encoder / 1e6:.1f}"
        assert entry["Parameters (M)"] == f"{whole / 1e6:.1f}"
        assert ("non-commercial" in entry["Licence"]) == ("non-commercial" in spec.weights_licence)
