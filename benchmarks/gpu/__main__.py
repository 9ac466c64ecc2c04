"""What a graphics card does with this project, in one command of a few minutes.

    python -m benchmarks.gpu --minutes 9 --out gpu_record              on the first card
    python -m benchmarks.gpu --minutes 2 --out try --device cpu        the same parts, tiny, to try the command

It needs no network and no photos. Besides torch it needs the packages of benchmarks/gpu_wheels.txt. The parts come in
the order of their worth, each in a process of its own and with a time limit. Each result is on the disk at once, in
results.jsonl and as tables in results.md, so that a run that is cut off still counts. The exit code is 1 where a result
breaks its stated bound, or a part failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.parts import PARTS, run_part, title
from benchmarks.gpu.records import Record, Records

PROCESSES = multiprocessing.get_context("forkserver")
SHORTEST = 10.0
"""Seconds that must be left for a part to begin."""
SLOWER = 3
"""A processor, which others may use too, gets so many times a card's limit for its tiny sizes."""
FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, each in a process of its own."""
    given = parse(arguments)
    # Children begin with everything imported, and without a device in use.
    PROCESSES.set_forkserver_preload(["benchmarks.gpu.parts"])
    records = Records(given.out, title(given.device))
    end = time.monotonic() + 60 * given.minutes
    failed = False
    for name in given.parts:
        left = end - time.monotonic()
        if left < SHORTEST:
            records.add(Record("Parts", name, note="left out: no time was left"))
            continue
        seconds = min(left, PARTS[name].seconds * (SLOWER if given.device == "cpu" else 1))
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        trouble = run_child(given, name, seconds)
        if trouble:
            failed = failed or "cut off" not in trouble
            records.add(Record("Parts", name, note=trouble))
            print(f"  {trouble}", flush=True)
    broken = [record for record in records if record.holds is False]
    for record in broken:
        print(f"Breaks its bound: {record.part}, {record.case}, {record.way}: {dict(record.values)}; {record.note}")
    print(f"{len(list(records))} results: {given.out / 'results.md'}")
    return int(failed or bool(broken))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; must not hold earlier ones")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="some of them")
    parser.add_argument(
        "--reference", type=Path, default=FIXTURES if FIXTURES.is_dir() else None, help="folder of the fixtures"
    )
    given = parser.parse_args(arguments)
    if (given.out / "results.jsonl").exists():
        parser.error(f"{given.out} holds the results of an earlier run: name another folder with --out")
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device: --device cpu tries the command on the processor")
    return given


def run_child(given: argparse.Namespace, name: str, seconds: float) -> str:
    """Run a part in a process of its own; returns why it did not come to its end, or nothing."""
    log = given.out / f"{name.replace(' ', '_')}.log"
    child = PROCESSES.Process(target=run_part, args=(name, given.out, given.device, given.reference, log))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return f"cut off after {seconds:.0f} s"
    if child.exitcode == 0:
        return ""
    lines = log.read_text().strip().splitlines() or ["no message"]
    return f"failed: {lines[-1][:200]}"


if __name__ == "__main__":
    sys.exit(main())
