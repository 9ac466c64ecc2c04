"""How well predicted class maps agree with the truth, counted over a whole set of photos."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Self

import cv2
import numpy as np

from common.hrda.pixels import IGNORE_LABEL
from common.metrics import sweep
from common.metrics.borders import border_matches, region_matches
from common.metrics.centrelines import centreline_matches, thickness, thin_radius

TOLERANCES = (2.0, 4.0)
SWEPT_TOLERANCE = 2.0
"""The distance in pixels at which the tolerant scores are known at every threshold."""
AT_BEST = ("hits", "predicted", "true", "near_predicted", "judged_predicted", "near_true", "judged_true")
"""Counts of a class at a threshold: exact ones, and those within 2 px as of `common.metrics.borders`."""
AS_LABELLED = ("label_hits", "label_predicted", "label_true")
"""Counts of a class where the most probable one is predicted."""
COUNTED = (*AT_BEST, *AS_LABELLED)
MEANS = {
    "mIoU": "iou",
    "mF1": "f1",
    "mF1_2px": "f1_2px",
    "mBoundaryF1_2px": "boundary_f1_2px",
    "mclDice": "cldice",
    "mODS": "ods",
    "mBestIoU": "best_iou",
    "mBestF1_2px": "best_f1_2px",
    "mBestPrecision": "best_precision",
    "mBestRecall": "best_recall",
}
"""Scores whose mean over the classes is given, by the mean's name."""


