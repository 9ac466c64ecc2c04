"""What a score is worth: counts of every photo, from which come intervals, comparisons and the worst photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from common.metrics.segmentation import COUNTED, SegmentationMetrics
from common.metrics.sweep import THRESHOLDS

SCORES = {"iou": "IoU", "f1_2px": "F1 at 2 px", "precision": "precision", "recall": "recall"}
"""Scores of a class at its best threshold, in the order in which they are shown, with their titles."""
LEAST_PHOTOS = 5
"""With fewer photos than this no interval is given: it would say next to nothing."""
RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Score:
    """A figure with its uncertainty."""

    value: float
    """From 0 to 1; of a difference from -1 to 1."""
    low: float | None = None
    """Lower end of the 95% interval; None where there are too few photos for one."""
    high: float | None = None
    """Upper end of it."""


@dataclass(frozen=True)
class PhotoCounts:
    """Pixel counts of every photo at the thresholds that are best for all of them together."""

    names: tuple[str, ...]
    """File name of each photo."""
    numbers: tuple[int, ...]
    """Number of each among those that were to be measured."""
    classes: tuple[str, ...]
    """Names by index, the background first."""
    thresholds: tuple[float, ...]
    """Best threshold of each class; 0 for the background."""
    counts: np.ndarray
    """N×C×10 int64, the last axis named by `COUNTED`."""

    @property
    def present(self) -> list[int]:
        """Indices of the classes but the background that the photos have."""
        true = self.counts[:, :, COUNTED.index("label_true")].sum(axis=0)
        return [index for index in range(1, len(self.classes)) if true[index] > 0]

    def scores_of(self, name: str) -> dict[str, Score]:
        """Scores of a class at its best threshold, by the names of `SCORES`."""
        index = self.classes.index(name)
        return {
            score: self._with_interval(lambda sums, s=score: scores_of_sums(sums)[s][..., index]) for score in SCORES
        }

    def foreground(self) -> dict[str, Score]:
        """The same as means over the classes that the photos have; of one class its own scores."""
        present = self.present
        return {
            score: self._with_interval(lambda sums, s=score: _mean(scores_of_sums(sums)[s][..., present]))
            for score in SCORES
        }

    def mean_iou(self) -> Score:
        """mIoU with the most probable class predicted, the background included."""
        return self._with_interval(_mean_iou)

    def difference(self, other: Self) -> Score:
        """By how much the foreground's IoU is higher than that of `other`, resampled photo by photo.

        Raises:
            ValueError: `other` was measured on other photos or classes.
        """
        place = COUNTED.index("label_true")
        ours, theirs = ((one.names, one.classes, one.counts[:, :, place].tolist()) for one in (self, other))
        if ours != theirs:
            raise ValueError("Only measurements on the same validation photos and classes can be compared.")
        present = self.present
        both = np.stack([self.counts, other.counts], axis=1)

        def gained(sums: np.ndarray) -> np.ndarray:
            iou = _mean(scores_of_sums(sums)["iou"][..., present])
            return iou[..., 0] - iou[..., 1]

        return with_interval(both, gained)

    def worst(self, count: int) -> list[int]:
        """Places of the photos that cost most, the worst first: those with the most wrong pixels of the classes but the
        background, where what lies within 2 px of its place is not wrong. Photos without any are left out."""
        named = dict(zip(COUNTED, np.moveaxis(self.counts[:, 1:].sum(axis=1), -1, 0), strict=True))
        invented = named["judged_predicted"] - named["near_predicted"]
        wrong = invented + named["judged_true"] - named["near_true"]
        order = np.argsort(-wrong, kind="stable")[:count]
        return [int(place) for place in order if wrong[place] > 0]

    def _with_interval(self, score: Callable[[np.ndarray], np.ndarray]) -> Score:
        return with_interval(self.counts, score)


class PhotoTally:
    """Counts photo by photo, and all of them together.

    Args:
        classes: names by index; index 0 is the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.metrics = SegmentationMetrics(classes)
        """The counts of all photos."""
        self._photos: list[tuple[str, int, np.ndarray]] = []

    def update(
        self, name: str, number: int, prediction: np.ndarray, truth: np.ndarray, probabilities: Iterable[np.ndarray]
    ) -> None:
        """Count one photo.

        Args:
            name: file name of the photo.
            number: of the photo.
            prediction, truth, probabilities: as of `SegmentationMetrics.update`.

        Raises:
            ValueError: as `SegmentationMetrics.update`.
        """
        one = SegmentationMetrics(self.metrics.classes)
        one.update(prediction, truth, probabilities)
        self.metrics.merge(one)
        # Half of the memory, and no photo has four thousand million pixels.
        self._photos.append((name, number, one.counts.astype(np.uint32)))

    def photos(self, best: Sequence[int] | None = None) -> PhotoCounts:
        """The counts of every photo at the thresholds of the numbers `best`; None: the best ones of all photos."""
        best = self.metrics.best() if best is None else best
        one, rows = SegmentationMetrics(self.metrics.classes), []
        for _, _, counts in self._photos:
            one.counts[...] = counts
            rows.append(one.counts_at(best))
        classes = self.metrics.classes
        return PhotoCounts(
            names=tuple(name for name, _, _ in self._photos),
            numbers=tuple(number for _, number, _ in self._photos),
            classes=classes,
            thresholds=(0.0, *(float(THRESHOLDS[index]) for index in best[1:])),
            counts=np.array(rows, dtype=np.int64).reshape(len(rows), len(classes), len(COUNTED)),
        )


def with_interval(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> Score:
    """A score of summed counts (…×C×10) with its bootstrap interval over the photos, counts N×…×C×10."""
    value = float(np.nan_to_num(score(counts.sum(axis=0))))
    photos = len(counts)
    if photos < LEAST_PHOTOS:
        return Score(value)
    # How often each photo is drawn is all that a resample is: one product of matrices sums them all.
    drawn = np.random.default_rng(0).multinomial(photos, np.full(photos, 1 / photos), size=RESAMPLES)
    sums = np.tensordot(drawn.astype(np.float64), counts.astype(np.float64), axes=1)
    values = score(sums)
    if np.isnan(values).all():
        return Score(value)
    low, high = np.nanpercentile(values, _PERCENTILES)
    return Score(value, float(low), float(high))


def scores_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (…×C) at the best threshold, by the names of `SCORES`; NaN for a class that is not there."""
    named = dict(zip(COUNTED, np.moveaxis(sums, -1, 0), strict=True))
    hits, predicted, true = named["hits"], named["predicted"], named["true"]
    there = true > 0
    near_precision = _ratio(named["near_predicted"], named["judged_predicted"])
    near_recall = _ratio(named["near_true"], named["judged_true"])
    scores = {
        "iou": _ratio(hits, predicted + true - hits),
        "f1_2px": _ratio(2 * near_precision * near_recall, near_precision + near_recall),
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, true),
    }
    return {name: np.where(there, values, np.nan) for name, values in scores.items()}


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    named = dict(zip(COUNTED, np.moveaxis(sums, -1, 0), strict=True))
    hits, predicted, true = (named[f"label_{name}"] for name in ("hits", "predicted", "true"))
    return _mean(np.where(true > 0, _ratio(hits, predicted + true - hits), np.nan))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis=-1)
    return np.where(there.any(axis=-1), total / np.maximum(there.sum(axis=-1), 1), np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)
