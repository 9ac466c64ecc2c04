"""Prediction of whole collections: what the processes around the model cost, and what they bring.

    python -m benchmarks.batch                      speed of plain loops, of one worker and of two; then memory
    python -m benchmarks.batch --photos 100 --only speed

Generated photos, a tiny model, one thread each. The clock of the speed runs from the moment when the first piece of
each worker is written until the last photo is: it covers reading, prediction, writing, and the end, when one worker has
no photos left and the other still does. Starting processes takes seconds, whatever the number of photos, and is in the
time of the whole command beside it.

The plain loops read, predict and write without the command: one, and two at a time, which is as much as the cores can
bring. One worker is measured with all cores, of which reading, writing and Ray take another one, and with as many cores
as it has threads, which is its share of them when there are two. Speeds do not change with the number of photos, so a
part of them is enough for what is compared with.
Memory is the largest sum over all processes of the command, shared pages counted once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from common.data.images import read_image
from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, save_checkpoint
from serve.batch.pipeline import TOGETHER
from serve.batch.worker import Worker

CLASSES, PALETTE = ("__bg__", "crack"), ((0, 0, 0), (220, 20, 60))
EVERY_S = 0.5
Process = get_context("spawn").Process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables."""
    given = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="batch_") as name:
        folder = Path(name)
        if given.only != "memory":
            speed(folder, given.photos)
        if given.only != "speed":
            memory(folder)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=500, help="of 512 × 512 pixels, for the speed (%(default)s)")
    parser.add_argument("--only", choices=("speed", "memory"), help="one of both")
    return parser.parse_args(arguments)


def speed(folder: Path, count: int) -> None:
    """Plain loops, one worker and two, over the same photos."""
    photos, model = draw(folder / "photos", count, 512), checkpoint(folder / "model.pth", 256)
    print(f"{'':20} {'photos/s':>9} {'to one loop':>12} {'to two':>8} {'whole command':>14}")
    few, paces = max(count // 16, 10), []
    for loops in (1, 2):
        outs = [folder / f"loop{loops}{number}" for number in range(loops)]
        started = [Process(target=loop, args=(photos, model, out, few)) for out in outs]
        for process in started:
            process.start()
        for process in started:
            process.join()
        paces.append(sum(map(pace, outs)))
        print(f"{f'plain loops: {loops}':22} {paces[-1]:7.2f} {paces[-1] / paces[0]:11.2f}×", flush=True)
    part = draw(folder / "part", max(count // 10, 32), 512)
    for workers, cores, source in ((1, 1, part), (1, 2, photos), (2, 2, photos)):
        out = folder / f"out{workers}{cores}"
        seconds, _ = command(source, model, out, workers, cores=cores)
        # The first piece of each is done at once, while the next one is begun.
        now = pace(out / "masks", workers * TOGETHER)
        name = f"workers: {workers} on {cores} core{'s' if cores > 1 else ''}"
        print(f"{name:22} {now:7.2f} {now / paces[0]:11.2f}× {now / paces[1]:7.2f}× {seconds:12.1f} s", flush=True)


def memory(folder: Path) -> None:
    """One worker over few and over many small photos."""
    model = checkpoint(folder / "small.pth", 128)
    print(f"{'photos':>7} {'memory':>10} {'of these shared with the steps':>32}")
    for count in (200, 2000):
        photos = draw(folder / f"small{count}", count, 128)
        _, (total, store) = command(photos, model, folder / f"of{count}", 1, watched=True)
        print(f"{count:7} {total / 2**20:7.0f} MB {store / 2**20:29.0f} MB", flush=True)


def loop(photos: Path, model: Path, out: Path, count: int) -> None:
    """Read, predict and write one photo after the other with one thread."""
    out.mkdir()
    torch.set_num_threads(1)
    worker = Worker.from_file(model, "cpu")
    for path in sorted(photos.iterdir())[:count]:
        [labels] = worker.labels([read_image(path)])
        cv2.imwrite(str(out / f"{path.stem}.png"), labels)


def command(
    photos: Path, model: Path, out: Path, workers: int, *, cores: int | None = None, watched: bool = False
) -> tuple[float, tuple[int, int]]:
    """Seconds of `serve batch`, and the most bytes that it and its processes held: all, and shared between steps.

    Only where `watched`: a process stands still while its pages are counted.
    """
    line = [sys.executable, "-m", "serve", "batch", "--model", model, "--input", photos, "--output", out]
    line += ["--device", "cpu", "--workers", workers]
    begun, most = time.perf_counter(), (0, 0)
    process = subprocess.Popen(
        [str(word) for word in line],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
    )
    while process.poll() is None:
        if watched:
            most = max(most, held(process.pid))
        time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"serve batch ended with {process.returncode}.")
    return time.perf_counter() - begun, most


def held(pid: int) -> tuple[int, int]:
    """Bytes of a process and of those below it, shared pages counted once: all, and those of Ray's store."""
    total = store = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                total += process.memory_full_info().pss
                if process.name() == "raylet":
                    store = process.memory_info().shared
    return total, store


def pace(folder: Path, first: int = 1) -> float:
    """Photos a second by the times of the results, from that of number `first` on."""
    times = sorted(path.stat().st_mtime for path in folder.rglob("*.png"))
    return (len(times) - first) / (times[-1] - times[first - 1])


def draw(folder: Path, count: int, size: int) -> Path:
    """A folder with photos of noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:05}.jpg"), cv2.resize(coarse, (size, size)))
    return folder


def checkpoint(path: Path, crop: int) -> Path:
    """A tiny model of drawn weights."""
    torch.manual_seed(0)
    settings = ModelSettings(
        encoder="mit_b0", num_classes=2, crop_size=(crop, crop), decoder_channels=16, attention_channels=16
    )
    model = build_segmentor(settings).eval()
    save_checkpoint(
        path,
        CheckpointBundle(
            student=model, classes=CLASSES, palette=PALETTE, settings={"model": settings.to_dict()}, metrics={}
        ),
    )
    return path


if __name__ == "__main__":
    sys.exit(main())
