"""Pictures of the photos that cost a model most: what it found, what it missed, what it invented."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from common.data.labels import resize_labels
from common.data.reading import Patience, read_labelled_photo, read_mask
from common.hrda import InferenceSettings, Predictor
from common.hrda.checkpoints import CheckpointBundle
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.prediction.labelling import LabelRule
from common.metrics.borders import disk
from common.metrics.photos import PhotoCounts
from common.metrics.segmentation import SWEPT_TOLERANCE
from train.run.previews import overlay, save, shrink_photo

WORST = 6
"""Photos that are shown."""
FOUND, MISSED, INVENTED = 1, 2, 3
COLOURS = {"found": (0, 158, 115), "missed": (213, 94, 0), "invented": (86, 180, 233)}
"""Told apart by every eye: of the palette of Okabe and Ito."""
LONGEST_SIDE = 1600
_STRENGTH = 0.8


def draw_errors(
    folder: Path,
    bundle: CheckpointBundle,
    photos: PhotoCounts,
    measured: list[tuple[Path, Path]],
    device: torch.device,
    patience: Patience,
) -> int:
    """Predict the worst photos again, as serving would, and write each as `1_photo.jpg` and `1_errors.jpg`.

    Args:
        folder: for the pictures; made where needed.
        bundle: the model, of which the counts are.
        photos: counts of every photo.
        measured: pairs of image and mask file, by the photos' numbers.
        device: where to compute.
        patience: with which what cannot be read is read again; a photo that cannot be read has no picture.

    Returns:
        How many photos there are pictures of.

    Raises:
        OSError: the disk is full or not writable, or the disk of the photos is away.
    """
    windows = InferenceSettings.from_dict(bundle.settings["inference"])
    predictor = Predictor(bundle.model, windows, device, bundle.input_scale)
    rule = LabelRule({index: photos.thresholds[index] for index in photos.present})
    lost: dict[Path, str] = {}
    drawn = 0
    for place, photo in enumerate(photos.worst(WORST), start=1):
        image_path, mask_path = measured[photos.numbers[photo]]

        def read(image_path: Path = image_path, mask_path: Path = mask_path) -> tuple[np.ndarray, np.ndarray]:
            return read_labelled_photo(image_path, mask_path), read_mask(mask_path)

        found = patience.read(read, image_path, lost)
        if found is None:
            continue
        image, truth = found
        [prediction] = predictor.segment([image], rule)
        pictures = error_pictures(image, truth, error_map(prediction.labels, truth, len(photos.classes)))
        save(folder, str(place), pictures)
        drawn += 1
    return drawn


def error_map(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """What is found, missed and invented of the classes but the background, within 2 px.

    Args:
        prediction: H×W uint8 class indices.
        truth: H×W uint8 class indices, `IGNORE_LABEL` where nothing is counted.
        num_classes: the background included.

    Returns:
        H×W uint8: 0 nothing, or `FOUND`, `MISSED`, `INVENTED`.
    """
    errors = np.zeros(truth.shape, np.uint8)
    near = disk(SWEPT_TOLERANCE)
    counted = truth != IGNORE_LABEL
    for index in range(1, num_classes):
        predicted, true = (((one == index) & counted).astype(np.uint8) for one in (prediction, truth))
        near_predicted, near_true = cv2.dilate(predicted, near) > 0, cv2.dilate(true, near) > 0
        errors[(predicted > 0) & near_true] = FOUND
        errors[(predicted > 0) & ~near_true] = INVENTED
        errors[(true > 0) & ~near_predicted] = MISSED
    return errors


def error_pictures(image: np.ndarray, truth: np.ndarray, errors: np.ndarray) -> dict[str, np.ndarray]:
    """A photo and its errors in colour, H×W×3 uint8 RGB, by the names of their files."""
    factor = min(1.0, LONGEST_SIDE / max(truth.shape))
    size = (max(round(truth.shape[0] * factor), 1), max(round(truth.shape[1] * factor), 1))
    photo = shrink_photo(image, size)
    colours = ((0, 0, 0), *COLOURS.values())
    return {"photo": photo, "errors": overlay(photo, resize_labels(errors, size), colours, _STRENGTH)}
