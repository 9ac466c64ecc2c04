"""Whether a device computes the right thing: reference, labels in every precision, resuming, estimate of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.networks import image_of, model_of
from benchmarks.gpu.records import Record
from benchmarks.gpu.sizes import Sizes, why_not_compiled_here
from benchmarks.reference import STEPS, Reference
from benchmarks.train import case_settings, make_batch, make_learner, measure
from common.hrda import InferenceSettings, Predictor
from common.hrda.prediction.runtime import TorchNetwork
from common.hrda.sliding import sliding_logits
from common.hrda.training.memory import estimate_training_memory
from train.run.device import allow_tf32
from train.settings.training import TrainSettings

LOGITS, LABELS, LOSSES = 1e-4, 0.999, 2e-3
"""Bounds for another device in float32: its sums have another order, and the fixtures were recorded on a processor."""
REDUCED_LABELS = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.998}
"""Share of the pixels whose label must be that of the processor in float32. The weights are random, so that classes are
nearer to each other than a trained network has them."""
RESUMED, MEMORY = 1e-3, 0.15


def reference(sizes: Sizes, device: torch.device, folder: Path | None) -> Iterator[Record]:
    """The recorded outputs of the reference, in float32 without TF32."""
    part = "Reference fixtures, float32"
    if folder is None or not (folder / "recipe.py").is_file():
        yield Record(part, "all", note="the fixtures are not here: name their folder with --reference")
        return
    allow_tf32(False)
    recorded = Reference(folder)
    for encoder in ("b0", "b5")[: len(sizes.encoders)]:
        yield _one_crop(part, recorded, encoder, device)
    yield _sliding(part, recorded, device)
    for name in STEPS:
        yield _iterations(part, recorded, name, device)


@torch.no_grad()
def _one_crop(part: str, recorded: Reference, encoder: str, device: torch.device) -> Record:
    data = recorded.fixture(f"b_{encoder}_encode_decode")
    images = recorded.image(data, 2000, 1, 256, 256).to(device)
    logits = recorded.model(encoder).to(device).crop_logits(images).cpu()
    off = _off(logits[..., ::4, ::4], data["out_s4"])
    equal = float((logits.argmax(1).numpy() == data["argmax"]).mean())
    return _against(part, f"one crop, {encoder}", {"logits off by": off, "labels equal": equal}, off, equal)


@torch.no_grad()
def _sliding(part: str, recorded: Reference, device: torch.device) -> Record:
    data = recorded.fixture("b_b0_slide_256x384")
    images = recorded.image(data, 2001, 1, 256, 384).to(device)
    settings = InferenceSettings(window=(256, 256), stride=(128, 128))
    probabilities = sliding_logits(recorded.model("b0").to(device), images, settings).softmax(1).cpu()
    off = _off(probabilities[..., ::4, ::4], data["probs_s4"])
    equal = float((probabilities.argmax(1).numpy() == data["argmax"]).mean())
    return _against(part, "sliding, b0", {"logits off by": off, "labels equal": equal}, off, equal)


def _against(part: str, case: str, values: Mapping[str, float], off: float, equal: float) -> Record:
    note = f"at most {LOGITS:g}, labels at least {LABELS:.1%}"
    return Record(part, case, "float32", values, off <= LOGITS and equal >= LABELS, note)


def _iterations(part: str, recorded: Reference, name: str, device: torch.device) -> Record:
    worst = 0.0
    for one in recorded.iterations(name, device):
        logs = one.logs
        wanted = {
            "loss/source": logs["decode.loss_seg"] + logs["decode.hr.loss_seg"],
            "loss/mixed": logs["mix.decode.loss_seg"] + logs["mix.decode.hr.loss_seg"],
        }
        worst = max(worst, *(abs(float(one.result.scalars[key]) / value - 1) for key, value in wanted.items()))
        one.update()
    note = f"losses at most {LOSSES:g}, relative"
    return Record(part, f"three iterations, {name}", "float32", {"losses off by": worst}, worst <= LOSSES, note)


def labels(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """Served labels in every precision, and compiled, against the processor's in float32."""
    part = "Served labels against the processor's"
    image = image_of(sizes.images[0])
    for encoder in sizes.encoders:
        model = model_of(encoder, sizes)
        settings = InferenceSettings(window=sizes.crop).complete(sizes.crop)
        [wanted] = Predictor(TorchNetwork(model, "cpu"), settings, torch.device("cpu")).predict([image])
        reduced = ("float32", "bfloat16", "float16") if device.type == "cuda" else ("float32", "bfloat16")
        for precision, compiled in [*((one, False) for one in reduced), (reduced[1], True)]:
            way = f"{precision}, compiled" if compiled else precision
            reason = why_not_compiled_here(sizes, device.type) if compiled else None
            if reason is not None:
                yield Record(part, encoder, way, note=reason)
                continue
            allow_tf32(precision != "float32")
            network = TorchNetwork(model.to(device), device, precision, compiled=compiled)
            [found] = Predictor(network, settings, device).predict([image])
            equal, bound = float((found == wanted).mean()), REDUCED_LABELS[precision]
            yield Record(part, encoder, way, {"labels equal": equal}, equal >= bound, f"at least {bound:.2%}")
            model.to("cpu")


