"""The machines that work: a Ray of its own on this machine, which ends with the command, or a cluster that is there."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from serve.errors import RequestError

_PREFIX = "hrda_ray_"
_STARTING_S = 300.0
"""How long machines of a cluster may take to come."""
_OF_LOCAL = {
    # Nobody is told of its use.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's name for listening on the loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach the loopback too.
    "RAY_AUTH_MODE": "token",
}
_OF_DRIVER = {
    # What its own code prints is for its developers.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Photos wait in memory for the step after them, however much of it is free: as many as that step needs.
    "RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD": "0",
}


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        RequestError: it says how to install it.
    """
    missing = [package for package in ("ray", "pyarrow") if find_spec(package) is None]
    if missing:
        raise RequestError(
            f"serve batch needs {' and '.join(missing)}, which this Python does not have. Install what batches take: "
            "pip install -r requirements-batch.txt"
        )


@contextmanager
def own_ray(cpus: int, gpus: int, memory_mb: int) -> Iterator[None]:
    """A Ray on this machine for the time of the block. It listens on the loopback, and asks for a token of its own.

    Args:
        cpus: how many tasks and workers of one processor run at a time.
        gpus: graphics cards to use.
        memory_mb: for what waits between the steps, in megabytes; more than that goes to the disk.
    """
    _remove_left_overs()
    os.environ.update(_OF_LOCAL | _OF_DRIVER | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_"))
    if len(str(folder)) > 40:
        # Its sockets' paths would be longer than the system takes.
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_", dir="/tmp"))
    try:
        with _connected(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=memory_mb * 2**20,
            include_dashboard=False,
            _temp_dir=str(folder),
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_at(address: str) -> Iterator[None]:
    """The cluster at an address for the time of the block.

    Args:
        address: `auto` for the one that this machine belongs to, or `HOST:PORT`.

    Raises:
        RequestError: there is none.
    """
    os.environ.update(_OF_DRIVER)
    with _connected(address=address):
        yield


def wait_for_room(workers: int, each: Mapping[str, float], say: Callable[[str], None] = print) -> None:
    """Wait until the cluster has room for workers, since its machines may still be starting.

    Args:
        workers: how many.
        each: what each takes of one machine, by Ray's names.
        say: gets a sentence before waiting.

    Raises:
        RequestError: it has none after minutes.
    """
    import ray

    deadline, said = time.monotonic() + _STARTING_S, False
    while (room := sum(_room(node["Resources"], each) for node in ray.nodes() if node["Alive"])) < workers:
        what = " and ".join(f"{count:g} {name}" for name, count in each.items())
        found = f"The cluster has room for {room} of {workers} workers ({what} each)"
        if time.monotonic() > deadline:
            raise RequestError(f"{found}. Start more machines, or ask for fewer with --workers.")
        if not said:
            say(f"{found}. It is waited for more machines.")
            said = True
        time.sleep(1)


def _room(there: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Workers that one machine has room for."""
    return min(int(there.get(name, 0) // count) for name, count in each.items())


@contextmanager
def _connected(**how: object) -> Iterator[None]:
    ends = signal.getsignal(signal.SIGTERM)
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        with _quiet():
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **how)
        # Ray takes the signal for itself, and ends without what is done being noted.
        signal.signal(signal.SIGTERM, ends)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = how["address"]
        remedy = (
            "See to the memory and the disk of this machine."
            if where == "local"
            else "Start one with ray start --head, see docs/batch.md."
        )
        reason = str(error).strip().partition("\n")[0][:300].rstrip(".")
        raise RequestError(f"No Ray at {where}: {reason}. {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it nothing reaches the terminal: Ray's own code begins with a line about its log."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _remove_left_overs() -> None:
    """Remove the folders of commands that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*_*"):
        with suppress(ValueError, OSError):
            try:
                os.kill(int(folder.name.removeprefix(_PREFIX).partition("_")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
