"""Starts the two apps of this checkout in processes of their own, as the agent of an instance does."""

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from sandbox import ecosystem, tasks
from sandbox.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = ("config.json", "serve/config.json")
HOST = "127.0.0.1"
_END_LIMIT_S = 20


class Agent:
    """Runs what ``tasks.run.app`` asks for, and tells the sandbox how it ended.

    Args:
        storage: Of the sandbox.
        env: Makes the environment of an app from further variables.
        folder: A folder below it for each task: what the app keeps, and ``log.txt``.
    """

    def __init__(self, storage: Storage, env: Callable[..., dict[str, str]], folder: Path) -> None:
        self._storage, self._env, self._folder = storage, env, folder
        self._processes: dict[int, subprocess.Popen] = {}
        self._watchers: list[threading.Thread] = []
        self._configs: dict[int, dict] = {}
        for name in MANIFESTS:
            config = json.loads((ROOT / name).read_text(encoding="utf-8"))
            self._configs[ecosystem.add_module({"config": config}, storage)["id"]] = config

    def starts(self, module_id: int) -> bool:
        """Whether that module is one of the apps."""
        return module_id in self._configs

    def start(self, task: dict) -> int:
        """Start the app of a task by its manifest's entrypoint, in production mode.

        Args:
            task: Body of a task, as :func:`sandbox.tasks.create` takes it. ``params.state`` goes into the app's
                environment as the platform puts it there.

        Returns:
            The task's id; the app may not answer yet.
        """
        config = self._configs[task["moduleId"]]
        port = _free_port()
        with self._storage.transaction():
            task_id = tasks.create(self._storage, {**task, "address": f"http://{HOST}:{port}"})
        folder = self._folder / str(task_id)
        folder.mkdir(parents=True)
        state = (task.get("params") or {}).get("state") or {}
        env = self._env(
            TASK_ID=task_id, ENV="production", APP_NAME=config["name"], PROJECT_ID=state.get("slyProjectId"),
            SLY_APP_DATA_DIR=folder / "app_data", APPS_CACHE_DIR=self._folder / "cache", PYTHONPATH=ROOT,
            **{f"modal.state.{name}": _text(value) for name, value in state.items() if value is not None},
        )  # fmt: skip
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                _command(config["entrypoint"], port), cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        self._processes[task_id] = process
        watcher = threading.Thread(target=self._watch, args=(task_id, process), name=f"task {task_id}")
        self._watchers.append(watcher)
        watcher.start()
        return task_id

    def stop(self, task_id: int) -> None:
        """Ask the app of a task to end, if it is one that was started here."""
        if task_id in self._processes:
            self._processes[task_id].terminate()

    def close(self) -> None:
        """End all apps."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        for watcher in self._watchers:
            watcher.join()

    def _watch(self, task_id: int, process: subprocess.Popen) -> None:
        code = process.wait()
        tasks.end(self._storage, task_id, "finished" if code == 0 else "error")


def _command(entrypoint: str, port: int) -> list[str]:
    words = shlex.split(entrypoint)
    words[words.index("--host") + 1], words[words.index("--port") + 1] = HOST, str(port)
    return [sys.executable, *words[1:]]


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
