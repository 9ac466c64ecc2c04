"""From a decoded image and its mask to the arrays the network sees: scale, augmentation, crop.

Images are H×W×3 uint8 RGB, masks H×W uint8 class indices with `IGNORE_LABEL` where no class counts.
Every random choice is drawn from the numpy generator that the caller passes.
"""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from common.data.labels import LabelScaling, resize_labels
from common.hrda.checks import Expected, FractionBelowOne, FromList, PlainSettings, SettingsError, require, schema
from common.hrda.pixels import Scale, resize_image, scaled_size
from common.hrda.settings import LONGEST_EDGE, PhotoFactor

# What OpenCV calls mirroring along these axes.
_FLIPS = {(0,): 0, (1,): 1, (0, 1): -1}


Edge = Annotated[
    Annotated[int, Field(gt=0, le=LONGEST_EDGE, multiple_of=16)] | None,
    Expected(
        f"of the positive multiples of 16 up to {LONGEST_EDGE}; null for both edges means the image's own resolution"
    ),
]


@schema
class InputScale(PlainSettings):
    """The scale at which the network sees an image; the same in training, validation and serving."""

    long_edge: Edge = 640
    """Longest side in pixels; with `short_edge` null, the image keeps its own resolution."""
    short_edge: Edge = 512
    """Longest the shorter side may be in pixels; the aspect ratio is kept."""
    factor: PhotoFactor = 1.0
    """With both edges null: size as a multiple of each photo's own. At 2, cracks of 2 or 3 pixels are 4 to 6 wide, for
    four times the pixels."""

    def __post_init__(self) -> None:
        edges = (self.long_edge, self.short_edge)
        if self.factor != 1 and edges != (None, None):
            raise SettingsError(
                "factor is of the photos' own size, and edges are of all photos alike: set long_edge and short_edge to "
                f"null, or factor to 1. Received: {self.long_edge}, {self.short_edge} and {self.factor:g}."
            )
        if edges != (None, None) and (None in edges or self.long_edge < self.short_edge):
            raise SettingsError(
                "long_edge and short_edge must be positive multiples of 16 with long_edge the larger, or both null for "
                f"the image's own resolution. Received: {self.long_edge}, {self.short_edge}."
            )

    @property
    def scale(self) -> Scale:
        """As `Predictor` takes it; None for the image's own resolution."""
        if self.long_edge is None or self.short_edge is None:
            return None if self.factor == 1 else self.factor
        return (self.short_edge, self.long_edge)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of `height` × `width` at this scale."""
        return scaled_size((height, width), self.scale)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """`image` (H×W×3 uint8) at this scale."""
        return resize_image(image, self.size(*image.shape[:2]))


Factor = Annotated[float, Field(ge=0.1, le=10)]


@schema
class AugmentationSettings(PlainSettings):
    """Random changes of the training images. The strong augmentation of the mixed images is a
    matter of self-training and not set here."""

    flip: bool = True
    """Mirror every second image left to right."""
    rotate: bool = False
    """Turn by 0, 90, 180 or 270 degrees: for photos without an up and down, such as of a road from above."""
    scale: Annotated[tuple[Factor, Factor], FromList, Expected("two numbers from 0.1 to 10, smallest and largest")] = (
        1.0,
        1.0,
    )
    """Smallest and largest factor by which an image is resized before the crop."""
    photometric: FractionBelowOne = 0.1
    """Range of the random brightness, contrast and saturation of source images: 0.1 means ±10%; 0 is off."""

    def __post_init__(self) -> None:
        require(self.scale[0] <= self.scale[1], "scale", "two numbers, the smallest first", self.scale)


AUGMENTATION_LEVELS = {
    "none": AugmentationSettings(flip=False, photometric=0.0),
    "light": AugmentationSettings(),
    "medium": AugmentationSettings(scale=(0.8, 1.25), photometric=0.2),
    "hard": AugmentationSettings(rotate=True, scale=(0.5, 2.0), photometric=0.4),
}
"""Settings by the name that people choose them by, from the photos as they are to all that a photo may become.
'light' is what a run does unless told otherwise. 'medium' adds what another camera and another distance change.
'hard' also turns photos, which suits surfaces and not scenes with an up and down, and halves and doubles them: what is
3 pixels wide may get lost."""


def augmentation_level(settings: AugmentationSettings) -> str | None:
    """The name in `AUGMENTATION_LEVELS` of exactly these settings; None if they have none."""
    return next((name for name, level in AUGMENTATION_LEVELS.items() if level == settings), None)


def augment_geometry(
    image: np.ndarray,
    mask: np.ndarray,
    settings: AugmentationSettings,
    rng: np.random.Generator,
    scaling: LabelScaling = "keep_thin",
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask, resized, mirrored and turned together as `settings` allow.

    Args:
        image: H×W×3 uint8 RGB.
        mask: H×W uint8, class indices or where something counts.
        settings: what may be changed.
        rng: decides.
        scaling: how the mask is resized.
    """
    if settings.scale != (1.0, 1.0):
        # Uniform in the logarithm: halving and doubling are as likely as each other.
        factor = float(np.exp(rng.uniform(*np.log(settings.scale))))
        size = tuple(max(1, round(side * factor)) for side in image.shape[:2])
        image, mask = resize_image(image, size), resize_labels(mask, size, scaling)
    if settings.flip and rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if settings.rotate:
        turns = int(rng.integers(4))
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    return image, mask


