"""Pictures of a few photos at every validation: what is right, what is predicted, what the teacher believes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.images import read_image
from common.data.labels import resize_labels
from common.data.reading import Patience
from common.data.transforms import InputScale
from common.data.validation import ValidationPhoto
from common.hrda import HRDASegmentor, InferenceSettings, SelfTrainingSettings
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.prediction.predictor import PhotoPixels
from common.hrda.prediction.runtime import TorchNetwork
from common.hrda.sliding import sweep
from common.hrda.training.pseudo_labels import pseudo_labels
from train.run.preparation import PreparedData
from train.run.state import Preview
from train.run.validation import Measurement, modes_kept
from train.settings.training import TrainSettings

LONGEST_SIDE = 640
_JPEG_QUALITY = 90
_STRONG, _WEAK = 0.65, 0.3
_IGNORED_COLOUR = (128, 128, 128)

Colour = tuple[int, int, int]


@dataclass
class _Sketch:
    """A validation photo made small, with its truth and what each model predicts."""

    name: str
    photo: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)


class PreviewWriter:
    """Writes pictures of the same photos at every validation.

    Args:
        folder: gets a folder for each validation.
        data: the photos and the colours of the classes.
        settings: how many, and how the teacher looks at target photos.
    """

    def __init__(self, folder: Path, data: PreparedData, settings: TrainSettings) -> None:
        self._folder, self._settings = folder, settings
        self._colours = (*data.palette, _IGNORED_COLOUR)
        count = settings.validation.previews
        measured = min(len(data.validation), settings.validation.max_images or len(data.validation))
        self._validation = frozenset(evenly(measured, count))
        self._target = [data.target[number] for number in evenly(len(data.target), count)]
        self._sketches: dict[int, _Sketch] = {}

    def keep(self, model: str, number: int, photo: ValidationPhoto, prediction: np.ndarray) -> None:
        """Take what is measured anyway, if it belongs to one of the chosen photos.

        Args:
            model: 'student' or 'teacher'.
            number: of the photo among those measured.
            photo: the photo with its truth.
            prediction: H×W uint8 class indices.
        """
        if number not in self._validation:
            return
        size = small_size(photo.image.shape[:2])
        if number not in self._sketches:
            self._sketches[number] = _Sketch(
                photo.name, shrink_photo(photo.image, size), self._shrink(self._indices(photo.truth), size)
            )
        self._sketches[number].predictions[model] = self._shrink(prediction, size)

    def write(
        self,
        measurement: Measurement,
        teacher: HRDASegmentor,
        device: torch.device,
        cuts: Tensor | None = None,
        *,
        patience: Patience | None = None,
        lost: dict[Path, str] | None = None,
    ) -> tuple[Preview, ...]:
        """Write the pictures of a validation: the kept photos by the better model, target photos by the teacher.

        Args:
            measurement: what was measured.
            teacher: looks at the target photos; its mode is put back afterwards.
            device: where it lies.
            cuts: C, probability from which training believes each class; None where its rule finds none.
            patience: with which a target photo is read again that cannot be read.
            lost: takes the target photos that cannot be read and are left out, and why; None: none is left out.

        Returns:
            One preview a photo, validation first.

        Raises:
            OSError: the disk is full or not writable.
            ImageError: a target photo cannot be read, and may not be left out or its whole disk is away.
        """
        folder = self._folder / f"{measurement.iteration:06d}"
        better = "teacher" if measurement.teacher_is_better else "student"
        previews = []
        for number, sketch in sorted(self._sketches.items()):
            pictures = {
                "photo": sketch.photo,
                "truth": overlay(sketch.photo, sketch.truth, self._colours, _STRONG),
                "prediction": overlay(sketch.photo, sketch.predictions[better], self._colours, _STRONG),
            }
            previews.append(Preview("validation", sketch.name, save(folder, f"validation_{number}", pictures)))
        self._sketches.clear()
        with modes_kept(teacher):
            teacher.eval()
            for number, path in enumerate(self._target):
                image = (patience or Patience()).read(partial(read_image, path), path, lost)
                if image is None:
                    continue
                pictures = self._target_pictures(image, teacher, device, cuts)
                previews.append(Preview("target", path.name, save(folder, f"target_{number}", pictures)))
        return tuple(previews)

    def _shrink(self, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Class indices H×W at `size` (h, w), as training shrinks labels."""
        return resize_labels(labels, size, self._settings.data.label_scaling)

    def _indices(self, truth: np.ndarray) -> np.ndarray:
        """`truth` with the ignored pixels under the index of their colour."""
        return np.where(truth == IGNORE_LABEL, len(self._colours) - 1, truth)

    def _target_pictures(
        self, image: np.ndarray, teacher: HRDASegmentor, device: torch.device, cuts: Tensor | None
    ) -> dict[str, np.ndarray]:
        settings = self._settings
        labels, confidence = believe(
            teacher, image, settings.data.scale, settings.inference, settings.self_training, device, cuts
        )
        size = small_size(image.shape[:2])
        photo = shrink_photo(image, size)
        # Told apart before they are made small: along a thin crack no small pixel would be confident as a whole.
        needed = settings.self_training.pseudo_label_threshold if cuts is None else cuts.cpu().numpy()[labels]
        sure = confidence >= needed
        strengths = np.where(self._shrink(np.where(sure, labels, 0), size) > 0, _STRONG, _WEAK)
        return {
            "photo": photo,
            "pseudo_label": overlay(photo, self._shrink(labels, size), self._colours, strengths),
            "confidence": heat_map(
                cv2.resize(confidence, size[::-1], interpolation=cv2.INTER_AREA), teacher.num_classes
            ),
        }


