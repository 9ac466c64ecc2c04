"""Checkpoints: tensors and plain data only. Nothing from a file is ever executed."""

from __future__ import annotations

import colorsys
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.hrda.checks import SettingsError
from common.hrda.files import replacing
from common.hrda.metadata import CheckpointMetadata
from common.hrda.network.reference_weights import convert_reference_state_dict, infer_model_settings, parts
from common.hrda.network.segmentor import HRDASegmentor, build_segmentor
from common.hrda.settings import ModelSettings

FORMAT = "hrda-supervisely/1"


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be read. The message names the file and what was expected."""


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
    when present, holds `short_edge` and `long_edge` of the training scale."""
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
    def input_scale(self) -> tuple[int, int] | None:
        """(short_edge, long_edge) that images were scaled to in training; None: own resolution."""
        return read_input_scale(self.settings)

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Probability of each class but the background at which its F1 was highest in the last validation; without the
        classes that were not measured."""
        served = "student" if self.model is self.student else "teacher"
        measured = {name: self.metrics.get(f"{served}/best_threshold/{name}") for name in self.classes[1:]}
        return {name: value for name, value in measured.items() if isinstance(value, float) and 0 < value < 1}


def read_input_scale(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """(short_edge, long_edge) in a checkpoint's plain settings; None: images keep their own resolution."""
    scale = settings.get("input") or {}
    edges = scale.get("short_edge"), scale.get("long_edge")
    return None if None in edges else (int(edges[0]), int(edges[1]))


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
        CheckpointError: no such file, not a checkpoint, or one whose names or shapes do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give the path of a .pth file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and plain data, or it is damaged; it was not opened. "
            f"Expected a .pth file that this app, the former HRDA app or the HRDA research code wrote. ({error})"
        ) from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise CheckpointError(f"{path} holds no 'state_dict'. Expected a checkpoint of HRDA.")
    try:
        bundle = _read_own(content) if content.get("format") == FORMAT else _read_reference(content)
    except (SettingsError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the network it describes: {error}") from error
    for model in (bundle.student, bundle.teacher):
        if model is not None:
            model.to(map_location).eval().requires_grad_(False)
    return bundle


def _read_own(content: Mapping[str, Any]) -> CheckpointBundle:
    known = (field.name for field in fields(CheckpointMetadata))
    metadata = CheckpointMetadata.from_dict({name: content[name] for name in known if name in content})
    teacher_state = content["teacher_state_dict"]
    return CheckpointBundle(
        student=_build(metadata.model, content["state_dict"]),
        teacher=None if teacher_state is None else _build(metadata.model, teacher_state),
        serve_teacher=metadata.serve_teacher,
        classes=metadata.classes,
        palette=metadata.palette,
        settings=metadata.settings,
        metrics=metadata.metrics,
        score=metadata.score,
        iteration=metadata.iteration,
    )


def _read_reference(content: Mapping[str, Any]) -> CheckpointBundle:
    meta = content.get("meta") or {}
    state = content["state_dict"]
    student_state = convert_reference_state_dict(state)
    config = meta.get("config") if isinstance(meta.get("config"), str) else ""
    model_settings = infer_model_settings(student_state, _sizes_in_config(config).get("crop_size", (512, 512)))
    count = model_settings.num_classes
    classes = tuple(str(name) for name in meta.get("CLASSES") or ()) or tuple(f"class_{i}" for i in range(count))
    palette = tuple(tuple(int(v) for v in colour) for colour in meta.get("PALETTE") or ()) or _default_palette(count)
    if len(classes) != count or len(palette) != count:
        raise ValueError(f"its meta names {len(classes)} classes and {len(palette)} colours, its decoder has {count}.")
    settings: dict[str, Any] = {"model": model_settings.to_dict()}
    scale = _sizes_in_config(config).get("img_scale")
    if scale is not None:
        settings["input"] = {"short_edge": min(scale), "long_edge": max(scale)}
    teacher = None
    if "ema_model." in parts(state):
        teacher = _build(model_settings, convert_reference_state_dict(state, prefix="ema_model."))
    return CheckpointBundle(
        student=_build(model_settings, student_state),
        teacher=teacher,
        classes=classes,
        palette=palette,
        settings=settings,
        iteration=int(meta.get("iter") or 0),
    )


def _build(settings: ModelSettings, state: Mapping[str, Tensor]) -> HRDASegmentor:
    model = build_segmentor(settings)
    model.load_state_dict(state, strict=True)
    return model


def _default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    hues = (index / (count - 1) for index in range(count - 1))
    colours = (colorsys.hsv_to_rgb(hue, 0.9, 0.9) for hue in hues)
    return ((0, 0, 0), *(tuple(round(255 * v) for v in colour) for colour in colours))


def _sizes_in_config(text: str) -> dict[str, tuple[int, int]]:
    """`crop_size` (h, w) and `img_scale` (w, h) where a former app's config states them; read, never run."""
    found = {}
    for name in ("crop_size", "img_scale"):
        match = re.search(rf"\b{name}\s*=\s*[(\[]\s*(\d+)\s*,\s*(\d+)\s*[)\]]", text)
        if match:
            found[name] = (int(match[1]), int(match[2]))
    return found
