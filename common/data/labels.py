"""Labels at another size: one way of shrinking them, in which what is thin survives.

Training, class weights, sampling and previews all see labels through `resize_labels`. Taking the nearest pixel, as the
reference does, leaves of a line of two pixels dots or nothing once a photo of 4000×3000 is trained on at 640×480.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import cv2
import numpy as np

from common.hrda.pixels import IGNORE_LABEL
from common.metrics.centrelines import skeleton, thin_radius

LabelScaling = Literal["keep_thin", "nearest"]

# Share, of the most that a class covers in any of the small pixels around, from which it gets a pixel: where one of
# them is covered whole, and where hardly anything of one is. Half for thin lines, too, would tear some of them where
# they change from one row of pixels to the next.
_WIDE, _THIN = 0.5, 0.2
_NEIGHBOURS = np.ones((3, 3), np.uint8)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def resize_labels(labels: np.ndarray, size: tuple[int, int], scaling: LabelScaling = "keep_thin") -> np.ndarray:
    """Class indices at another size; indices are picked, never blended.

    With 'keep_thin', a small pixel gets a class that covers a fifth to a half as much of it as of any of the pixels
    around. Inside and along the border of what is wide, some pixel around is covered whole: there it is the majority.
    A line thinner than a small pixel stays a line of one, now and then two. Of several classes that reach their share,
    the one that exceeds it most gets the pixel; where none does, the background. What does not count needs half of it.

    Args:
        labels: H×W uint8.
        size: height and width.
        scaling: 'keep_thin', or 'nearest' for the pixel nearest to the middle, as the reference does. What is enlarged
            loses nothing: the nearest pixel is taken in any case.
    """
    if labels.shape == tuple(size):
        return labels
    if scaling == "nearest" or size[0] > labels.shape[0] or size[1] > labels.shape[1]:
        return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    small = np.zeros(size, np.uint8)
    strongest = np.full(size, np.nextafter(np.float32(1), np.float32(0)), np.float32)
    for index in present(labels):
        if index == 0:
            continue
        coverage = cv2.resize((labels == index).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        most = np.float32(1) if index == IGNORE_LABEL else cv2.dilate(coverage, _NEIGHBOURS)
        needed = most * (_THIN + (_WIDE - _THIN) * most)
        strength = np.divide(coverage, needed, out=np.zeros_like(coverage), where=needed > 0)
        small[strength > strongest] = index
        np.maximum(strongest, strength, out=strongest)
    return small


def skeleton_tubes(labels: np.ndarray) -> np.ndarray:
    """Where labels H×W (uint8) are near the middle lines of their class: H×W uint8, 1 there.

    These are the tubes of skeleton recall (Kirchhoff et al., ECCV 2024): the skeleton, dilated twice by a cross, within
    the label. The background and what does not count have none.
    """
    tubes = np.zeros_like(labels)
    for index in present(labels):
        if index not in (0, IGNORE_LABEL):
            region = (labels == index).view(np.uint8)
            tubes |= region & cv2.dilate(skeleton(region, thin_radius(labels.shape)), _CROSS, iterations=2)
    return tubes


def present(labels: np.ndarray) -> list[int]:
    """The indices that occur in `labels` (uint8), in their order."""
    return np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256])).tolist()


def count_parts(labels: np.ndarray, small: np.ndarray) -> dict[int, tuple[int, int]]:
    """How many connected parts each class has, and how many of them have a pixel left in `small`.

    Args:
        labels: H×W uint8 class indices; the background and what does not count have no parts.
        small: h×w, the same labels resized.

    Returns:
        By class index: parts that survive, and all.
    """
    enlarged = cv2.resize(small, labels.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    found = {}
    for index in present(labels):
        if index in (0, IGNORE_LABEL):
            continue
        is_class = (labels == index).view(np.uint8)
        count, parts = cv2.connectedComponents(is_class, connectivity=8)
        survivors = np.unique(parts[(enlarged == index) & (is_class > 0)])
        found[index] = (len(survivors), count - 1)
    return found


def summed_parts(parts: Iterable[Mapping[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """The parts of several photos together."""
    total: dict[int, tuple[int, int]] = {}
    for of_photo in parts:
        for index, (left, count) in of_photo.items():
            before = total.get(index, (0, 0))
            total[index] = (before[0] + left, before[1] + count)
    return total
