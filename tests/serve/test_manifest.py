"""serve/config.json, released by the SDK's own command to an instance that only listens; and the images."""

import ast
import json
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from io import BytesIO
from pathlib import Path

import pytest
from requests_toolbelt.multipart.decoder import MultipartDecoder

from serve.server import HRDAServer

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = json.loads((ROOT / "serve" / "config.json").read_text(encoding="utf-8"))
SDK_VERSION = re.search(r"^supervisely==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


class Instance(BaseHTTPRequestHandler):
    """Answers the six methods that `supervisely release` calls, and keeps what is released."""

    released: dict[str, bytes]

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = self.path.rsplit("/", 1)[-1]
        if method == "ecosystem.release":
            self.server.released = {
                re.search(rb'name="(\w+)"', part.headers[b"Content-Disposition"])[1].decode(): part.content
                for part in MultipartDecoder(body, self.headers["Content-Type"]).parts
            }
        answers = {
            "users.me": {"id": 1, "login": "tester"},
            "instance.version": {"version": MANIFEST["instance_version"]},
            "ecosystem.info": {"id": 5},
            "ecosystem.release": {"success": True},
        }
        answer = json.dumps(answers.get(method, {})).encode()
        if method == "ecosystem.file.download":
            answer = self.server.released["archive"]
        self.send_response(200 if method in answers or method == "ecosystem.file.download" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Instance)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("API_TOKEN", "t" * 32)
    monkeypatch.delenv("APP_RELEASE_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone as a developer has it, pushed to its remote: the files that the manifest and the app need."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=clone, check=True)

    clone = tmp_path / "clone"
    for path in [*(ROOT / "serve").iterdir(), *(ROOT / name for name in MANIFEST["files"].values())]:
        if path.is_file():
            target = clone / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "release")
    git("remote", "add", "origin", "https://github.com/owner/hrda.git")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    git("config", "branch.main.remote", "origin")
    git("config", "branch.main.merge", "refs/heads/main")
    return clone


def test_release_command_accepts_the_sub_app(instance, checkout, monkeypatch):
    from supervisely.cli.release import run

    monkeypatch.chdir(checkout)
    assert run(
        app_directory=None,
        sub_app_directory="serve",
        slug="owner/hrda",
        autoconfirm=True,
        release_version="v0.1.0",
        release_description="first release",
        share=False,
    )
    released = instance.released
    assert json.loads(released["config"]) == MANIFEST
    assert released["subAppPath"] == b"serve"
    assert released["readme"].decode() == (ROOT / "serve" / "README.md").read_text(encoding="utf-8")
    files = json.loads(released["files"])
    assert files == {name: (ROOT / path).read_text(encoding="utf-8") for name, path in MANIFEST["files"].items()}
    with tarfile.open(fileobj=BytesIO(released["archive"])) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"serve/main.py", "serve/server.py", "serve/models.json", "serve/inference_settings.yaml"} <= names


def test_manifest_describes_this_app():
    assert (MANIFEST["type"], MANIFEST["version"], MANIFEST["name"]) == ("app", "2.0.0", "Serve HRDA")
    assert MANIFEST["task_location"] == "application_sessions"
    assert MANIFEST["session_tags"] == ["deployed_nn"], "labelling tools find sessions by it"
    assert (MANIFEST["need_gpu"], MANIFEST["gpu"]) == (False, "preferred")
    assert MANIFEST["license"] == {"type": "Apache-2.0"}
    assert [int(part) for part in MANIFEST["instance_version"].split(".")] >= [6, 18, 3]


def test_manifest_is_found_by_the_framework_of_the_app():
    """`api.nn.deploy` looks for a serving app by these two categories."""
    assert {"serve", f"framework:{HRDAServer.FRAMEWORK_NAME}"} <= set(MANIFEST["categories"])
    assert {"neural network", "images", "videos", "semantic segmentation"} <= set(MANIFEST["categories"])
    assert "train" not in MANIFEST["categories"]


def test_files_of_the_manifest_are_those_that_the_app_reads():
    assert ROOT / MANIFEST["files"]["models"] == Path(HRDAServer.MODELS)
    assert ROOT / MANIFEST["files"]["inference_settings"] == Path(HRDAServer.INFERENCE_SETTINGS)
    assert (ROOT / MANIFEST["files"]["hyperparams"]).is_file()


def test_entrypoint_names_the_app_that_is_there():
    words = MANIFEST["entrypoint"].split()
    assert words[:3] == ["python", "-m", "uvicorn"]
    module, attribute = words[3].split(":")
    assert (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8").count("model = ") == 1
    assert attribute == "model.app"
    assert words[words.index("--port") + 1] == str(MANIFEST["port"])


def test_images_have_the_sdk_and_the_code_that_the_app_needs():
    app = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    deploy = (ROOT / "docker" / "deploy.Dockerfile").read_text(encoding="utf-8")
    assert f"LABEL python_sdk_version={SDK_VERSION}" in app
    assert re.search(r"^FROM nvidia/cuda:\S+-cudnn-runtime-ubuntu22\.04$", app, re.MULTILINE)
    assert "pip install -r /tmp/requirements.txt -r /tmp/requirements-batch.txt" in app
    installed = re.search(r"apt-get install -y --no-install-recommends \\\n\s+(python3.11 .+) \\", app)[1].split()
    assert {"g++", "python3.11-dev"} <= set(installed), "torch.compile needs them, which the setting compile asks for"
    assert re.search(r"^FROM (\S+)$", deploy, re.MULTILINE)[1] == MANIFEST["docker_image"]
    assert 'ENTRYPOINT ["python", "-m", "serve", "deploy", "--host", "0.0.0.0"]' in deploy
    copied = re.findall(r"^COPY (\S+) ", app + deploy, re.MULTILINE)
    assert {"requirements.txt", "common", "serve"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_images_hold_every_package_that_the_app_imports():
    """Of ours the deploy image has `common` and `serve`, of others what the two lists of requirements name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "serve").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"common", "serve"}
    assert imported >= {"supervisely", "torch"}
    lists = [(ROOT / f"{name}.txt").read_text(encoding="utf-8") for name in ("requirements", "requirements-batch")]
    required = re.findall(r"^([\w-]+)(?:\[\w+\])?==", "\n".join(lists), re.MULTILINE)
    providers = packages_distributions()
    for name in imported:
        assert {canonical(each) for each in providers[name]} & {canonical(each) for each in required}, name


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_user_page_tells_every_setting_and_argument():
    page = (ROOT / "serve" / "README.md").read_text(encoding="utf-8")
    from dataclasses import fields

    from serve.model.settings import ServeSettings

    for field in fields(ServeSettings):
        assert f"| `{field.name}` |" in page
    assert "python -m serve deploy" in page
    assert "python -m serve predict" in page
