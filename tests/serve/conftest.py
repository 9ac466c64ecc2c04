"""A tiny real model, and the app around it as `python -m serve deploy` starts it, behind real HTTP."""

import contextlib
import logging
import runpy
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, save_checkpoint
from common.web.connections import BoundedProtocol
from sandbox.testing import Sandbox, running_sandbox

if TYPE_CHECKING:
    from serve.server import HRDAServer

CLASSES = ("__bg__", "crack", "stain")
PALETTE = ((0, 0, 0), (220, 20, 60), (30, 60, 200))
MODEL = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=16, attention_channels=16)
INSTANCE = ("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID", "WORKSPACE_ID", "TASK_ID", "ENV", "PROJECT_ID")


@pytest.fixture(autouse=True)
def lines_of_the_log() -> Iterator[None]:
    """The SDK's log is as it was after a test in which the command line has made it readable for a person."""
    kept = [(handler, handler.formatter, list(handler.filters)) for handler in logging.getLogger("logger").handlers]
    yield
    for handler, formatter, filters in kept:
        handler.setFormatter(formatter)
        handler.filters[:] = filters


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "model.pth")


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    """90×140 RGB: no multiple of anything, larger than a window both ways."""
    return np.random.default_rng(7).integers(0, 256, (90, 140, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def photo(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def no_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """No instance is known, and the folders that the SDK writes to are ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in INSTANCE:
            patch.delenv(name, raising=False)
        patch.setenv("SLY_APP_DATA_DIR", str(tmp_path_factory.mktemp("app_data")))
        patch.setenv("SMART_CACHE_CONTAINER_DIR", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="module")
def running(checkpoint: Path, no_instance: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The running app: `.server` and `.url`."""
    with serving(checkpoint) as app:
        yield app


@contextlib.contextmanager
def serving(checkpoint: Path, devices: str = "cpu", **variables: object) -> Iterator[SimpleNamespace]:
    """The app as `python -m serve deploy` sets it up, with more environment variables, behind real HTTP.

    Yields `.server`, `.url` and `.web`, which is uvicorn's server.
    """
    from serve.server import HRDAServer

    with pytest.MonkeyPatch.context() as patch, own_app():
        for name, value in variables.items():
            patch.setenv(name, str(value))
        patch.setattr(uvicorn, "run", lambda *args, **kwargs: None)
        patch.setattr(sys, "argv", ["serve", "deploy", "--model", str(checkpoint), "--device", "cpu"])
        server = HRDAServer(devices=devices)
        server.serve()
        listener = socket.create_server(("127.0.0.1", 0))
        web = uvicorn.Server(uvicorn.Config(server.app, http=BoundedProtocol, log_level="warning", access_log=False))
        thread = threading.Thread(target=web.run, args=([listener],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not web.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert web.started, "the app did not start"
        try:
            yield SimpleNamespace(server=server, url=f"http://127.0.0.1:{listener.getsockname()[1]}", web=web)
        finally:
            web.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, no_instance: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path_factory.mktemp("instance")) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def api(instance: Sandbox):
    import supervisely

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
        yield supervisely.Api(instance.address, instance.token, retry_count=1)


@pytest.fixture
def body(instance: Sandbox) -> dict[str, str]:
    """What a request to the app needs for ids of the instance."""
    return {"api_token": instance.token}


@contextlib.contextmanager
def serving_beside(instance: Sandbox, checkpoint: Path, **variables: object) -> Iterator[SimpleNamespace]:
    """The app as `serving` sets it up, which knows the instance."""
    known = {"SERVER_ADDRESS": instance.address, "API_TOKEN": instance.token, "TEAM_ID": instance.team_id}
    known |= {"SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK": "true", "PUBLIC_API_RETRIES": "1"}
    with serving(checkpoint, **known, **variables) as running:
        yield running


@pytest.fixture(scope="module")
def page(no_instance: pytest.MonkeyPatch) -> Iterator["HRDAServer"]:
    """The app with its page, as uvicorn starts it on an instance; the instance itself does not answer."""
    with pytest.MonkeyPatch.context() as patch, own_app():
        from supervisely.nn.inference.gui import serving_gui_template

        patch.setenv("SERVER_ADDRESS", "http://127.0.0.1:9")
        patch.setenv("API_TOKEN", "no token")
        patch.setenv("TEAM_ID", "1")
        patch.setattr(serving_gui_template, "get_experiment_infos", lambda *args: [])
        patch.setattr(sys, "argv", ["uvicorn", "serve.main:model.app", "--port", "8000"])
        server = runpy.run_module("serve.main")["model"]
        patch.setattr(server.api.file, "get_info_by_path", lambda *args: None)
        yield server


@contextlib.contextmanager
def own_app() -> Iterator[None]:
    """The SDK keeps one app a process, its data and how it renders: those of other tests are put aside meanwhile."""
    from supervisely.app import DataJson, StateJson
    from supervisely.app.fastapi.subapp import Application, _MainServer
    from supervisely.app.fastapi.websocket import WebsocketManager
    from supervisely.app.singleton import Singleton
    from supervisely.app.widgets_context import JinjaWidgets

    kinds = (Application, _MainServer, JinjaWidgets, DataJson, StateJson, WebsocketManager)
    kept = {kind: Singleton._instances.pop(kind, None) for kind in kinds}
    try:
        yield
    finally:
        for kind, app in kept.items():
            Singleton._instances.pop(kind, None)
            if app is not None:
                Singleton._instances[kind] = app


def write_checkpoint(
    path: Path,
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
    metrics: Mapping[str, object] | None = None,
    **settings: object,
) -> Path:
    torch.manual_seed(seed)
    bundle = CheckpointBundle(
        student=build_segmentor(MODEL).eval(),
        classes=classes,
        palette=PALETTE,
        settings={"model": MODEL.to_dict(), **settings},
        metrics=dict(metrics or {}),
    )
    save_checkpoint(path, bundle)
    return path


@pytest.fixture
def make_checkpoint(tmp_path: Path):
    """Write another tiny checkpoint: `make_checkpoint("other.pth", seed=1, classes=…, input=…)`."""
    return lambda name, **options: write_checkpoint(tmp_path / name, **options)
