"""The app as the platform runs it, for tests: a child process, real HTTP, the sandbox as its instance."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import supervisely as sly
from supervisely.nn.experiments import ExperimentInfo

from sandbox.synthetic.projects import write_project
from sandbox.testing import Sandbox, running_sandbox
from tests.weights import NOWHERE

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = [json.loads((ROOT / path).read_text(encoding="utf-8")) for path in ("config.json", "serve/config.json")]
IMAGES = 3
HYPERPARAMETERS = """
mode: uda
iterations: 2
batch_size: 2
log_interval: 1
model: {crop_size: [64, 64], decoder_channels: 16, attention_channels: 16}
data: {workers: 0, scale: {long_edge: null, short_edge: null}}
optimizer: {warmup_iterations: 1}
validation: {max_images: 1}
"""
LONG_HYPERPARAMETERS = HYPERPARAMETERS.replace("iterations: 2", "iterations: 500")
START_LIMIT_S, TRAIN_LIMIT_S = 180, 300


class Instance:
    """The sandbox with the three projects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = contextlib.ExitStack()
        self._address: dict[str, Any] = {}
        size = (64, 96)
        data = folder / "data"
        write_project(data / "source", "source", IMAGES, size=size, workers=1)
        write_project(data / "target", "real_like", IMAGES, seed=1, size=size, labelled=False, workers=1)
        write_project(data / "validation", "real_like", IMAGES, seed=2, size=size, workers=1)
        self.sandbox = self._start(data)
        self._address = {"port": int(self.sandbox.address.rpartition(":")[2]), "token": self.sandbox.token}
        self.api = sly.Api(self.sandbox.address, self.sandbox.token)
        self.module_id = [self.sandbox.add_module(manifest) for manifest in MANIFESTS][0]["id"]
        self.projects = {project.name: project.project_id for project in self.sandbox.imported}
        meta = sly.ProjectMeta.from_json(self.api.project.get_meta(self.projects["source"]))
        others = [sly.ObjClass("__bg__", sly.Bitmap), sly.ObjClass("axis", sly.Polyline)]
        self.api.project.update_meta(self.projects["source"], meta.add_obj_classes(others))

    def _start(self, data: Path | None = None) -> Sandbox:
        return self._running.enter_context(running_sandbox(self.folder / "state", data, apps=True, **self._address))

    def go_away(self) -> None:
        """Stop answering."""
        self._running.close()

    def come_back(self) -> None:
        """Answer again, at the same address and with the same state."""
        self.sandbox = self._start()

    def new_task(self, url: str) -> int:
        """Number of a task that leads to an app at `url`."""
        return self.sandbox.create_task("Train HRDA", url, moduleId=self.module_id)["id"]

    def state(self, **changes: Any) -> dict[str, Any]:
        """An app state that trains, with `changes`."""
        return {
            "input": {role: {"project_id": self.projects[role]} for role in ("source", "target", "validation")},
            "model": {"source": "Pretrained models", "model_name": "mit_b0"},
            "classes": ["crack"],
            "hyperparameters": HYPERPARAMETERS,
            **changes,
        }

    def read(self, experiment: ExperimentInfo, name: str) -> Path:
        """A file of an experiment, downloaded from Team Files."""
        path = self.folder / "downloads" / str(experiment.task_id) / name
        self.api.file.download(self.sandbox.team_id, f"{experiment.artifacts_dir}{name}", str(path))
        return path


@dataclass
class App:
    """The app in a child process."""

    process: subprocess.Popen
    url: str
    log: Path
    task_id: int

    def post(self, route: str, state: dict[str, Any] | None = None, limit: float = 60) -> requests.Response:
        """POST to the app as the platform does."""
        body = {"state": state or {}, "context": {}}
        return requests.post(f"{self.url}/{route}", json=body, timeout=limit)

    def status(self) -> str:
        """What /train_status says."""
        return self.post("train_status").json()["status"]

    def data(self) -> dict[str, Any]:
        """What the page's widgets show, by their id."""
        return self.post("sly/data").json()

    def press(self, button: str) -> requests.Response:
        """Click a button of that id."""
        return self.post(f"{button}/button_clicked_cb")

    def wait_for(self, what: str, condition: Callable[[], Any], limit: float = TRAIN_LIMIT_S) -> Any:
        """Wait until `condition` answers with something true, and return that."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, f"ended while waiting for {what}:\n{self.tail()}"
            time.sleep(0.1)
        pytest.fail(f"{what} did not come in {limit} s; status: {self.status()}\n{self.tail()}")

    def tail(self) -> str:
        """The end of the log, for messages of failed tests."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


@contextlib.contextmanager
def running_instance(folder: Path) -> Iterator[Instance]:
    """An instance whose variables this process has too."""
    made = Instance(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.sandbox.env().items():
                patch.setenv(name, value)
            yield made
    finally:
        made.go_away()


@contextlib.contextmanager
def started(
    instance: Instance, mode: str, *, name: str | None = None, task_id: int | None = None, **environment: object
) -> Iterator[App]:
    """Start the app by the manifest's entrypoint and wait until it answers.

    Args:
        instance: on which.
        mode: 'production' or 'development'.
        name: of the app's folder; the same name starts it on what an earlier one left there.
        task_id: of an earlier task; a new one if it is not given.
        environment: further variables.
    """
    folder = instance.folder / (name or mode)
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    task_id = instance.new_task(url) if task_id is None else task_id
    words = MANIFESTS[0]["entrypoint"].replace("0.0.0.0", "127.0.0.1").replace("8000", str(port)).split()
    env = instance.sandbox.env(
        ENV=mode,
        TASK_ID=task_id,
        PROJECT_ID=instance.projects["source"],
        APP_NAME="Train HRDA",
        SLY_APP_DATA_DIR=folder / "app_data",
        APPS_CACHE_DIR=folder / "cache",
        PYTHONPATH=ROOT,
        OMP_NUM_THREADS=1,
        PYTHONFAULTHANDLER=1,
        PRETRAINED_WEIGHTS_URL=NOWHERE,
        **environment,
    )
    log = folder / "log.txt"
    with log.open("a") as stream:
        process = subprocess.Popen([sys.executable, *words[1:]], cwd=folder, env=env, stdout=stream, stderr=stream)
    app = App(process, url, log, task_id)
    try:
        wait_until_alive(app)
        yield app
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_alive(app: App) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert app.process.poll() is None, app.tail()
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{app.url}/is_alive", timeout=5).ok:
                return
        time.sleep(0.2)
    pytest.fail(f"the app did not start in {START_LIMIT_S} s:\n{app.tail()}")
