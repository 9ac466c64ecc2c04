"""Milliseconds and memory of predicting a photo: the plain way against ours in PyTorch and ONNX Runtime."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.networks import GraphedNetwork, image_of, model_of
from benchmarks.gpu.records import Record
from benchmarks.gpu.sizes import Sizes, why_not_compiled_here
from benchmarks.gpu.training import free
from benchmarks.serve import peak_memory, predictor
from common.hrda import InferenceSettings, Predictor
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.prediction.runtime import (
    OnnxNetwork,
    RuntimeUnavailableError,
    TorchNetwork,
    export_onnx,
    require_provider,
)
from train.run.device import allow_tf32

PART = "Prediction"
FASTER, MILLISECONDS = 4.0, 60.0
"""What the fastest way must be against the plain one, and take with the smallest encoder at the smallest size."""
LARGEST_PLAIN = 2048
"""Side beyond which the plain way, which pads each crop to the whole image, takes minutes."""
Predict = Callable[[np.ndarray], np.ndarray]


def photos(sizes: Sizes, device: torch.device, encoders: Sequence[str], sides: Sequence[int]) -> Iterator[Record]:
    """Each encoder and size in every way of PyTorch."""
    settings = InferenceSettings(window=sizes.crop).complete(sizes.crop)
    for encoder in encoders:
        model = model_of(encoder, sizes).to(device)
        for side in sides:
            yield from _ways(sizes, device, f"{encoder} {side}x{side}", model, settings, image_of(side))


def _ways(
    sizes: Sizes,
    device: torch.device,
    case: str,
    model: HRDASegmentor,
    settings: InferenceSettings,
    image: np.ndarray,
) -> Iterator[Record]:
    plain: dict[str, float] | None = None
    wanted = None
    for way, make in _makers(device, model, settings).items():
        if way == "plain" and len(image) > LARGEST_PLAIN:
            continue
        reason = why_not_compiled_here(sizes, device.type) if "compiled" in way else None
        if reason is not None:
            yield Record(PART, case, way, note=reason)
            continue
        free(device)
        allow_tf32(way not in ("plain", "float32"))
        found, labels = measured(make(), image, device, sizes.repeats)
        values = dict(found)
        if way == "plain":
            plain, wanted = found, labels
        elif plain is not None:
            values["times as fast"] = plain["ms"] / found["ms"]
        if wanted is not None:
            values["labels equal"] = float((labels == wanted).mean())
        yield Record(PART, case, way, values, *_verdict(sizes, device, case, way, values))


def _makers(
    device: torch.device, model: HRDASegmentor, settings: InferenceSettings
) -> dict[str, Callable[[], Predict]]:
    def ours(precision: str, compiled: bool = False, graphed: bool = False) -> Callable[[], Predict]:
        def make() -> Predict:
            network = TorchNetwork(model, device, precision, compiled=compiled)
            return _one_by_one(Predictor(GraphedNetwork(network) if graphed else network, settings, device))

        return make

    makers = {
        "plain": partial(predictor, "plain", model, device, settings),
        "float32": ours("float32"),
        "bfloat16": ours("bfloat16"),
    }
    if device.type == "cuda":
        makers |= {"float16": ours("float16"), "bfloat16, graphs": ours("bfloat16", graphed=True)}
    return {**makers, "bfloat16, compiled": ours("bfloat16", compiled=True)}


def _one_by_one(predictor: Predictor) -> Predict:
    return lambda image: predictor.predict([image])[0]


def _verdict(
    sizes: Sizes, device: torch.device, case: str, way: str, values: dict[str, float]
) -> tuple[bool | None, str]:
    if device.type != "cuda" or way != "bfloat16, compiled" or "times as fast" not in values:
        return None, ""
    holds, note = values["times as fast"] >= FASTER, f"at least {FASTER:g} times as fast"
    if case == f"{sizes.encoders[0]} {sizes.images[0]}x{sizes.images[0]}":
        holds, note = holds and values["ms"] <= MILLISECONDS, f"{note}, at most {MILLISECONDS:g} ms"
    return holds, note


def measured(
    predict: Predict, image: np.ndarray, device: torch.device, repeats: int
) -> tuple[dict[str, float], np.ndarray]:
    """Median milliseconds and photos a second, MiB that predicting adds, and the labels."""
    before = peak_memory(device.type, reset=True)
    # Kernels are chosen, graphs recorded and networks compiled with the first photo.
    labels = predict(image)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        predict(image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    taken = statistics.median(seconds)
    memory = (peak_memory(device.type) - before) / 2**20
    return {"ms": 1000 * taken, "photos/s": 1 / taken, "memory MiB": memory}, labels


def exported(sizes: Sizes, device: torch.device, provider: str) -> Iterator[Record]:
    """The same through ONNX Runtime, with one of its providers ('cpu', 'cuda', 'tensorrt')."""
    settings = InferenceSettings(window=sizes.crop).complete(sizes.crop)
    image = image_of(sizes.images[0])
    for encoder in sizes.encoders:
        case, way = f"{encoder} {sizes.images[0]}x{sizes.images[0]}", f"ONNX Runtime, {provider}"
        try:
            require_provider(provider)
        except RuntimeUnavailableError as error:
            yield Record(PART, case, way, note=str(error))
            continue
        model = model_of(encoder, sizes)
        ours = Predictor(TorchNetwork(model, "cpu"), settings, torch.device("cpu"))
        [wanted] = ours.predict([image])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            channels = {"decoder_channels": sizes.channels, "attention_channels": sizes.channels}
            plain = {"model": {"encoder": encoder, "crop_size": list(sizes.crop), **channels}}
            palette = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
            export_onnx(model, path, classes=["a", "b", "c"], palette=palette, settings=plain, best_thresholds={})
            predict = _one_by_one(Predictor(OnnxNetwork(path, provider), settings, device))
            found, labels = measured(predict, image, device, sizes.repeats)
        yield Record(PART, case, way, {**found, "labels equal": float((labels == wanted).mean())})
