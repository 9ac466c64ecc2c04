"""Child processes of the demo: the two apps and the command line, each with a log file of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

START_LIMIT_S = 180
END_LIMIT_S = 60
"""An app that trains saves and uploads first."""


class DemoError(RuntimeError):
    """The demo cannot go on. The message says why and where to read more."""


@dataclass(frozen=True)
class App:
    """A running app."""

    address: str
    """E.g. `http://127.0.0.1:40123`."""
    log: Path
    """What it prints."""
    process: subprocess.Popen

    def post(self, route: str, state: Mapping[str, Any], timeout_s: float = 60) -> Any:
        """Call a route as the platform does: the request under `state`, answered in JSON.

        Raises:
            DemoError: the app refuses, with its own words.
        """
        response = requests.post(f"{self.address}/{route}", json={"state": dict(state)}, timeout=timeout_s)
        if not response.ok:
            raise DemoError(f"{route} was refused: {response.text[:600]} (log: {self.log})")
        return response.json()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(log: Path, lines: int = 12) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def command(arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Run `python -m MODULE …` beside the demo; ended with the block and with this process, however that one ends.

    Args:
        arguments: the module and its arguments.
        env: the whole environment.
        log: file for what it prints.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.demo.held", *arguments],
            env=dict(env),
            stdout=stream,
            stderr=subprocess.STDOUT,
            # What it is held by.
            stdin=subprocess.PIPE,
            # A terminal's Ctrl-C is this process's to answer: asked twice, an app that trains would not save.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(ProcessLookupError):
                # What it has started and left.
                os.killpg(process.pid, signal.SIGKILL)
            process.stdin.close()


@contextlib.contextmanager
def app(target: str, port: int, env: Mapping[str, str], log: Path) -> Iterator[App]:
    """Start an app with uvicorn, as its manifest does, and wait until it answers.

    Args:
        target: module and attribute, e.g. `train.main:app`.
        port: where it listens, on 127.0.0.1.
        env: the whole environment.
        log: file for what it prints.

    Raises:
        DemoError: it ended, or did not answer in time.
    """
    address = f"http://127.0.0.1:{port}"
    arguments = ["uvicorn", target, "--host", "127.0.0.1", "--port", str(port)]
    with command(arguments, env, log) as process:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if process.poll() is not None:
                raise DemoError(f"{target} ended while starting:\n{tail(log)}")
            with contextlib.suppress(requests.ConnectionError):
                requests.get(address, timeout=30)
                break
            if time.monotonic() > deadline:
                raise DemoError(f"{target} did not answer within {START_LIMIT_S} s:\n{tail(log)}")
            time.sleep(0.5)
        yield App(address, log, process)
