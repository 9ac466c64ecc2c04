"""A folder in which a reader of the documents works: the project is in it, and what is written stays there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from sandbox.demo.processes import free_port
from tests.documents.fences import PYTHON, Fence
from tests.documents.interpreter import END

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "serve/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINKED = ("train", "serve", "common", "sandbox", "benchmarks", "docker", "Makefile", "requirements.txt", "config.json")
BLOCK_LIMIT_S = 180
START_LIMIT_S = 120
INSTANCE = ("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID", "WORKSPACE_ID", "TASK_ID", "ENV", "PROJECT_ID", "DATASET_ID")


@dataclass(frozen=True)
class Outcome:
    """What became of a block."""

    code: int
    """Exit code; of a server that answered, 0."""
    output: str
    """What it printed, errors too."""


@dataclass
class Place:
    """The folder, and what runs in it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    """The environment of all blocks."""
    server: subprocess.Popen | None = None
    python: subprocess.Popen | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in LINKED:
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        home = self.folder / "home"
        home.mkdir()
        self.env = {name: value for name, value in os.environ.items() if name not in INSTANCE} | {
            "HOME": str(home),
            "PATH": f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SLY_APP_DATA_DIR": str(home / "app_data"),
            "SMART_CACHE_CONTAINER_DIR": str(home / "cache"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def run(self, block: Fence, variables: Mapping[str, str], *, ready: str | None = None) -> Outcome:
        """Run a block as it stands.

        Args:
            block: in a shell's language or in Python.
            variables: for the environment, those that the block names.
            ready: the block runs until stopped, and this path answers well once it is up. It is left running, with a
                port of its own, until the next such block or the end, and later blocks find its address as URL.
        """
        env = self.env | dict(variables)
        if block.language == PYTHON:
            return self._run_python(block.text, env)
        if ready is not None:
            return self._serve(block.text, env, ready)
        process = subprocess.Popen(
            ["bash", "-e", "-c", block.text],
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=BLOCK_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Outcome(1, f"{output}\nThe block did not end within {BLOCK_LIMIT_S} s.")
        return Outcome(process.returncode, output)

    def _serve(self, text: str, env: dict[str, str], ready: str) -> Outcome:
        self._end_server()
        port = free_port()
        log = self.folder / f"server_{port}.log"
        with log.open("wb") as stream:
            self.server = subprocess.Popen(
                ["bash", "-e", "-c", text],
                cwd=self.folder,
                env=env | {"PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.env["URL"] = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if (code := self.server.poll()) is not None:
                return Outcome(code or 1, log.read_text(errors="replace"))
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.env['URL']}/{ready}", timeout=5).ok:
                    return Outcome(0, log.read_text(errors="replace"))
            time.sleep(0.3)
        return Outcome(1, log.read_text(errors="replace"))

    def _run_python(self, text: str, env: dict[str, str]) -> Outcome:
        if self.python is None:
            self.python = subprocess.Popen(
                [self.folder / ".venv" / "bin" / "python", "-u", ROOT / "tests" / "documents" / "interpreter.py"],
                cwd=self.folder,
                env=env | {"PYTHONPATH": str(self.folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.python.stdin.write(json.dumps(text) + "\n")
        self.python.stdin.flush()
        lines: list[str] = []
        for line in self.python.stdout:
            if line.startswith(END):
                return Outcome(int(line.removeprefix(END)), "".join(lines))
            lines.append(line)
        return Outcome(self.python.wait() or 1, "".join(lines))

    def end(self) -> None:
        """End what the blocks started, and forget the values of Python."""
        self._end_server()
        if self.python is not None:
            self.python.stdin.close()
            self.python.wait(30)
            self.python.stdout.close()
            self.python = None

    def _end_server(self) -> None:
        if self.server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGTERM)
        try:
            self.server.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
        self.server = None
        self.env.pop("URL", None)
