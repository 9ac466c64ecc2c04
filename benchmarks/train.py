"""One training iteration: the plain way against ours, side by side in one run.

    python -m benchmarks.train                                  MiT-b0 at 256×2 and b5 at 256×1, on the CPU
    python -m benchmarks.train --device cuda                    b0, b3 and b5 at 512×2 and at 1024×2
    python -m benchmarks.train --cases mit_b0:256x2 --ways plain encoder network ours --repeats 5
    python -m benchmarks.train --loading                        a real loader against one batch again and again

Every run is a process of its own, so that its peak memory is its own; the ways take turns, and the fastest of the
repeats counts. Beside the time on the clock stands that of the processor: on a machine that others use too, compare
those, with one thread (--threads 1). All ways start from the same weights and see the same batches, boxes, masks,
jitter and blur, without dropout and drop-path: their losses are compared. Memory is what training adds to the process
before the networks are made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.plain_network import PlainNetwork
from benchmarks.plain_training import PlainTraining
from benchmarks.serve import peak_memory
from common.data.datasets import Batch, MemoryCache, Recipe, TrainingBatches
from common.data.loading import iterate
from common.hrda import build_segmentor
from common.hrda.prediction.runtime import has_fast_bfloat16
from common.hrda.training.optimisation import optimizer_groups
from common.hrda.training.ranks import ALONE, Ranks
from common.hrda.training.self_training import StepDraws
from common.hrda.training.teacher import make_teacher
from train.run.device import allow_tf32, find_device, seed_everything
from train.run.initial_weights import Start
from train.run.learner import Learner
from train.settings.training import TrainSettings

WAYS = ("plain", "encoder", "network", "ours", "bfloat16", "compiled", "checkpointed")
"""plain: see `benchmarks.plain_training`, float32 without TF32. encoder: the same with our encoder. network: with our
decoder too. ours: the iteration of `python -m train` in float32. bfloat16: the same in bfloat16. compiled: that through
torch.compile. checkpointed: bfloat16 with the encoder's blocks computed once more in the backward pass."""
CPU_CASES = ("mit_b0:256x2", "mit_b5:256x1")
CUDA_CASES = tuple(f"{encoder}:{case}" for encoder in ("mit_b0", "mit_b3", "mit_b5") for case in ("512x2", "1024x2"))
NUM_CLASSES = 3
LEARNING_RATE = 1e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    given = parse(arguments)
    if given.way:
        return measure_here(given)
    if given.loading:
        return print_loading(given)
    print(f"{given.device}, {given.threads} threads, decoder 256 wide, {NUM_CLASSES} classes, mode uda")
    print(
        f"{'case':14} {'way':>9} {'s/iteration':>12} {'to plain':>9} {'processor s':>12} {'to plain':>9} "
        f"{'memory MiB':>11} {'to plain':>9} {'loss off by':>12}"
    )
    for case in given.cases:
        print_case(given, case)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cases", nargs="+", help="encoder:CROPxBATCH, such as mit_b0:256x2")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="what to compare (default: plain, ours, bfloat16)")
    parser.add_argument("--iterations", type=int, default=5, help="timed iterations of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the processor")
    parser.add_argument("--loading", action="store_true", help="measure what reading photos costs an iteration")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.cases = given.cases or (CPU_CASES if given.device == "cpu" else CUDA_CASES)
    if given.ways is None:
        # Without such instructions bfloat16 is made of float32, and slower.
        reduced = given.device != "cpu" or has_fast_bfloat16()
        given.ways = ["plain", "ours", "bfloat16"] if reduced else ["plain", "ours"]
    return given


