"""Train HRDA and Serve HRDA in the browser, on generated photos and a local instance."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import supervisely as sly
from supervisely.nn.experiments import get_experiment_infos

from sandbox import page_assets
from sandbox.demo import demonstration as demo
from sandbox.demo.arms import FRAMEWORK
from sandbox.demo.domains import GENERATED, SIDE, Domain
from sandbox.demo.processes import App, free_port
from sandbox.server import Sandbox, running
from sandbox.synthetic.projects import write_project

PHOTOS = {"source": 60, "target": 40, "val": 12}
POLL_S = 2
WHAT_TO_DO = """
In Train HRDA: choose the project "target" as target and "val" as validation, then Select in every card, with the
preset "Quick look" among the hyperparameters and mit_b0 as model; Start. After ten iterations it says what it takes.
In Serve HRDA: when the training is uploaded, its experiment is in the table. Choose it and press Serve.
Ctrl-C ends all three. What was trained is there again at the next start.
"""
NO_PAGE_FILES = "The page's files are not installed (that takes Node and `make page`): the pages need the internet."


def serve_both(out: Path) -> None:
    """Start the instance and both apps, and start an app anew when it has done its work; runs until it is interrupted.

    Raises:
        DemoError: an app does not start.
        ImportFailed: a project cannot be imported.
        OSError: a file cannot be written.
    """
    sly.logger.setLevel("WARNING")
    # The sandbox speaks plain http; without this the SDK tries https first.
    os.environ["SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK"] = "true"
    for role, count in PHOTOS.items():
        draw(out, role, count)
    with running(out / "instance", out / "projects") as sandbox:
        projects = {one.name: Domain(one.name, one.project_id, None) for one in sandbox.imported}
        train = Restartable(lambda port, task: demo.train_app(sandbox, task, projects, out, port=port))
        serve = Restartable(lambda port, task: demo.serve_app(sandbox, task, out, port=port))
        with contextlib.closing(train), contextlib.closing(serve):
            train.start(demo.new_task(sandbox, "config.json"))
            serve.start(demo.new_task(sandbox, "serve/config.json"))
            print(f"Train HRDA: {train.address}\nServe HRDA: {serve.address}\nSandbox:    {sandbox.address}")
            print(WHAT_TO_DO, flush=True)
            if not page_assets.installed():
                print(NO_PAGE_FILES, flush=True)
            watch(sandbox, train, serve)


def draw(out: Path, role: str, count: int) -> None:
    """Draw the photos of a domain, unless they are there: whole or not at all, whenever it is broken off."""
    domain, _, seed, labelled = GENERATED[role]
    home, unfinished = out / "projects" / role, out / "unfinished"
    if home.exists():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    # In this process alone: others would each answer a Ctrl-C in their own way, and it takes a second or two.
    write_project(unfinished, domain, count, seed=seed, size=(SIDE, SIDE), labelled=labelled, workers=1)
    home.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(home)


class Restartable:
    """An app that can be started again at the same address.

    Args:
        run: starts it on a port for a task.
    """

    def __init__(self, run: Callable[[int, int], AbstractContextManager[App]]) -> None:
        self._run, self._port = run, free_port()
        self._until_end = contextlib.ExitStack()
        self._app: App | None = None

    @property
    def address(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._app is not None and self._app.process.poll() is not None

    def start(self, task_id: int) -> None:
        """End what runs, and start for a task.

        Raises:
            DemoError: it does not start.
        """
        self._until_end.close()
        self._app = self._until_end.enter_context(self._run(self._port, task_id))

    def close(self) -> None:
        """End it."""
        self._until_end.close()


def watch(sandbox: Sandbox, train: Restartable, serve: Restartable) -> None:
    """Train HRDA ends with its upload, and Serve HRDA lists experiments when it starts: both are started anew then."""
    api = sly.Api(sandbox.address, sandbox.token)
    known = len(get_experiment_infos(api, sandbox.team_id, FRAMEWORK))
    while True:
        time.sleep(POLL_S)
        if train.has_ended:
            train.start(demo.new_task(sandbox, "config.json"))
            found = len(get_experiment_infos(api, sandbox.team_id, FRAMEWORK))
            if found > known:
                serve.start(demo.new_task(sandbox, "serve/config.json"))
                print("The experiment is uploaded: reload the page of Serve HRDA, it lists it.", flush=True)
            known = found
            print("Train HRDA has ended and was started anew: reload its page to train again.", flush=True)
        if serve.has_ended:
            serve.start(demo.new_task(sandbox, "serve/config.json"))