def straighten(array: np.ndarray) -> np.ndarray:
    """A mirrored or turned view (H×W or H×W×3) as an array of its own.

    OpenCV turns pixels; numpy would copy them byte by byte.
    """
    mirrored = tuple(axis for axis in (0, 1) if array.strides[axis] < 0)
    view = np.flip(array, mirrored)
    if view.strides[0] < view.strides[1]:
        view = cv2.transpose(view.swapaxes(0, 1))
    return cv2.flip(view, _FLIPS[mirrored]) if mirrored else np.ascontiguousarray(view)


def augment_colour(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """`image` (H×W×3 uint8) with random brightness, contrast and saturation within ±`strength`.

    One affine map of the colour does all three: brightness times the pixel, contrast about the mean of the image,
    saturation about the pixel's grey.
    """
    if strength == 0:
        return image
    image = straighten(image)
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, size=3)
    to_grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    colour = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * to_grey)
    offset = np.full((3, 1), brightness * (1 - contrast) * np.mean(cv2.mean(image)[:3]))
    # On floats: for bytes, OpenCV rounds the coefficients of the map to ten bits.
    pixels = cv2.transform(image.astype(np.float32), np.hstack([colour, offset]))
    return cv2.add(pixels, (0, 0, 0, 0), dtype=cv2.CV_8U)


def crop_place(shape: tuple[int, ...], crop_size: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop; an axis shorter than the crop is taken whole."""
    top = int(rng.integers(max(shape[0] - crop_size[0], 0) + 1))
    left = int(rng.integers(max(shape[1] - crop_size[1], 0) + 1))
    return slice(top, top + crop_size[0]), slice(left, left + crop_size[1])


def crop_place_holding(
    wanted: np.ndarray, crop_size: tuple[int, int], rng: np.random.Generator, *, needed: float, tries: int = 10
) -> tuple[slice, slice]:
    """A random crop that holds at least `needed` of the pixels that are wanted, or the fullest of `tries`.

    Args:
        wanted: H×W bool.
        crop_size: height and width of the crop in pixels.
        rng: decides.
        needed: number of pixels.
        tries: crops drawn at most.
    """
    best, most = None, -1
    for _ in range(tries):
        place = crop_place(wanted.shape, crop_size, rng)
        amount = int(np.count_nonzero(wanted[place]))
        if amount > most:
            best, most = place, amount
        if amount >= needed:
            break
    return best


def crop_place_around(
    pixel: tuple[int, int], shape: tuple[int, ...], crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random one of the crops that hold `pixel` (row, column) of an image of `shape` H×W."""
    starts = []
    for at, whole, side in zip(pixel, shape, crop_size, strict=False):
        last = max(whole - side, 0)
        starts.append(int(rng.integers(max(at - side + 1, 0), min(at, last) + 1)))
    return tuple(slice(start, start + side) for start, side in zip(starts, crop_size, strict=True))
