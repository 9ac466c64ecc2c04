"""Checkpoints: tensors and plain data only. Nothing from a file is ever executed."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.hrda.checks import CheckpointError, SettingsError, without_received
from common.hrda.files import replacing
from common.hrda.metadata import CheckpointMetadata, NetworkMetadata
from common.hrda.network.outline import outline
from common.hrda.network.reference_weights import convert_reference_state_dict, infer_model_settings, parts
from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
from common.hrda.pixels import Scale
from common.hrda.settings import ModelSettings
from common.hrda.tensor_files import fitting, read_tensors, weights_of

_FAMILY, _VERSION = "hrda-supervisely", 1
FORMAT = f"{_FAMILY}/{_VERSION}"
_LONGEST_CONFIG = 1_000_000


@dataclass
class CheckpointBundle:
    """Everything a checkpoint holds."""

    student: HRDASegmentor
    """The trained model."""
    classes: tuple[str, ...]
    """Class names by index; index 0 is the background."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    teacher: HRDASegmentor | None = None
    """The averaged model, when it was saved."""
    serve_teacher: bool = False
    """Whether the teacher is the better one, which `model` then is."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The run's settings as plain data; `settings['model']` rebuilds the network and `settings['input']`,
    when present, holds `short_edge` and `long_edge`, or the `factor`, of the training scale."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures of the last validation."""
    score: float | None = None
    """The served model's score in the last validation, by which checkpoints of a run are compared."""
    iteration: int = 0
    """Iterations done."""

    @property
    def model(self) -> HRDASegmentor:
        """The model to predict with."""
        return self.teacher if self.serve_teacher and self.teacher is not None else self.student

    @property
    def metadata(self) -> NetworkMetadata:
        """What the checkpoint says of the network besides its weights."""
        return NetworkMetadata(self.classes, self.palette, self.settings)

    @property
    def input_scale(self) -> Scale:
        """The scale that images were brought to in training, as `Predictor` takes it; None: own resolution."""
        return self.metadata.input_scale

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Probability of each class but the background at which its F1 was highest in the last validation; without the
        classes that were not measured."""
        served = "student" if self.model is self.student else "teacher"
        measured = {name: self.metrics.get(f"{served}/best_threshold/{name}") for name in self.classes[1:]}
        return {name: value for name, value in measured.items() if isinstance(value, float) and 0 < value < 1}


def save_checkpoint(path: str | Path, bundle: CheckpointBundle, resume: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint in one step: readers see the old file or the new one, never half of it.

    Args:
        path: the file.
        bundle: what it holds.
        resume: tensors and plain data that the run needs to go on, kept beside the rest under the key 'resume'.

    Raises:
        WriteError: the disk is full or not writable; what was there before is untouched.
    """
    content = {
        "format": FORMAT,
        "state_dict": bundle.student.state_dict(),
        "teacher_state_dict": None if bundle.teacher is None else bundle.teacher.state_dict(),
        "serve_teacher": bundle.serve_teacher,
        "classes": list(bundle.classes),
        "palette": [list(colour) for colour in bundle.palette],
        "settings": bundle.settings,
        "metrics": bundle.metrics,
        "score": bundle.score,
        "iteration": bundle.iteration,
    }
    if resume is not None:
        content["resume"] = resume
    with replacing(Path(path), size=_bytes_of(content)) as file:
        torch.save(content, file)


