"""Measuring student and teacher on whole validation photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.data.reading import Patience
from common.data.transforms import InputScale
from common.data.validation import ValidationPhoto, validation_photos
from common.hrda import HRDASegmentor, InferenceSettings, Predictor
from common.metrics import SegmentationMetrics
from common.metrics.photos import PhotoCounts, PhotoTally
from common.metrics.unlabelled import MEASURE
from train.run.preparation import PreparedData

Seen = Callable[[int, ValidationPhoto, np.ndarray], None]
"""Gets the number of a photo, the photo and its prediction H×W uint8."""


@dataclass(frozen=True)
class Measurement:
    """How good the models were at an iteration."""

    iteration: int
    """Iterations done."""
    score: float
    """The better model's score by which checkpoints are compared, from 0 to 1."""
    teacher_is_better: bool
    """Which model that was."""
    metrics: dict[str, float]
    """All scores from 0 to 1, named `student/…` and `teacher/…`."""
    photos: PhotoCounts | None = field(default=None, compare=False, repr=False)
    """Counts of every photo, of the better model; None where they were measured by another process."""

    def to_plain(self) -> dict[str, Any]:
        """All but the photos' counts, which have a file of their own."""
        plain = asdict(replace(self, photos=None))
        del plain["photos"]
        return plain

    @property
    def rests_on_labels(self) -> bool:
        """Whether it was measured on labelled photos."""
        return f"student/{MEASURE}" not in self.metrics

    def beats(self, other: Measurement) -> bool:
        """Whether it is better than an earlier one of the run, or of another kind, which says nothing beside it."""
        return self.rests_on_labels != other.rests_on_labels or self.score > other.score


def compare(iteration: int, student: PhotoTally, teacher: PhotoTally) -> Measurement:
    """Put the scores of both together."""
    student_score, teacher_score = student.metrics.main_score(), teacher.metrics.main_score()
    metrics = {f"student/{name}": value for name, value in student.metrics.compute().items()}
    metrics |= {f"teacher/{name}": value for name, value in teacher.metrics.compute().items()}
    is_teacher = teacher_score > student_score
    photos = (teacher if is_teacher else student).photos()
    return Measurement(iteration, max(student_score, teacher_score), is_teacher, metrics, photos)


def measure_both(
    student: HRDASegmentor,
    teacher: HRDASegmentor,
    data: PreparedData,
    device: torch.device,
    iteration: int,
    keep: Callable[[str, int, ValidationPhoto, np.ndarray], None],
    *,
    inference: InferenceSettings,
    scale: InputScale,
    max_images: int | None = None,
    patience: Patience | None = None,
    lost: dict[Path, str] | None = None,
) -> Measurement:
    """Measure both models on the validation photos.

    Args:
        student, teacher: the models.
        data: the photos.
        device: where the models lie.
        iteration: iterations done.
        keep: gets 'student' or 'teacher', the number of a photo, the photo and its prediction H×W uint8.
        inference, scale: as for `measure`.
        max_images, patience, lost: as for `validation_photos`.

    Raises:
        ImageError, MaskLost: a photo or mask cannot be read, or none of them.
    """
    photos = validation_photos(data.validation, max_images, patience=patience, lost=lost)
    models = [(student, partial(keep, "student")), (teacher, partial(keep, "teacher"))]
    return compare(iteration, *_measure_all(models, photos, data.classes, inference, scale, device))


def measure(
    model: HRDASegmentor,
    labelled: Sequence[tuple[Path, Path]],
    classes: Sequence[str],
    *,
    inference: InferenceSettings,
    scale: InputScale,
    device: torch.device,
    max_images: int | None = None,
    seen: Seen | None = None,
) -> SegmentationMetrics:
    """Compare the predictions that serving would give with the labels, at the photos' own size.

    Args:
        model: predicted with in eval mode; every module's mode is put back afterwards.
        labelled: pairs of image file and mask file.
        classes: names by index.
        inference: windows and their batches.
        scale: input scale.
        device: where the model lies.
        max_images: at most so many photos, picked at even distances.
        seen: gets every prediction.

    Returns:
        The counts of all photos.

    Raises:
        ImageError, MaskLost: a photo or mask cannot be read.
    """
    photos = validation_photos(labelled, max_images)
    [tally] = _measure_all([(model, seen)], photos, classes, inference, scale, device)
    return tally.metrics


def _measure_all(
    models: Sequence[tuple[HRDASegmentor, Seen | None]],
    photos: Iterable[ValidationPhoto],
    classes: Sequence[str],
    inference: InferenceSettings,
    scale: InputScale,
    device: torch.device,
) -> list[PhotoTally]:
    """The counts of several models, each with what gets its predictions; for the rest see `measure`.

    Each photo is read once, and all models are measured on the same ones.
    """
    tallies = [PhotoTally(classes) for _ in models]
    # One prediction is counted while the next one is made; on a GPU counting then costs no time of its own.
    with ExitStack() as modes, ThreadPoolExecutor(1, "counting") as counting:
        for model, _ in models:
            modes.enter_context(modes_kept(model))
        predictors = [Predictor(model, inference, device, scale.scale) for model, _ in models]
        counted = None
        for photo in photos:
            for predictor, tally, (_, seen) in zip(predictors, tallies, models, strict=True):
                prediction, probabilities = predictor.predict_with_probabilities(photo.image)
                if counted is not None:
                    # Waiting bounds what is held: the maps of two predictions.
                    counted.result()
                counted = counting.submit(
                    tally.update, photo.name, photo.number, prediction, photo.truth, probabilities
                )
                if seen is not None:
                    seen(photo.number, photo, prediction)
        if counted is not None:
            counted.result()
    return tallies


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` back into its mode after the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