class SegmentationMetrics:
    """Sums pixel counts photo by photo; `compute` turns them into scores.

    Counts are summed over the photos before any ratio is taken, so that a photo without a crack
    neither divides by zero nor counts as a perfect score. Being whole numbers, they add up to the same whatever the
    order and wherever they were counted.

    Args:
        classes: names by index; index 0 is the background.
        tolerances: distances in pixels within which the tolerant scores accept a pixel. Annotators
            differ by a pixel or two about the edge of a crack, which is as much as the crack is wide.

    Example:
        >>> metrics = SegmentationMetrics(["__bg__", "crack"])
        >>> metrics.update(prediction, truth, probabilities)
        >>> metrics.compute()["iou/crack"]
    """

    def __init__(self, classes: Sequence[str], tolerances: Sequence[float] = TOLERANCES) -> None:
        self.classes = tuple(classes)
        self.tolerances = tuple(tolerances)
        count = len(self.classes)
        self._shapes = {
            "confusion": (count, count),
            "regions": (len(self.tolerances), count, 4),
            "borders": (len(self.tolerances), count, 4),
            "centrelines": (count, 4),
            # Photos in which the class is thin, and in which it is not.
            "widths": (count, 2),
            "histograms": (count, 2, sweep.BINS),
            "tolerant_histograms": (count, 4, sweep.BINS),
            "own_best": (count, 3),
        }
        ends = [0, *accumulate(math.prod(shape) for shape in self._shapes.values())]
        self._places = dict(zip(self._shapes, pairwise(ends), strict=True))
        self.counts = np.zeros(ends[-1], dtype=np.int64)
        """All that was counted, a flat int64 array. The sum of several processes' `counts` counts all their photos:
        `torch.distributed.all_reduce(torch.from_numpy(metrics.counts))`."""

    def merge(self, other: Self) -> None:
        """Add what `other` has counted, on other photos.

        Raises:
            ValueError: it counts other classes or tolerances.
        """
        ours, theirs = (self.classes, self.tolerances), (other.classes, other.tolerances)
        if ours != theirs:
            raise ValueError(
                f"Only counts of the same classes and tolerances can be added: {ours}. Received: {theirs}."
            )
        self.counts += other.counts

    def update(
        self, prediction: np.ndarray, truth: np.ndarray, probabilities: Iterable[np.ndarray] | None = None
    ) -> None:
        """Count one photo.

        Args:
            prediction: H×W class indices.
            truth: H×W class indices, `IGNORE_LABEL` where nothing is counted: scores are the same whatever is
                predicted there.
            probabilities: H×W float of each class, the background first: an array C×H×W, or the classes one by one.
                For the scores of the threshold sweep, which count only the photos that come with probabilities.

        Raises:
            ValueError: shapes differ, an index is that of no class, or values are no probabilities.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f"Prediction and truth must have the same height and width. Received: {prediction.shape}, "
                f"{truth.shape}."
            )
        confusion = self._confusion_of(prediction, truth)
        ignored = (truth == IGNORE_LABEL).view(np.uint8)
        ignored = ignored if ignored.any() else None
        histograms = None if probabilities is None else self._histograms_of(probabilities, truth, ignored)
        # Everything that can be refused was looked at: from here on counts are added.
        self._part("confusion")[...] += confusion
        for index in range(1, len(self.classes)):
            if confusion[index].any() or confusion[:, index].any():
                self._count_shapes(index, prediction, truth, ignored)
        if histograms is not None:
            exact, tolerant = histograms
            self._part("histograms")[...] += exact
            self._part("tolerant_histograms")[...] += tolerant
            for index in range(1, len(self.classes)):
                at = sweep.counts(exact[index])
                self._part("own_best")[index] += at[sweep.best(at)]

    def compute(self) -> dict[str, float]:
        """All scores from 0 to 1, by name; docs/metrics.md explains them.

        For each class `iou/<class>`, `f1/<class>`, `precision/<class>` and `recall/<class>`. For each class but the
        background also `f1_2px/<class>`, `precision_2px/<class>`, `recall_2px/<class>` (pixels within 2 px of the other
        region), `boundary_f1_2px/<class>` (pixels of the borders), the same with 4 px, and `cldice/<class>` where the
        class is thin in most of its photos. With probabilities also `ods/<class>` (F1 at the best of 99 thresholds for
        all photos), `ois/<class>` (at each photo's own best one), `best_threshold/<class>` and, at that one threshold,
        `best_iou/<class>`, `best_precision/<class>`, `best_recall/<class>` and `best_f1_2px/<class>`. Then the means
        over the classes that have the score: `mIoU`, `mF1`, and those of `MEANS`.

        Foreground comes before background. A class of which the truth has no pixel has no score and is left out of the
        means: how well it is found cannot be told. Where it is predicted, the class that is there pays for it. A ratio
        whose denominator is empty is 0.
        """
        confusion = self._part("confusion")
        hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        scores: dict[str, float] = {}
        for index in [*range(1, len(self.classes)), 0]:
            if true[index] == 0:
                continue
            of_class = {
                "iou": _ratio(hits[index], true[index] + predicted[index] - hits[index]),
                "f1": _ratio(2 * hits[index], true[index] + predicted[index]),
                "precision": _ratio(hits[index], predicted[index]),
                "recall": _ratio(hits[index], true[index]),
            }
            if index > 0:
                of_class |= self._tolerant_scores(index) | self._centreline_scores(index) | self._sweep_scores(index)
            scores |= {f"{score}/{self.classes[index]}": value for score, value in of_class.items()}
        for mean, score in MEANS.items():
            values = [value for name, value in scores.items() if name.startswith(f"{score}/")]
            if values or mean in ("mIoU", "mF1"):
                scores[mean] = float(np.mean(values)) if values else 0.0
        return scores

    def main_score(self) -> float:
        """The score by which checkpoints are compared: the IoU of the foreground when there is one
        foreground class (the background's says little about a thin one), else mIoU."""
        return self.compute().get(f"iou/{self.classes[1]}" if len(self.classes) == 2 else "mIoU", 0.0)

    def best(self) -> tuple[int, ...]:
        """By class, which of `THRESHOLDS` gives the highest F1; 0 for the background."""
        return (0, *(sweep.best(sweep.counts(one)) for one in self._part("histograms")[1:]))

    def counts_at(self, best: Sequence[int]) -> np.ndarray:
        """Counts of each class at the thresholds of those numbers: C×10 int64, named by `COUNTED`.

        The background, which has no threshold, has only those of `AS_LABELLED`.
        """
        confusion = self._part("confusion")
        counts = np.zeros((len(self.classes), len(COUNTED)), dtype=np.int64)
        for index in range(1, len(self.classes)):
            exact = sweep.counts(self._part("histograms")[index])[best[index]]
            tolerant = sweep.tolerant_counts(self._part("tolerant_histograms")[index])[best[index]]
            counts[index, : len(AT_BEST)] = [*exact, *tolerant]
        counts[:, len(AT_BEST) :] = np.stack([np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)
        return counts

    def _part(self, name: str) -> np.ndarray:
        """A view of the counts of that name."""
        start, end = self._places[name]
        return self.counts[start:end].reshape(self._shapes[name])

    def _confusion_of(self, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
        count = len(self.classes)
        counted = truth != IGNORE_LABEL
        true, predicted = truth.ravel(), prediction.ravel()
        if not counted.all():
            # Only where needed: picking pixels takes longer than counting them.
            true, predicted = truth[counted], prediction[counted]
        pairs = true.astype(np.int64) * count + predicted
        if pairs.size and (pairs.min() < 0 or true.max() >= count or predicted.max() >= count):
            raise ValueError(f"Class indices must be below {count}, the number of classes: {', '.join(self.classes)}.")
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def _histograms_of(
        self, probabilities: Iterable[np.ndarray], truth: np.ndarray, ignored: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        exact, tolerant = (
            np.zeros(self._shapes[name], dtype=np.int64) for name in ("histograms", "tolerant_histograms")
        )
        count, maps = len(self.classes), 0
        for maps, plane in enumerate(probabilities, 1):
            if plane.shape != truth.shape:
                raise ValueError(
                    f"Probabilities must have the truth's height and width, {truth.shape}. Received: {plane.shape}."
                )
            if 1 < maps <= count:
                levels, true = sweep.levels(plane), (truth == maps - 1).view(np.uint8)
                exact[maps - 1] = sweep.histogram(levels, true, ignored)
                tolerant[maps - 1] = sweep.tolerant_histogram(levels, true, ignored, SWEPT_TOLERANCE)
        if maps != count:
            raise ValueError(
                f"Probabilities must be one map for each of {count} classes, the background included. Received: {maps}."
            )
        return exact, tolerant

    def _count_shapes(self, index: int, prediction: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None) -> None:
        """Count what depends on a pixel's neighbours, in the part of the photo where the class is."""
        predicted, true = (prediction == index).view(np.uint8), (truth == index).view(np.uint8)
        box = _box_around(predicted | true, margin=math.ceil(max(self.tolerances, default=0)) + 1)
        predicted, true = predicted[box], true[box]
        if ignored is not None:
            ignored = ignored[box]
            predicted = predicted & (1 - ignored)
        for number, tolerance in enumerate(self.tolerances):
            self._part("regions")[number, index] += region_matches(predicted, true, ignored, tolerance)
            self._part("borders")[number, index] += border_matches(predicted, true, ignored, tolerance)
        radius = thin_radius(truth.shape)
        is_thin = thickness(true) <= radius
        if true.any():
            self._part("widths")[index, 0 if is_thin else 1] += 1
        if is_thin:
            self._part("centrelines")[index] += centreline_matches(predicted, true, radius)

    def _tolerant_scores(self, index: int) -> dict[str, float]:
        scores = {}
        for number, tolerance in enumerate(self.tolerances):
            suffix = f"{tolerance:g}px"
            precision, recall, judged = _shares(self._part("regions")[number, index])
            if judged:
                scores |= {
                    f"f1_{suffix}": _harmonic(precision, recall),
                    f"precision_{suffix}": precision,
                    f"recall_{suffix}": recall,
                }
            precision, recall, judged = _shares(self._part("borders")[number, index])
            if judged:
                scores[f"boundary_f1_{suffix}"] = _harmonic(precision, recall)
        return scores

    def _centreline_scores(self, index: int) -> dict[str, float]:
        thin, thick = self._part("widths")[index]
        if thick > thin:
            return {}
        in_truth, predicted, in_prediction, true = self._part("centrelines")[index]
        return {"cldice": _harmonic(_ratio(in_truth, predicted), _ratio(in_prediction, true))}

    def _sweep_scores(self, index: int) -> dict[str, float]:
        histogram = self._part("histograms")[index]
        if not histogram.any():
            return {}
        at = sweep.counts(histogram)
        best = sweep.best(at)
        hits, predicted, true = at[best]
        precision, recall, judged = _shares(sweep.tolerant_counts(self._part("tolerant_histograms")[index])[best])
        own_hits, own_predicted, own_true = self._part("own_best")[index]
        return {
            "ods": _ratio(2 * hits, predicted + true),
            "ois": _ratio(2 * own_hits, own_predicted + own_true),
            "best_iou": _ratio(hits, predicted + true - hits),
            "best_precision": _ratio(hits, predicted),
            "best_recall": _ratio(hits, true),
            "best_threshold": float(sweep.THRESHOLDS[best]),
        } | ({"best_f1_2px": _harmonic(precision, recall)} if judged else {})


def _box_around(region: np.ndarray, margin: int) -> tuple[slice, slice]:
    left, top, width, height = cv2.boundingRect(region)
    return np.s_[
        max(top - margin, 0) : top + height + margin,
        max(left - margin, 0) : left + width + margin,
    ]


def _shares(counts: np.ndarray) -> tuple[float, float, int]:
    """Precision, recall, and how many pixels were judged, of counts as of `common.metrics.borders`."""
    found_predicted, predicted, found_true, true = counts
    return _ratio(found_predicted, predicted), _ratio(found_true, true), int(predicted + true)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def _harmonic(precision: float, recall: float) -> float:
    return _ratio(2 * precision * recall, precision + recall)