def _bytes_of(content: Any) -> int:
    """Bytes of the tensors in nested data, which are nearly all of a checkpoint."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list | tuple):
        return 0
    return sum(_bytes_of(part) for part in content)


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> CheckpointBundle:
    """Read one of our checkpoints, or one of the former app or of the reference implementation.

    Args:
        path: the file. Keys that Supervisely adds to it are tolerated.
        map_location: device of the models.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one whose names, shapes or numbers do not fit.
    """
    path = Path(path)
    return bundle_of(read_tensors(path, "a checkpoint of tensors and plain data"), path, map_location)


def is_checkpoint(content: Any) -> bool:
    """Whether the content of a file of tensors is a checkpoint of HRDA, right or wrong: not of an encoder alone."""
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    return "format" in content or _has_decoder(state) if isinstance(state, Mapping) else False


def bundle_of(content: Any, path: Path, map_location: str | torch.device = "cpu") -> CheckpointBundle:
    """The checkpoint in what `read_tensors` has read.

    Args:
        content: of the file.
        path: the file, for messages.
        map_location: device of the models.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise CheckpointError(f"{path} holds no 'state_dict'. Expected a checkpoint of HRDA.")
    _require_known_format(content.get("format"), path)
    try:
        bundle = _read_reference(content) if content.get("format") is None else _read_own(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit the network it describes: {error}") from error
    for model in (bundle.student, bundle.teacher):
        if model is not None:
            model.to(map_location).eval().requires_grad_(False)
    return bundle


def _require_known_format(given: Any, path: Path) -> None:
    if given is None or (isinstance(given, str) and given == FORMAT):
        return
    if isinstance(given, str) and re.fullmatch(rf"{_FAMILY}/[1-9]\d{{0,5}}", given):
        raise CheckpointError(
            f"{path} has format {given.partition('/')[2]} of this app's checkpoints, and this version reads format "
            f"{_VERSION}: it was written by a newer version. Update the app."
        )
    raise CheckpointError(f"{path} has a format that this app does not know. Expected a checkpoint of HRDA.")


def _has_decoder(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and "decode_head.scale_attention." in name for name in state)


def _read_own(content: Mapping[str, Any]) -> CheckpointBundle:
    metadata = CheckpointMetadata.read(content)
    teacher = content.get("teacher_state_dict")
    if teacher is None and metadata.serve_teacher:
        raise CheckpointError("it names the teacher as the better model and holds none.")
    return _bundle(metadata, weights_of(content["state_dict"]), None if teacher is None else weights_of(teacher))


def _read_reference(content: Mapping[str, Any]) -> CheckpointBundle:
    """A checkpoint of the former app or the reference implementation: its metadata as one of ours would have it."""
    meta = _given(content, "meta", {})
    if not isinstance(meta, Mapping):
        raise CheckpointError("what describes it is no list of names with values.")
    weights = weights_of(content["state_dict"])
    sizes = _sizes_in_config(meta.get("config"))
    try:
        student = convert_reference_state_dict(weights)
        teacher = convert_reference_state_dict(weights, "ema_model.") if "ema_model." in parts(weights) else None
        model = infer_model_settings(student)
    except Exception as error:
        # Names and shapes can be wrong in any way.
        raise CheckpointError("its weights are not those of a HRDA network.") from error
    count = model.num_classes
    settings: dict[str, Any] = {"model": model.to_dict() | {"crop_size": sizes.get("crop_size", (512, 512))}}
    if "img_scale" in sizes:
        settings["input"] = dict(zip(("short_edge", "long_edge"), sorted(sizes["img_scale"]), strict=True))
    described = {
        "classes": _given(meta, "CLASSES", [f"class_{index}" for index in range(count)]),
        "palette": _given(meta, "PALETTE", _default_palette(count)),
        "settings": settings,
        "iteration": _given(meta, "iter", 0),
    }
    return _bundle(CheckpointMetadata.read(described), student, teacher)


def _given(data: Mapping[Any, Any], name: str, default: Any) -> Any:
    value = data.get(name)
    return default if value is None or (isinstance(value, list | tuple) and not value) else value


def _bundle(
    metadata: CheckpointMetadata, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor] | None
) -> CheckpointBundle:
    return CheckpointBundle(
        student=_build(metadata.model, student),
        teacher=None if teacher is None else _build(metadata.model, teacher),
        serve_teacher=metadata.serve_teacher,
        classes=metadata.classes,
        palette=metadata.palette,
        settings=metadata.settings,
        metrics=metadata.metrics,
        score=metadata.score,
        iteration=metadata.iteration,
    )


def _build(settings: ModelSettings, state: Mapping[str, Tensor]) -> HRDASegmentor:
    """The network with these weights, which are compared with its shapes before it takes any memory."""
    try:
        with outline():
            model = build_segmentor(settings)
    except SettingsError as error:
        raise CheckpointError(without_received(error)) from error
    fitted = fitting(state, model.state_dict())
    if any(name not in fitted for name, _ in model.named_buffers()):
        # Constants of the network, which no file holds, have values only where it is built in memory.
        with torch.random.fork_rng(devices=[]):
            model = build_segmentor(settings)
    model.load_state_dict(fitted, strict=True, assign=True)
    return model


def _default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    hues = (index / (count - 1) for index in range(count - 1))
    colours = (colorsys.hsv_to_rgb(hue, 0.9, 0.9) for hue in hues)
    return ((0, 0, 0), *(tuple(round(255 * v) for v in colour) for colour in colours))


def _sizes_in_config(text: Any) -> dict[str, tuple[int, int]]:
    """`crop_size` (h, w) and `img_scale` (w, h) where a former app's config states them; read, never run."""
    found = {}
    if not isinstance(text, str) or len(text) > _LONGEST_CONFIG:
        return found
    for name in ("crop_size", "img_scale"):
        match = re.search(rf"\b{name}\s*=\s*[(\[]\s*(\d{{1,6}})\s*,\s*(\d{{1,6}})\s*[)\]]", text)
        if match:
            found[name] = (int(match[1]), int(match[2]))
    return found
