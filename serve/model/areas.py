"""From a mask of class indices to the areas that an answer names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.hrda.checks import SettingsError, closest, received
from common.hrda.settings import BACKGROUND

CONFIDENCE_TAG = "confidence"
"""Name of the tag that carries an area's confidence."""


@dataclass(frozen=True)
class Area:
    """All pixels of one class in an image."""

    index: int
    """Of the class."""
    pixels: np.ndarray
    """H×W bool, somewhere true."""
    confidence: float | None
    """Their mean probability to four digits, where it was asked for."""


def find_areas(
    mask: np.ndarray,
    classes: Sequence[str],
    *,
    confidences: Sequence[float | None] | None = None,
    background: bool = True,
    wanted: Collection[str] | None = None,
) -> list[Area]:
    """One area a class that is present.

    Args:
        mask: H×W uint8 class indices.
        classes: names by index, the background first.
        confidences: mean probability of each class in the mask, or None.
        background: whether the background counts as an area.
        wanted: names of classes; the pixels of others count as background, which is an area only where it is wanted
            too. None: all.
    """
    background = background and (wanted is None or classes[BACKGROUND] in wanted)
    unwanted = [
        index for index, name in enumerate(classes) if index != BACKGROUND and wanted is not None and name not in wanted
    ]
    if np.isin(mask, unwanted).any():
        mask = np.where(np.isin(mask, unwanted), BACKGROUND, mask)
        # What has become background was not predicted as such: its probability would say nothing.
        confidences = confidences and [None, *confidences[1:]]
    return [
        Area(index, mask == index, _confidence(confidences, index))
        for index in map(int, np.unique(mask))
        if index != BACKGROUND or background
    ]


def check_wanted(wanted: Any, classes: Sequence[str]) -> None:
    """Check the setting `classes` of a request, which names the classes to answer with.

    Raises:
        SettingsError: not a list of names, or the model has no such class.
    """
    if wanted is None or wanted == "all":
        return
    if not isinstance(wanted, list):
        raise SettingsError(f"classes must be a list of class names. Received: {received(wanted)}.")
    for name in wanted:
        if name not in classes:
            raise SettingsError(f"The model has no class {name!r}: {closest(str(name), classes)}")


def _confidence(confidences: Sequence[float | None] | None, index: int) -> float | None:
    if confidences is None or confidences[index] is None:
        return None
    return round(confidences[index], 4)