def resuming(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """Losses of a training that was saved and loaded in its middle, against one that was not."""
    settings = case_settings(sizes.training[0], "ours")
    batches = [make_batch(settings, device, index) for index in range(4)]
    whole = make_learner(settings, device)
    wanted = [_losses(whole, batch, index) for index, batch in enumerate(batches)]
    first = make_learner(settings, device)
    for index, batch in enumerate(batches[:2]):
        first.learn(batch, index)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pth"
        parts = {"student": first.student.state_dict(), "teacher": first.teacher.state_dict()}
        torch.save({**parts, "rest": first.extra_state()}, file)
        saved = torch.load(file, map_location=device, weights_only=True)
    second = make_learner(settings, device)
    second.student.load_state_dict(saved["student"])
    second.teacher.load_state_dict(saved["teacher"])
    second.load_extra_state(saved["rest"])
    found = [_losses(second, batch, index) for index, batch in enumerate(batches[2:], 2)]
    off = float((np.abs(np.subtract(found, wanted[2:])) / np.abs(wanted[2:])).max())
    yield Record(
        "Resumed training", sizes.training[0], "float32", {"losses off by": off}, off <= RESUMED, f"at most {RESUMED:g}"
    )


def _losses(learner: Any, batch: Any, done: int) -> list[float]:
    scalars: dict[str, Tensor] = learner.learn(batch, done)
    return [float(scalars["loss/source"]), float(scalars["loss/mixed"])]


def memory(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """The page's estimate of memory against what a training took."""
    for way in ("ours", "bfloat16", "checkpointed"):
        settings = case_settings(sizes.training[0], way)
        taken = measure(settings, way, device, 1)["memory"]
        estimate = estimated_mib(settings)
        off = estimate / taken - 1 if taken else float("nan")
        # What a processor's allocator keeps is no measure of tensors.
        holds = abs(off) <= MEMORY if device.type == "cuda" else None
        values = {"estimate MiB": estimate, "taken MiB": taken, "off by": off}
        yield Record("Estimate of memory", sizes.training[0], way, values, holds, f"at most {MEMORY:.0%} off")


def estimated_mib(settings: TrainSettings) -> float:
    """What the page says of a training's memory."""
    model = settings.model
    found = estimate_training_memory(
        model,
        batch_size=settings.batch_size,
        adapting=True,
        reduced_precision=settings.compute.precision != "float32",
        activation_checkpointing=settings.compute.activation_checkpointing,
    )
    return found / 2**20


def _off(ours: Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy().astype("float64") - theirs.astype("float64")).max())
