"""Prediction of whole images: the reference's two-level sliding against ours, side by side in one run.

    python -m benchmarks.serve                              all sizes that fit, MiT-b0 and b5
    python -m benchmarks.serve --encoders mit_b0 --sizes 512x1024 1024x2048 --repeats 3
    python -m benchmarks.serve --growth                     time per megapixel and memory at 4 and at 64 megapixels
    python -m benchmarks.serve --checkpoint best.pth --photo photo.jpg      labels of a trained model on a real photo

Every run is a process of its own, so that its peak memory is its own; plain and ours take turns, and the fastest of the
repeats counts. Memory is what prediction adds to the loaded model and the decoded image. Beside the seconds on the
clock stand those of the processor: on a machine that others use too, compare those, with one thread (--threads 1).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.plain_network import PlainNetwork
from benchmarks.plain_sliding import plain_sliding_logits
from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor, load_checkpoint
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.pixels import normalise
from common.hrda.prediction.runtime import TorchNetwork, has_fast_bfloat16
from common.hrda.settings import PRESETS
from common.hrda.windows import window_boxes

WAYS = ("plain", "windows", "folded", "fastest")
"""plain: the reference's way. windows: distinct windows once and rows as they are done, the same network. folded: the
network rearranged too, float32. fastest: also bfloat16, where the device computes it in hardware, and compiled on a
GPU."""
SIZES = ("512x1024", "1024x2048", "2048x2048", "8192x8192")
GROWTH_SIZES = ("2048x2048", "8192x8192")
# A pad to the whole image for each of its crops: at 64 megapixels that alone is hours and 3 GB a crop.
LARGEST_PLAIN = 2048 * 2048
CROP = (512, 512)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    given = parse(arguments)
    if given.way:
        return measure_here(given)
    if given.growth:
        return print_growth(given)
    print(f"{given.device}, {given.threads} threads, crops {CROP[0]}x{CROP[1]}, stride half, 3 classes")
    print(
        f"{'encoder':8} {'size':>10} {'way':>9} {'seconds':>9} {'to plain':>9} {'CPU s':>9} {'to plain':>9} "
        f"{'memory MiB':>11} {'labels equal':>13}"
    )
    for encoder in given.encoders:
        for size in given.sizes:
            print_size(given, encoder, size)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["mit_b0", "mit_b5"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HxW")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", action="store_true", help="linear time and bounded memory of ours")
    parser.add_argument(
        "--preset", default="exact", choices=PRESETS, help="with --growth: windows as published, or side by side"
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained model instead of random weights")
    parser.add_argument("--photo", type=Path, help="a photo, repeated to each size, instead of noise")
    # What a child process is told.
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.preset != "exact" and not (given.growth or given.way):
        parser.error("the reference's way has overlapping windows: --preset is for --growth")
    return given


def print_size(given: argparse.Namespace, encoder: str, size: str) -> None:
    """Measure all ways on one size and print a line for each."""
    height, width = map(int, size.split("x"))
    ways = [way for way in given.ways if way != "plain" or height * width <= LARGEST_PLAIN]
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.repeats):
            for way in ways:
                results[way].append(run_child(given, encoder, size, way, Path(folder) / f"{way}.npy"))
        labels = {way: np.load(Path(folder) / f"{way}.npy", mmap_mode="r") for way in ways}
        best = {way: summary(repeats) for way, repeats in results.items()}
        for way, result in best.items():
            ratios = [
                f"{best['plain'][measure] / result[measure]:.2f}x" if "plain" in best else "-"
                for measure in ("seconds", "cpu_seconds")
            ]
            equal = f"{100 * (labels[way] == labels['plain']).mean():.3f}%" if "plain" in labels else "-"
            print(
                f"{encoder:8} {size:>10} {way:>9} {result['seconds']:9.2f} {ratios[0]:>9} {result['cpu_seconds']:9.2f} "
                f"{ratios[1]:>9} {result['memory']:11.0f} {equal:>13}",
                flush=True,
            )


def print_growth(given: argparse.Namespace) -> int:
    """Time per megapixel and memory of the fastest way, at 4 and at 64 megapixels.

    Windows that overlap are fewer per megapixel in a small image, of which a larger part is near the border: how many
    there are is printed beside.
    """
    for encoder in given.encoders:
        per_megapixel = []
        for size in GROWTH_SIZES:
            height, width = map(int, size.split("x"))
            results = [run_child(given, encoder, size, "fastest", None) for _ in range(given.repeats)]
            result, megapixels = summary(results), height * width / 2**20
            windows = count_windows((height, width), InferenceSettings(preset=given.preset).complete(CROP))
            values = [value / megapixels for value in (result["seconds"], result["cpu_seconds"], windows)]
            per_megapixel.append(values)
            print(
                "{} {}: {:.3f} s, {:.3f} CPU s and {:.2f} windows per megapixel, {:.0f} MiB".format(
                    encoder, size, *values, result["memory"]
                ),
                flush=True,
            )
        ratios = [large / small for small, large in zip(*per_megapixel, strict=True)]
        print("{}: 64 against 4 megapixels {:.3f}, CPU {:.3f}, windows {:.3f}".format(encoder, *ratios))
    return 0


def count_windows(size: tuple[int, int], settings: InferenceSettings) -> int:
    """Distinct windows of an image at both resolutions, all of the same size in pixels for the network."""
    crops = window_boxes(size, settings.window, settings.stride)
    half = (settings.window[0] // 2, settings.window[1] // 2)
    step = (half[0] // 2, half[1] // 2) if settings.detail_overlap else half
    details = {
        (crop.top + box.top, crop.left + box.left)
        for crop in crops
        for box in window_boxes(settings.window, half, step)
    }
    return len(crops) + len(details)


def summary(repeats: Sequence[dict[str, float]]) -> dict[str, float]:
    """The shortest times of the repeats, and the most memory."""
    chosen = {"seconds": min, "cpu_seconds": min, "memory": max}
    return {measure: choose(result[measure] for result in repeats) for measure, choose in chosen.items()}


def run_child(given: argparse.Namespace, encoder: str, size: str, way: str, labels: Path | None) -> dict[str, float]:
    """Seconds and MiB of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serve", "--way", way, "--encoders", encoder, "--sizes", size]
    command += ["--threads", str(given.threads), "--device", given.device, "--preset", given.preset]
    for name in ("checkpoint", "photo"):
        if getattr(given, name):
            command += [f"--{name}", str(getattr(given, name))]
    if labels is not None:
        command += ["--labels", str(labels)]
    env = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_here(given: argparse.Namespace) -> int:
    """What a child process does: one way, one size."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, image = make_model(given), make_image(given)
    predict = predictor(given.way, model, torch.device(given.device), InferenceSettings(preset=given.preset))
    # What loading and a first call leave in the process is used again: given back and counted, or it would not be seen.
    give_memory_back()
    before = peak_memory(given.device, reset=True)
    predict(image[: 2 * CROP[0], : 2 * CROP[1]])  # Kernels chosen, buffers of a first call made.
    started, cpu_started = time.perf_counter(), time.process_time()
    labels = predict(image)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    if given.labels:
        np.save(given.labels, labels)
    memory = (peak_memory(given.device) - before) / 2**20
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "memory": memory}))
    return 0


def predictor(
    way: str, model: HRDASegmentor, device: torch.device, settings: InferenceSettings
) -> Callable[[np.ndarray], np.ndarray]:
    """From an H×W×3 uint8 image to its H×W class indices, one of `WAYS`."""
    if way == "plain":

        def predict(image: np.ndarray) -> np.ndarray:
            pixels = normalise(torch.from_numpy(image).to(device).permute(2, 0, 1)[None])
            # The reference takes the softmax of all pixels before the argmax.
            logits = plain_sliding_logits(PlainNetwork(model), pixels, settings)
            return logits.softmax(1).argmax(1)[0].to(torch.uint8).cpu().numpy()

        return predict
    network = PlainNetwork(model)
    if way != "windows":
        reduced = way == "fastest" and (device.type == "cuda" or has_fast_bfloat16())
        compiled = way == "fastest" and device.type == "cuda"
        network = TorchNetwork(model, device, "bfloat16" if reduced else "float32", compiled=compiled)
    ours = Predictor(network, settings, device)
    return lambda image: ours.predict([image])[0]


def make_model(given: argparse.Namespace) -> HRDASegmentor:
    """The trained model, or one with random weights."""
    if given.checkpoint:
        model = load_checkpoint(given.checkpoint).model
    else:
        model = build_segmentor(ModelSettings(encoder=given.encoders[0], num_classes=3, crop_size=CROP))
    return model.to(given.device).eval()


def make_image(given: argparse.Namespace) -> np.ndarray:
    """H×W×3 uint8: the photo side by side with itself, or noise."""
    height, width = map(int, given.sizes[0].split("x"))
    if given.photo:
        from common.data.images import read_image

        photo = read_image(given.photo)
        repeats = (-(-height // photo.shape[0]), -(-width // photo.shape[1]), 1)
        return np.ascontiguousarray(np.tile(photo, repeats)[:height, :width])
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def give_memory_back() -> None:
    """Return what this process has freed to the system, where its C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory(device: str, *, reset: bool = False) -> int:
    """Highest memory so far in bytes: of the process, or of the GPU."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if reset:
        # Linux starts its high-water mark anew; elsewhere it stays that of the warm-up.
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
