"""Sliding prediction by MONAI, by mmsegmentation and by us, same network, in one run: `python -m benchmarks.peers`.

    python -m benchmarks.peers --sizes 1024x1024 2048x2048 8192x8192 --limit 60

All get the network that serves, in float32: the peers a function from crops to logits, which is what they take, and we
its two resolutions. Windows lie alike: half of a crop apart. Every way is a process of its own with one thread; what
counts is the processor's time. A way that is not done after --limit seconds is ended; its time is then that of the
share which it did, and its memory what it had taken by then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_sliding import plain_crop_logits
from benchmarks.serve import give_memory_back, peak_memory
from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor
from common.hrda.network import mmcv_operators
from common.hrda.pixels import normalise
from common.hrda.prediction.runtime import TorchNetwork
from common.hrda.sliding import WindowTally, count_windows
from common.hrda.windows import window_count

OURS, MONAI, BUFFERED, MMSEG = WAYS = ("ours", "MONAI", "MONAI, buffered", "mmsegmentation")
NEEDED = {OURS: "torch", MONAI: "monai", BUFFERED: "monai", MMSEG: "mmseg"}
BATCH = 4


class Enough(Exception):
    """The time is up."""


class Clock:
    """Counts steps of a prediction, and ends it when its time is up.

    Args:
        limit: seconds of the processor.
        total: steps of the whole.
    """

    def __init__(self, limit: float, total: int) -> None:
        self.done = 0
        """Steps so far."""
        self._end, self._total = time.process_time() + limit, total

    def step(self, count: int) -> None:
        """After or before `count` further steps."""
        if time.process_time() > self._end:
            raise Enough
        self.done += count

    @property
    def share(self) -> float:
        """Of the steps that were done."""
        return self.done / self._total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all ways at all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1024x1024", "2048x2048", "8192x8192"], metavar="HxW")
    parser.add_argument("--limit", type=float, default=60, help="seconds of the processor for a way at a size")
    parser.add_argument("--encoder", default="mit_b0")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--decoder", type=int, default=32, help="width of the decoder")
    parser.add_argument("--photo", type=Path, help="a photo, repeated to each size, instead of noise")
    # What a child process is told.
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        print(json.dumps(measure_here(given, given.sizes[0])))
        return 0
    missing = sorted({name for name in NEEDED.values() if find_spec(name) is None})
    if missing:
        print(f"Left out, as they are not installed here: {', '.join(missing)}.")
    print("| pixels | way | time, to ours | memory, to ours | labels as ours | done |\n|---|---|---|---|---|---|")
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for line in lines(given, size, [way for way in WAYS if NEEDED[way] not in missing], Path(folder)):
                print(line, flush=True)
    return 0


def lines(given: argparse.Namespace, size: str, ways: Sequence[str], folder: Path) -> list[str]:
    """Rows of the table for one size."""
    found = {way: run_child(given, size, way, folder / f"{number}.npy") for number, way in enumerate(ways)}
    ours, rows = found[OURS], []
    for number, (way, one) in enumerate(found.items()):
        ratios = f"{one['seconds'] / ours['seconds']:.2f} | {one['memory'] / ours['memory']:.1f}"
        own, other = folder / "0.npy", folder / f"{number}.npy"
        is_compared = own.exists() and other.exists()
        equal = f"{100 * (np.load(own) == np.load(other)).mean():.3f}%" if is_compared else "-"
        rows.append(f"| {size} | {way} | {ratios} | {equal} | {100 * one['share']:.3g}% |")
    return rows


def run_child(given: argparse.Namespace, size: str, way: str, labels: Path) -> dict[str, float]:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers", "--way", way, "--sizes", size, "--labels", str(labels)]
    for name in ("limit", "encoder", "crop", "decoder", "photo"):
        if getattr(given, name) is not None:
            command += [f"--{name}", str(getattr(given, name))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_here(given: argparse.Namespace, size: str) -> dict[str, float]:
    """Processor seconds of the whole, MiB beside model and image, and the share that was done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    crop = (given.crop, given.crop)
    settings = ModelSettings(
        encoder=given.encoder,
        num_classes=3,
        crop_size=crop,
        decoder_channels=given.decoder,
        attention_channels=given.decoder,
    )
    network = TorchNetwork(build_segmentor(settings).eval(), "cpu")
    height, width = map(int, size.split("x"))
    image = image_of(given.photo, height, width)
    run = MAKERS[given.way](network)
    run(image[: 2 * given.crop, : 2 * given.crop], Clock(1e9, 1))  # Buffers and kernels of a first call.
    windows = InferenceSettings(batch_size=BATCH)
    crops = [window_count(side, given.crop, given.crop // 2) for side in (height, width)]
    total = count_windows((height, width), crop, windows) if given.way == OURS else crops[0] * crops[1]
    give_memory_back()
    before, labels = peak_memory("cpu", reset=True), None
    clock, started = Clock(given.limit, total), time.process_time()
    with suppress(Enough):
        labels = run(image, clock)
    seconds, memory = time.process_time() - started, (peak_memory("cpu") - before) / 2**20
    if labels is not None and given.labels:
        np.save(given.labels, labels)
    return {"seconds": seconds / clock.share, "memory": memory, "share": clock.share}


def image_of(photo: Path | None, height: int, width: int) -> np.ndarray:
    """H×W×3 uint8: the photo side by side with itself, or noise."""
    if photo is None:
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    from common.data.images import read_image

    tile = read_image(photo)
    return np.ascontiguousarray(
        np.tile(tile, (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1))[:height, :width]
    )


Run = Callable[[np.ndarray, Clock], np.ndarray]
"""From an image H×W×3 uint8 to its labels H×W uint8."""


def ours(network: TorchNetwork) -> Run:
    """What serves."""

    def run(image: np.ndarray, clock: Clock) -> np.ndarray:
        tally = WindowTally()

        def before_batch() -> None:
            clock.step(tally.computed - clock.done)

        predictor = Predictor(network, InferenceSettings(batch_size=BATCH), before_batch=before_batch, tally=tally)
        [labels] = predictor.predict([image])
        clock.done = tally.computed
        return labels

    return run


def monai(network: TorchNetwork, **options: Any) -> Run:
    """`sliding_window_inference` of MONAI."""
    from monai.inferers import sliding_window_inference

    def run(image: np.ndarray, clock: Clock) -> np.ndarray:
        def predict(crops: Tensor) -> Tensor:
            clock.step(len(crops))
            return plain_crop_logits(network, crops)

        return labels_of(sliding_window_inference(pixels_of(image), network.crop_size, BATCH, predict, 0.5, **options))

    return run


def mmsegmentation(network: TorchNetwork) -> Run:
    """`slide_inference` of mmsegmentation, which its segmentors predict large images with."""
    mmcv_operators.ensure_importable()
    from mmseg.models.segmentors import EncoderDecoder

    def run(image: np.ndarray, clock: Clock) -> np.ndarray:
        def encode_decode(crops: Tensor, _: Any) -> Tensor:
            clock.step(len(crops))
            return plain_crop_logits(network, crops)

        stride = tuple(side // 2 for side in network.crop_size)
        segmentor = SimpleNamespace(
            test_cfg=SimpleNamespace(stride=stride, crop_size=network.crop_size),
            out_channels=network.num_classes,
            encode_decode=encode_decode,
        )
        return labels_of(EncoderDecoder.slide_inference(segmentor, pixels_of(image), [{}]))

    return run


def pixels_of(image: np.ndarray) -> Tensor:
    """The whole image 1×3×H×W float32, normalised, as the peers take it."""
    return normalise(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])


def labels_of(logits: Tensor) -> np.ndarray:
    """H×W uint8 of logits 1×C×H×W."""
    return logits.argmax(1)[0].to(torch.uint8).numpy()


MAKERS: dict[str, Callable[[TorchNetwork], Run]] = {
    OURS: ours,
    MONAI: monai,
    BUFFERED: lambda network: monai(network, buffer_steps=1, buffer_dim=0),
    MMSEG: mmsegmentation,
}


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
