"""Rare class sampling: for which class a crop is drawn, from which photo, and how much of the class it must hold.

The published rule (DAFormer, section 3.2): draw a class c with P(c) = softmax((1 − f_c) / T), f_c its share of all
labelled pixels; draw a photo with more than `min_pixels` pixels of it; draw the crop again, up to 10 times, until it
holds more than `min_pixels · min_crop_ratio` of them. Its numbers (0.01, 3000, 2.0) are those of street scenes of 19
classes at crops of 1024. A crack photo of 480×320 pixels has some 2,500 crack pixels: all such photos would be left
out, and at T = 0.01 no crop would ever be drawn for the background. Mode 'auto' derives all three from the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import brentq

from common.data.transforms import crop_place_around, crop_place_holding
from common.hrda.checks import Count, OffIsFalse, PlainSettings, SettingsError, schema

RareClassMode = Literal["off", "auto", "explicit"]

_LEAST_OF_MEDIAN = 0.1
"""A photo with less than this share of what the class's median photo has is a sliver at the border, or a slip."""
_LEAST_OF_AVERAGE = 0.5
"""What a crop must hold of what the crops of its photo hold on average."""
_CLASSES_NAMED = 8


@schema
class RareClassSettings(PlainSettings):
    """Whether source photos and crops are drawn by class, rare classes more often than they come by chance."""

    mode: Annotated[RareClassMode, OffIsFalse] = "off"
    """'off': each photo once a pass. 'auto': by class, with temperature and thresholds that follow from the labels.
    'explicit': by class, with the values below, which are the published ones for street scenes."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """T of P(c) = softmax((1 − share of c) / T): the smaller, the more is drawn for the rarest classes alone."""
    min_pixels: Count = 3000
    """Photos are drawn for a class that have more than so many pixels of it, at the scale of training."""
    min_crop_ratio: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Crops are drawn again, up to 10 times, until they hold more than this times `min_pixels`."""


@dataclass(frozen=True, eq=False)
class ClassSampler:
    """Draws classes, photos of them, and crops that hold them."""

    probabilities: NDArray[np.float64]
    """C: how often crops are drawn for each class; 0 for a class without photos."""
    photos: tuple[NDArray[np.intp], ...]
    """Of each class, the indices of the photos that are drawn for it."""
    crop_pixels: float | None = None
    """How many pixels of its class a crop must hold; None: half of what crops of its photo hold on average."""

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A class, and the index of one of its photos."""
        label = int(rng.choice(len(self.probabilities), p=self.probabilities))
        photos = self.photos[label]
        return label, int(photos[rng.integers(len(photos))])

    def place(
        self, mask: NDArray[np.uint8], label: int, crop_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[slice, slice]:
        """Rows and columns of a crop drawn for the class `label`, which it holds wherever the photo does.

        Args:
            mask: H×W uint8 class indices, as they are cropped.
            label: from `draw`.
            crop_size: height and width of the crop in pixels.
            rng: decides.
        """
        wanted = mask == label
        amount = int(np.count_nonzero(wanted))
        needed = self.crop_pixels
        if needed is None:
            covered = math.prod(min(1.0, side / whole) for side, whole in zip(crop_size, mask.shape, strict=True))
            needed = _LEAST_OF_AVERAGE * covered * amount
        place = crop_place_holding(wanted, crop_size, rng, needed=needed)
        if amount and not wanted[place].any():
            # A small thing in a large photo: chance may miss it ten times.
            row, column = divmod(int(np.flatnonzero(wanted)[rng.integers(amount)]), mask.shape[1])
            place = crop_place_around((row, column), mask.shape, crop_size, rng)
        return place


def class_sampler(
    settings: RareClassSettings, pixels: NDArray[np.int64], classes: Sequence[str], role: str = "source"
) -> tuple[ClassSampler | None, str]:
    """What draws the crops of labelled photos.

    Args:
        settings: as asked for.
        pixels: N×C, how many pixels of each of N photos each class has.
        classes: names of the C classes.
        role: what a sentence calls these photos.

    Returns:
        The sampler and a sentence for the log that says what was chosen and why; None and "" if it is off.

    Raises:
        SettingsError: no photo has as many pixels of any class as the settings ask for.
    """
    if settings.mode == "off":
        return None, ""
    totals = pixels.sum(axis=0)
    shares = totals / max(totals.sum(), 1)
    if settings.mode == "explicit":
        floors = np.full(len(classes), settings.min_pixels, np.float64)
        has_enough = pixels > settings.min_pixels
        crop_pixels = np.nextafter(settings.min_pixels * settings.min_crop_ratio, math.inf)
    else:
        # Of each photo's own pixels: photos of other sizes, which are resized, would not compare otherwise.
        of_photo = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
        floors = np.array(
            [_LEAST_OF_MEDIAN * np.median(column[column > 0]) if column.any() else 0.0 for column in of_photo.T]
        )
        has_enough = (of_photo > 0) & (of_photo >= floors)
        crop_pixels = None
    drawn = has_enough.any(axis=0)
    if not drawn.any():
        raise SettingsError(
            f"rare_class_sampling leaves no photo: none of the {len(pixels)} {role} photos has more than min_pixels "
            f"({settings.min_pixels}) pixels of a class. Lower min_pixels, or set mode: auto."
        )
    temperature = settings.temperature if settings.mode == "explicit" else balancing_temperature(shares[drawn])
    probabilities = np.zeros(len(classes))
    probabilities[drawn] = class_probabilities(shares[drawn], temperature)
    sampler = ClassSampler(probabilities, tuple(np.flatnonzero(column) for column in has_enough.T), crop_pixels)
    return sampler, _explained(sampler, settings, classes, role, shares, pixels, floors, temperature)


def class_probabilities(shares: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """P(c) = softmax((1 − f_c) / T) of the classes' `shares` f of all pixels."""
    weights = np.exp((shares.min() - shares) / temperature)
    return weights / weights.sum()


