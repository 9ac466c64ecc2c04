"""How many training batches a second are drawn from photos in memory: `python -m benchmarks.loading`.

Photos are generated (photo, crack mask and target photo of the same size), read into the cache as a run reads them,
and drawn with the default settings. A training that is faster than this waits for its batches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.data.datasets import MemoryCache, Recipe, TrainingBatches
from common.data.loading import iterate
from common.data.sampling import RareClassSettings, class_sampler
from common.data.transforms import AugmentationSettings, InputScale
from sandbox.synthetic.projects import generate

CASES = ((512, 6), (256, 2), (1024, 2))
"""Crop side and batch size."""
PHOTOS = 8
SECONDS = 3.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that draw batches")
    given = parser.parse_args(arguments)
    cv2.setNumThreads(0)
    print(f"{'crop':>5} {'batch':>5} {'sampling':>8} {'workers':>7} {'batches/s':>9}")
    for side, batch_size in CASES:
        with tempfile.TemporaryDirectory() as folder:
            pairs = write_photos(Path(folder), (max(480, side), max(640, side * 5 // 4)))
            for sampling in ("off", "auto"):
                for workers in given.workers:
                    rate = measure(pairs, side, batch_size, sampling, workers)
                    print(f"{side:5d} {batch_size:5d} {sampling:>8} {workers:7d} {rate:9.1f}", flush=True)


def write_photos(folder: Path, size: tuple[int, int]) -> list[tuple[Path, Path]]:
    """Image and mask files of generated photos of `size` (height, width)."""
    pairs = []
    for number in range(PHOTOS):
        image, mask = generate("source", number, size)
        pair = folder / f"{number}.png", folder / f"{number}_mask.png"
        cv2.imwrite(str(pair[0]), image[..., ::-1])
        cv2.imwrite(str(pair[1]), mask)
        pairs.append(pair)
    return pairs


def measure(pairs: list[tuple[Path, Path]], side: int, batch_size: int, sampling: str, workers: int) -> float:
    """Batches a second, after the first."""
    pixels = np.array([np.bincount(cv2.imread(str(mask), 0).ravel(), minlength=2) for _, mask in pairs])
    sampler, _ = class_sampler(RareClassSettings(sampling), pixels, ("__bg__", "crack"))
    batches = TrainingBatches(
        pairs,
        [image for image, _ in pairs],
        Recipe((side, side), InputScale(None, None), AugmentationSettings()),
        batch_size=batch_size,
        iterations=10**6,
        seed=0,
        cache=MemoryCache(2**31),
        sampler=sampler,
    )
    batches.fill_cache()
    drawn = iterate(batches, 0, workers)
    next(drawn)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(drawn)
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