def believe(
    teacher: HRDASegmentor,
    image: np.ndarray,
    scale: InputScale,
    inference: InferenceSettings,
    rule: SelfTrainingSettings,
    device: torch.device,
    cuts: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels of a whole photo by the rule of training.

    Args:
        teacher: in eval mode, on `device`.
        image: H×W×3 uint8 RGB.
        scale: of training.
        inference: windows and their batches.
        rule: of the pseudo-labels.
        device: where to compute.
        cuts: C, probability from which each class is believed, where the rule finds them.

    Returns:
        At the scale of training, h×w: class indices uint8, and the probability of each pixel's label float32.
    """
    image = scale.resize(image)
    labels, confidence = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.float32)

    def take(top: int, logits: Tensor) -> None:
        pseudo = pseudo_labels(logits[None], rule, cuts)
        rows = slice(top, top + logits.shape[1])
        labels[rows] = pseudo.labels[0].cpu().numpy()
        confidence[rows] = pseudo.confidence[0].cpu().numpy()

    sweep(TorchNetwork(teacher, device), [(PhotoPixels(image, device), take)], inference)
    return labels, confidence


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count` at even distances, or all of them."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the picture of a photo of `size`."""
    factor = min(1.0, LONGEST_SIDE / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def shrink_photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` H×W×3 uint8 at `size` (h, w)."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def overlay(
    photo: np.ndarray, labels: np.ndarray, colours: Sequence[Colour], strength: float | np.ndarray
) -> np.ndarray:
    """A photo with its classes coloured in, the background left as it is.

    Args:
        photo: H×W×3 uint8 RGB.
        labels: H×W class indices.
        colours: RGB by index.
        strength: share of the colour, for all pixels or H×W.
    """
    share = (np.broadcast_to(strength, labels.shape) * (labels > 0))[..., None]
    colour = np.array(colours, np.float32)[labels]
    return (photo * (1 - share) + colour * share).round().astype(np.uint8)


def heat_map(confidence: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities H×W as H×W×3 uint8 RGB: dark blue where the classes are a coin's toss, yellow at certainty."""
    chance = 1 / num_classes
    grey = (np.clip((confidence - chance) / (1 - chance), 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def save(folder: Path, name: str, pictures: dict[str, np.ndarray]) -> dict[str, str]:
    """Write RGB pictures as `name_role.jpg` and return their paths by role."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {role: folder / f"{name}_{role}.jpg" for role in pictures}
    for role, picture in pictures.items():
        Image.fromarray(picture).save(paths[role], quality=_JPEG_QUALITY)
    return {role: str(path) for role, path in paths.items()}
