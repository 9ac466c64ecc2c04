"""Comparing student and teacher, and the states of a run, on target photos without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.data.images import ImageError, read_image
from common.data.reading import Patience
from common.data.transforms import InputScale
from common.hrda import HRDASegmentor, InferenceSettings, Predictor
from common.metrics.unlabelled import MEASURE, UnlabelledMetrics
from train.run.preparation import PreparedData
from train.run.previews import evenly
from train.run.validation import Measurement, modes_kept

MOST_PHOTOS = 40
"""So many target photos, at even distances, stand for all."""
CHOSEN_WITHOUT_LABELS = (
    "Checkpoint, student or teacher, and threshold were chosen without labels, by what the networks say of target "
    "photos. How much they find was not measured: look at some photos before you rely on it."
)
"""What a result without labelled photos rests on."""


def measure_unlabelled(
    student: HRDASegmentor,
    teacher: HRDASegmentor,
    data: PreparedData,
    device: torch.device,
    iteration: int,
    *,
    inference: InferenceSettings,
    scale: InputScale,
    max_images: int | None = None,
    patience: Patience | None = None,
    lost: dict[Path, str] | None = None,
) -> Measurement:
    """Compare both models by what they say of target photos; arguments as of `measure_both`.

    Raises:
        ImageError: a photo cannot be read, or none of them.
    """
    models = {"student": student, "teacher": teacher}
    found = {name: UnlabelledMetrics(data.classes) for name in models}
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(modes_kept(model))
        predictors = {name: Predictor(model, inference, device, scale.scale) for name, model in models.items()}
        for image in _photos(data.unlabelled, max_images or MOST_PHOTOS, patience or Patience(), lost):
            for name, predictor in predictors.items():
                _, probabilities = predictor.predict_with_probabilities(image)
                found[name].update(probabilities)
    metrics = {f"{name}/{key}": value for name, each in found.items() for key, value in each.compute().items()}
    scores = {name: metrics[f"{name}/{MEASURE}"] for name in models}
    return Measurement(iteration, max(scores.values()), scores["teacher"] > scores["student"], metrics)


def _photos(paths: Sequence[Path], most: int, patience: Patience, lost: dict[Path, str] | None) -> Iterator[np.ndarray]:
    """RGB photos H×W×3 uint8, at most so many at even distances; those that may be left out as `lost` says."""
    is_any = False
    for path in (paths[number] for number in evenly(len(paths), most)):
        image = patience.read(partial(read_image, path), path, lost)
        if image is not None:
            is_any = True
            yield image
    if lost and not is_any:
        raise ImageError(f"None of the target photos can be read any more. The last one: {lost[path]}")