def balancing_temperature(shares: NDArray[np.float64]) -> float:
    """The T at which the most frequent class is drawn half as often as if all came equally often.

    So P(c) is neither uniform nor that of the rarest class alone: of two classes the rare one gets three quarters.
    With equal shares P(c) is uniform at any T, and this is infinite.

    Args:
        shares: f of the classes that are drawn.
    """
    gaps = shares.max() - shares
    if gaps.max() == 0:
        return math.inf
    # P(most frequent) = 1 / Σ exp(gap / T) = 1 / 2C, which has one solution: the sum grows with 1 / T.
    wanted = 2 * len(shares)
    return 1 / brentq(lambda inverse: np.exp(gaps * inverse).sum() - wanted, 0, np.log(wanted) / gaps.max())


def _explained(
    sampler: ClassSampler,
    settings: RareClassSettings,
    classes: Sequence[str],
    role: str,
    shares: NDArray[np.float64],
    pixels: NDArray[np.int64],
    floors: NDArray[np.float64],
    temperature: float,
) -> str:
    is_auto = settings.mode == "auto"
    parts = []
    order = [i for i in np.argsort(-sampler.probabilities, kind="stable") if sampler.probabilities[i]]
    for i in order[:_CLASSES_NAMED]:
        holding = int(np.count_nonzero(pixels[:, i]))
        least = f" with {100 * floors[i]:.2g}% or more of it" if is_auto else ""
        parts.append(
            f"{classes[i]} {100 * sampler.probabilities[i]:.0f}% (covers {100 * shares[i]:.2g}%; from "
            f"{len(sampler.photos[i])} of {holding} photos{least})"
        )
    if len(order) > _CLASSES_NAMED:
        parts.append(f"{len(order) - _CLASSES_NAMED} more")
    why = (
        f"at temperature {temperature:.3g} the most frequent class comes half as often as if all came equally often; "
        "photos with less than a tenth of what a class's median photo has are left out; a crop holds half of what "
        "crops of its photo hold on average, or what the fullest of 10 does"
        if is_auto
        else f"temperature {temperature:g}; photos with more than {settings.min_pixels} pixels of the class; a crop "
        f"holds more than {settings.min_pixels * settings.min_crop_ratio:g} of them, or what the fullest of 10 does"
    )
    never = [classes[i] for i in np.flatnonzero(sampler.probabilities == 0)]
    without = f" Never for {', '.join(never)}: no photo has enough of it." if never else ""
    return f"Rare class sampling ({settings.mode}), {role} crops are drawn for {', '.join(parts)}: {why}.{without}"
