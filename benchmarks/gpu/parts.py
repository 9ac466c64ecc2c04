"""The parts of the record, in the order of their worth, and what a process does with one of them."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu import correctness, serving, training, two_processes
from benchmarks.gpu.records import Record, Records
from benchmarks.gpu.sizes import Sizes, sizes_for


@dataclass(frozen=True)
class Part:
    """Measurements that run in one process."""

    seconds: float
    """Its time limit."""
    run: Callable[[Sizes, torch.device, Path | None], Iterable[Record]]


PARTS: dict[str, Part] = {
    "reference": Part(60, lambda sizes, device, fixtures: correctness.reference(sizes, device, fixtures)),
    "labels": Part(90, lambda sizes, device, _: correctness.labels(sizes, device)),
    "resuming": Part(40, lambda sizes, device, _: correctness.resuming(sizes, device)),
    "memory": Part(40, lambda sizes, device, _: correctness.memory(sizes, device)),
    "serving": Part(120, lambda sizes, device, _: serving.photos(sizes, device, sizes.encoders[:1], sizes.images[:1])),
    "training": Part(80, lambda sizes, device, _: training.iterations(sizes, device, sizes.training[:2])),
    "serving large": Part(
        120, lambda sizes, device, _: serving.photos(sizes, device, sizes.encoders[1:], sizes.images[:1])
    ),
    "compiled training": Part(
        120, lambda sizes, device, _: training.iterations(sizes, device, sizes.training[:1], ("compiled",))
    ),
    "loading": Part(40, lambda sizes, device, _: training.loading(sizes, device)),
    "two processes": Part(60, lambda sizes, device, _: two_processes.check(sizes, device)),
    "photos of 16 megapixels": Part(
        120, lambda sizes, device, _: serving.photos(sizes, device, sizes.encoders, sizes.images[1:])
    ),
    "ONNX Runtime": Part(90, lambda sizes, device, _: serving.exported(sizes, device, device.type)),
    "training further": Part(150, lambda sizes, device, _: training.iterations(sizes, device, sizes.training[2:])),
    "TensorRT": Part(150, lambda sizes, device, _: serving.exported(sizes, device, "tensorrt")),
    "compiled training further": Part(
        240, lambda sizes, device, _: training.iterations(sizes, device, sizes.training[1:2], ("compiled",))
    ),
}


def title(device: str) -> str:
    """What was measured on what, and when."""
    name = torch.cuda.get_device_name(torch.device(device)) if device != "cpu" else platform.processor() or "processor"
    cuda = f", CUDA {torch.version.cuda}" if device != "cpu" else ""
    return f"{name}{cuda}, torch {torch.__version__}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}."


def run_part(name: str, out: Path, device_name: str, fixtures: Path | None, log: Path) -> None:
    """What a process does: one part, its results to `out` and all that it prints to `log`.

    The process ends with 1 where the part fails; its last line then says why.
    """
    # Compilers and workers of this part can be ended with it.
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    device = torch.device(device_name)
    records = Records(out, title(device_name))
    try:
        for record in PARTS[name].run(sizes_for(device.type), device, fixtures):
            records.add(record)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
        raise SystemExit(1) from None