def print_case(given: argparse.Namespace, case: str) -> None:
    """Measure all ways on one network and size and print a line for each."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(given.repeats):
        for way in given.ways:
            result = run_child(given, case, way)
            if way not in best or result["seconds"] < best[way]["seconds"]:
                best[way] = result
    plain = best.get("plain")
    for way, result in best.items():
        faster, less = (f"{plain[of] / result[of]:.2f}x" if plain else "-" for of in ("seconds", "processor"))
        smaller = f"{100 * result['memory'] / plain['memory']:.0f}%" if plain else "-"
        off = f"{difference(result['losses'], plain['losses']):.1e}" if plain else "-"
        print(
            f"{case:14} {way:>9} {result['seconds']:12.3f} {faster:>9} {result['processor']:12.3f} {less:>9} "
            f"{result['memory']:11.0f} {smaller:>9} {off:>12}",
            flush=True,
        )


def difference(ours: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> float:
    """Largest relative difference of the losses of all iterations."""
    return float((np.abs(np.subtract(ours, plain)) / np.abs(plain)).max())


def run_child(given: argparse.Namespace, case: str, way: str) -> dict[str, Any]:
    """Seconds an iteration, MiB and losses of one way, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", "--way", way, "--cases", case, "--device", given.device]
    command += ["--iterations", str(given.iterations), "--threads", str(given.threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_here(given: argparse.Namespace) -> int:
    """What a child process does: one way, one case."""
    torch.set_num_threads(given.threads)
    settings = case_settings(given.cases[0], given.way)
    print(json.dumps(measure(settings, given.way, find_device(given.device), given.iterations)))
    return 0


def measure(settings: TrainSettings, way: str, device: torch.device, iterations: int) -> dict[str, Any]:
    """Median seconds on the clock and of the processor an iteration, MiB that training adds, and the losses."""
    batches = [make_batch(settings, device, index) for index in range(iterations + 1)]
    before = peak_memory(device.type, reset=True)
    step = plain_step(settings, device, way) if way in WAYS[:3] else our_step(settings, device)
    # Kernels are chosen and the optimiser's averages made in the first iteration.
    losses = [[float(loss) for loss in step(batches[0], 0)]]
    seconds, processor = [], []
    for iteration, batch in enumerate(batches[1:], 1):
        started, worked = time.perf_counter(), time.process_time()
        result = step(batch, iteration)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - worked)
        losses.append([float(loss) for loss in result])
    memory = (peak_memory(device.type) - before) / 2**20
    times = {"seconds": float(np.median(seconds)), "processor": float(np.median(processor))}
    return {**times, "memory": memory, "losses": losses}


def case_settings(case: str, way: str) -> TrainSettings:
    """The settings of a case such as `mit_b0:256x2`."""
    encoder, _, size = case.partition(":")
    crop, _, batch_size = size.partition("x")
    return TrainSettings.from_dict(
        {
            "iterations": 1000,
            "batch_size": int(batch_size),
            "model": {"encoder": encoder, "crop_size": [int(crop)] * 2, "dropout": 0.0, "drop_path": 0.0},
            # Confidence that a network with random weights has, too, so that pseudo-labels count.
            "self_training": {
                "pseudo_label_rule": "published",
                "pseudo_label_threshold": 0.4,
                "jitter_probability": 1.0,
                "blur_probability": 1.0,
            },
            "optimizer": {"lr": LEARNING_RATE, "warmup_iterations": 0, "power": 0.0},
            "compute": {
                "precision": "bfloat16" if way in ("bfloat16", "compiled", "checkpointed") else "float32",
                "compile": way == "compiled",
                "activation_checkpointing": way == "checkpointed",
                "tf32": False,
            },
        }
    )


def make_batch(settings: TrainSettings, device: torch.device, index: int) -> Batch:
    """Noise with labels in blocks; the same for every way. Source labels stay on the CPU, where they are drawn from."""
    height, width = settings.model.crop_size
    count = settings.batch_size
    generator = torch.Generator().manual_seed(index)
    images, target = torch.randn(2, count, 3, height, width, generator=generator)
    blocks = torch.randint(NUM_CLASSES, (count, height // 32, width // 32), generator=generator)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    return Batch(images.to(device), labels, target.to(device), torch.ones(count, height, width, dtype=torch.bool))


def our_step(settings: TrainSettings, device: torch.device) -> Callable[[Batch, int], list[Tensor]]:
    """The iteration that `python -m train` does."""
    learner = make_learner(settings, device)

    def step(batch: Batch, iteration: int) -> list[Tensor]:
        scalars = learner.learn(batch, iteration)
        return [scalars["loss/source"], scalars["loss/mixed"]]

    return step


def make_learner(settings: TrainSettings, device: torch.device, ranks: Ranks = ALONE) -> Learner:
    """What `python -m train` learns with, from random weights."""
    classes = ["background", *(f"class {index}" for index in range(1, NUM_CLASSES))]
    data = SimpleNamespace(classes=classes, source_shares=(1 / NUM_CLASSES,) * NUM_CLASSES)
    return Learner(settings, data, device, Start(), print_to_stderr, ranks)


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def plain_step(settings: TrainSettings, device: torch.device, way: str) -> Callable[[Batch, int], list[float]]:
    """The plain iteration, with as many of our parts as `way` says."""
    allow_tf32(False)
    seed_everything(settings.seed, 0)
    model = build_segmentor(replace(settings.model, num_classes=NUM_CLASSES)).to(device).train()
    networks = [
        PlainNetwork(one, plain_encoder=way == "plain", plain_decoder=way != "network")
        for one in (model, make_teacher(model))
    ]
    training = PlainTraining(*networks, settings.self_training)
    rates = settings.optimizer
    optimizer = AdamW(optimizer_groups(model, rates.lr, rates.weight_decay, rates.head_lr_factor))
    generator = torch.Generator()

    def step(batch: Batch, iteration: int) -> list[float]:
        generator.manual_seed(seed_everything(settings.seed, iteration + 1))
        draws = StepDraws.draw(batch.source_labels, settings.self_training, generator)
        draws = replace(draws, mask=draws.mask.to(device))
        optimizer.zero_grad()
        labels = batch.source_labels.to(device)
        losses = training.step(batch.source_images, labels, batch.target_images, iteration=iteration, draws=draws)
        optimizer.step()
        return losses

    return step


def print_loading(given: argparse.Namespace) -> int:
    """Time of our iteration with photos from disk, against the same batch again and again."""
    device = find_device(given.device)
    torch.set_num_threads(given.threads)
    for case in given.cases:
        settings = case_settings(case, "ours")
        count = 10 * given.iterations
        with tempfile.TemporaryDirectory() as folder:
            loader = photo_batches(Path(folder), settings, count + 1)
            fixed = seconds_per_iteration(our_step(settings, device), repeat(loader[0], count + 1), device)
            loaded = iterate(loader, 0, settings.data.workers, device)
            real = seconds_per_iteration(our_step(settings, device), loaded, device)
        print(
            f"{case}: {fixed:.3f} s with one batch, {real:.3f} s from disk ({100 * (real / fixed - 1):+.1f}%)",
            flush=True,
        )
    return 0


def seconds_per_iteration(
    step: Callable[[Batch, int], list[Tensor]], batches: Iterable[Batch], device: torch.device
) -> float:
    """Mean over all batches but the first."""
    started = count = 0
    for count, batch in enumerate(batches):
        step(batch, count)
        if count == 0:
            started = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def photo_batches(folder: Path, settings: TrainSettings, count: int) -> TrainingBatches:
    """Batches from 16 photos of 640×480 with their masks, as files."""
    drawn = np.random.default_rng(0)
    pairs = []
    for index in range(16):
        image, mask = folder / f"{index}.jpg", folder / f"{index}.png"
        coarse = drawn.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(image), cv2.resize(coarse, (640, 480)))
        cv2.imwrite(str(mask), drawn.integers(0, NUM_CLASSES, (480, 640), dtype=np.uint8))
        pairs.append((image, mask))
    data = settings.data
    return TrainingBatches(
        pairs,
        [image for image, _ in pairs],
        Recipe(settings.model.crop_size, data.scale, data.augmentation),
        batch_size=settings.batch_size,
        iterations=count,
        seed=settings.seed,
        cache=MemoryCache(data.memory_cache_mb * 2**20),
    )


if __name__ == "__main__":
    sys.exit(main())
