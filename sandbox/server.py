"""Running the sandbox: state, import and HTTP server together."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from sandbox import ecosystem, page_assets, tasks
from sandbox.agent import Agent
from sandbox.app import build_app
from sandbox.importer import Imported, import_projects
from sandbox.storage import TEAM_ID, USER_ID, USER_LOGIN, WORKSPACE_ID, Storage

HOST = "127.0.0.1"
_START_LIMIT_S = 30


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox."""

    address: str
    """E.g. ``http://127.0.0.1:40123``."""
    token: str
    storage: Storage = field(repr=False)
    imported: tuple[Imported, ...] = ()
    team_id: int = TEAM_ID
    workspace_id: int = WORKSPACE_ID

    def env(self, **extra: object) -> dict[str, str]:
        """The environment of a child process that shall take this sandbox for its instance.

        Args:
            **extra: Further variables, e.g. ``TASK_ID=7, ENV="production"``; one that is None is taken out. TASK_ID
                is set under its second name too, by which the SDK's ``Api`` and workflow know the task. SLY_ASSETS_URL
                names this sandbox where its page files are installed.

        Returns:
            This process's environment, changed.
        """
        direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST, "localhost"]))
        wanted = {
            "SERVER_ADDRESS": self.address, "API_TOKEN": self.token, "TEAM_ID": self.team_id,
            "WORKSPACE_ID": self.workspace_id, "USER_ID": USER_ID, "USER_LOGIN": USER_LOGIN,
            "context.teamId": self.team_id, "context.workspaceId": self.workspace_id, "context.userId": USER_ID,
            # There is no https here; without this the SDK tries it first.
            "SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK": "true",
            "NO_PROXY": direct, "no_proxy": direct, "SUPERVISELY_TASK_ID": extra.get("TASK_ID"),
            "SLY_ASSETS_URL": f"{self.address}/assets" if page_assets.installed() else os.environ.get("SLY_ASSETS_URL"),
            **extra,
        }  # fmt: skip
        merged = {**os.environ, **wanted}
        return {key: str(value) for key, value in merged.items() if value is not None}

    def create_task(self, name: str = "app", address: str | None = None, **body: object) -> dict:
        """Add a task for an app, as ``sandbox.tasks.add`` does; its ``id`` goes into the app's TASK_ID."""
        return tasks.tasks_add({"name": name, "address": address, **body}, self.storage)

    def set_task_address(self, task_id: int, address: str) -> dict:
        """Say where a task's app is reached, as ``sandbox.tasks.set-address`` does."""
        return tasks.tasks_set_address({"id": task_id, "address": address}, self.storage)

    def add_module(self, config: dict, slug: str | None = None, address: str | None = None) -> dict:
        """Add an app to the ecosystem by its config.json, as ``sandbox.modules.add`` does."""
        return ecosystem.add_module({"config": config, "slug": slug, "address": address}, self.storage)


@contextlib.contextmanager
def running(
    state: Path, data: Path | None = None, port: int = 0, token: str | None = None, *, apps: bool = False
) -> Iterator[Sandbox]:
    """Serve a sandbox in a thread until the block ends.

    Args:
        state: Folder of the state; made if it is not there, gone on with if it is.
        data: Folder with projects in Supervisely format to import; those already in the state are left alone.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        token: The API token; the one of the last run, or a new one, if it is not given.
        apps: Start Train HRDA and Serve HRDA of this checkout when ``tasks.run.app`` asks for them.

    Raises:
        ImportFailed: If ``data`` holds no project or a damaged one.
        OSError: If the port is taken.
    """
    with contextlib.closing(Storage(state)) as storage:
        imported = tuple(import_projects(storage, data)) if data is not None else ()
        sandbox_token = storage.token(token)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            app = build_app(storage, sandbox_token)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
            address = f"http://{HOST}:{listener.getsockname()[1]}"
            thread.start()
            try:
                _wait(server, thread)
                sandbox = Sandbox(address, sandbox_token, storage, imported)
                if apps:
                    app.state.agent = Agent(storage, sandbox.env, (state / "apps").resolve())
                yield sandbox
            finally:
                if app.state.agent is not None:
                    app.state.agent.close()
                server.should_exit = True
                thread.join()


def _wait(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("The sandbox's HTTP server did not start; its log says why.")
        time.sleep(0.01)
