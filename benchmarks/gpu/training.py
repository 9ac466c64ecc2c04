"""Seconds and memory of a training iteration: the plain way against ours, and a loader that must keep up."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch

from benchmarks.gpu.records import Record
from benchmarks.gpu.sizes import Sizes, why_not_compiled_here
from benchmarks.train import case_settings, difference, measure, our_step, photo_batches, seconds_per_iteration
from common.data.loading import iterate

PART = "Training"
FASTER, SMALLER = 3.0, 0.6
"""What bfloat16 must be against the plain way: so many times as fast, in such a share of the memory."""


def iterations(
    sizes: Sizes, device: torch.device, cases: Sequence[str], ways: Sequence[str] = ("ours", "bfloat16", "checkpointed")
) -> Iterator[Record]:
    """Each case in the plain way and in `ways` of `benchmarks.train`."""
    for case in cases:
        plain = None
        if ways == ("compiled",) and (reason := why_not_compiled_here(sizes, device.type)):
            yield Record(PART, case, *ways, note=reason)
            continue
        for way in ("plain", *ways):
            free(device)
            found = measure(case_settings(case, way), way, device, sizes.iterations)
            plain = plain or found
            values = {"s/iteration": found["seconds"], "memory MiB": found["memory"]}
            if way == "plain":
                yield Record(PART, case, way, values)
                continue
            faster, smaller = plain["seconds"] / found["seconds"], found["memory"] / max(plain["memory"], 1e-9)
            values |= {
                "times as fast": faster,
                "share of memory": smaller,
                "losses off by": difference(found["losses"], plain["losses"]),
            }
            is_barred = way == "bfloat16" and device.type == "cuda"
            yield Record(
                PART,
                case,
                way,
                values,
                faster >= FASTER and smaller <= SMALLER if is_barred else None,
                f"at least {FASTER:g} times as fast in at most {SMALLER:.0%} of the memory" if is_barred else "",
            )


def loading(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """Iterations with photos from disk, against the same batch again and again."""
    case = sizes.training[0]
    settings = case_settings(case, "bfloat16" if device.type == "cuda" else "ours")
    count = 6 * sizes.iterations
    with tempfile.TemporaryDirectory() as folder:
        batches = photo_batches(Path(folder), settings, count + 1)
        fixed = seconds_per_iteration(our_step(settings, device), repeat(batches[0], count + 1), device)
        loaded = iterate(batches, 0, settings.data.workers, device)
        real = seconds_per_iteration(our_step(settings, device), loaded, device)
    values = {"s with one batch": fixed, "s from disk": real, "longer by": real / fixed - 1}
    yield Record("A loader that keeps up", case, settings.compute.precision, values)


def free(device: torch.device) -> None:
    """Give back what earlier measurements hold, so that the next one's memory is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
