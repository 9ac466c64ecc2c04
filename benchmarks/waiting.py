"""How threads wait for one another, idle and beside two busy neighbours: `python -m benchmarks.waiting`.

    python -m benchmarks.waiting --photo photo.jpg --repeats 2

A photo by `serve predict`, a short training, and requests to a service, each with what the entry points settle
(`common.processors`) and with OpenMP's own defaults, in turn, in one run. Times are of the clock: what somebody waits.
The fastest of the repeats counts. Beside neighbours OpenMP's defaults run once, and are ended after --limit seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import requests

from benchmarks.load.service import BEARER, ROOT, service, write_checkpoints
from common.processors import SPINS
from sandbox.synthetic.projects import write_project

OURS, DEFAULTS = "ours", "OpenMP's defaults"
MOST_SPINS = "300000"
"""Looks for further work before a thread sleeps, as OpenMP makes them where nothing is said."""
WORKS = ("photo", "training", "service")
IDLE, BESIDE = "idle", "beside two neighbours"
NEIGHBOURS = 2
REQUESTS = 10
SETTINGS = ROOT / "sandbox" / "demo" / "settings.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20, help="of the short training")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which a command is ended")
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS)
    parser.add_argument("--spins", nargs="*", default=[], metavar="LOOKS", help="other numbers of looks too")
    given = parser.parse_args(arguments)
    ways = {OURS: {}, DEFAULTS: {SPINS: MOST_SPINS}} | {f"{looks} looks": {SPINS: looks} for looks in given.spins}
    print("| what | how threads wait | idle | beside two neighbours | to idle |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        works = prepare(Path(folder), given.iterations)
        for name, work in ((name, works[name]) for name in given.works):
            found = {(way, load): seconds for load in (IDLE, BESIDE) for way, seconds in run(work, ways, load, given)}
            for way in ways:
                idle, beside = found[way, IDLE], found[way, BESIDE]
                is_over = beside >= given.limit
                print(
                    f"| {name} | {way} | {idle:.2f} s | {'over ' if is_over else ''}{beside:.2f} s "
                    f"| {beside / idle:.2f} |",
                    flush=True,
                )
    return 0


Work = Callable[[Mapping[str, str], float], float]
"""From further variables of the environment and a limit to seconds that somebody waited."""


def run(
    work: Work, ways: Mapping[str, Mapping[str, str]], load: str, given: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Seconds of a work in each way, which take turns; of several repeats the fewest."""
    with neighbours(NEIGHBOURS if load == BESIDE else 0):
        found: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(given.repeats):
            for way, variables in ways.items():
                if turn == 0 or (way, load) != (DEFAULTS, BESIDE):
                    found[way].append(work(variables, given.limit))
    return ((way, min(seconds)) for way, seconds in found.items())


def prepare(folder: Path, iterations: int) -> dict[str, Work]:
    """What is measured, with all that it needs in `folder`."""
    photo = folder / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8))
    checkpoint = write_checkpoints(folder)[0]
    for seed, name in enumerate(("source", "target", "val")):
        write_project(folder / name, "road", 6, seed=seed, size=(128, 128), workers=1)

    def predict(variables: Mapping[str, str], limit: float) -> float:
        out = tempfile.mkdtemp(dir=folder)
        return command(
            ["-m", "serve", "predict", str(photo), "--model", str(checkpoint), "--device", "cpu", "--output", out],
            variables,
            limit,
        )

    def train(variables: Mapping[str, str], limit: float) -> float:
        out = tempfile.mkdtemp(dir=folder)
        changes = [f"iterations={iterations}", "optimizer.warmup_iterations=1", "self_training_start=0"]
        sets = [part for change in changes for part in ("--set", change)]
        domains = [part for name in ("source", "target", "val") for part in (f"--{name}", str(folder / name))]
        arguments = [*domains, "--out", f"{out}/run", "--settings", str(SETTINGS), *sets]
        return command(["-m", "train", *arguments], variables, limit)

    def ask(variables: Mapping[str, str], limit: float) -> float:
        with service(checkpoint, folder / "service.log", **variables) as url:
            started = time.monotonic()
            for _ in range(REQUESTS):
                with photo.open("rb") as file:
                    requests.post(
                        f"{url}/inference_image", files={"files": file}, headers=BEARER, timeout=limit
                    ).raise_for_status()
            return time.monotonic() - started

    return {
        "photo": predict,
        "training": train,
        "service": ask,
    }


def command(arguments: Sequence[str], variables: Mapping[str, str], limit: float) -> float:
    """Seconds that a command took; `limit` where it was ended then."""
    started = time.monotonic()
    try:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=clean_environment() | dict(variables),
            timeout=limit,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return limit
    return time.monotonic() - started


def clean_environment() -> dict[str, str]:
    """The environment without what settles threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that always compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


if __name__ == "__main__":
    for name in set(os.environ) - set(clean_environment()):
        del os.environ[name]
    sys.exit(main())
