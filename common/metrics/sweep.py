"""Scores at every threshold of a class's probability, from histograms: one pass over the pixels, not one a threshold.

Source of ODS and OIS: Arbeláez et al., "Contour detection and hierarchical image segmentation", TPAMI 2011.
"""

from __future__ import annotations

import cv2
import numpy as np

from common.metrics.borders import disk

THRESHOLDS = np.arange(1, 100) / 100
"""A pixel is predicted as a class where its probability is at least this."""
BINS = len(THRESHOLDS) + 1

_ROUNDING = 1e-3


def levels(probabilities: np.ndarray) -> np.ndarray:
    """How many thresholds each pixel's probability reaches.

    Args:
        probabilities: H×W float, of one class. NaN reaches no threshold.

    Returns:
        H×W uint8 from 0 to 99.

    Raises:
        ValueError: values that are no probabilities.
    """
    if np.isnan(probabilities.sum()):
        probabilities = np.nan_to_num(probabilities, nan=0.0)
    if probabilities.min(initial=0) < -_ROUNDING or probabilities.max(initial=0) > 1 + _ROUNDING:
        raise ValueError(
            "Probabilities must lie between 0 and 1; logits need a softmax first. Received values from "
            f"{probabilities.min():g} to {probabilities.max():g}."
        )
    # In the probabilities' own type, or 0.3 as float32 would not reach 0.3.
    reached = np.searchsorted(THRESHOLDS.astype(probabilities.dtype), probabilities.ravel(), side="right")
    return reached.astype(np.uint8).reshape(probabilities.shape)


def histogram(levels: np.ndarray, true: np.ndarray, ignored: np.ndarray | None) -> np.ndarray:
    """Count pixels by how many thresholds their probability reaches.

    Args:
        levels: H×W uint8, of one class, as of `levels`.
        true: H×W uint8, 1 where that class is right; 0 where `ignored` is 1.
        ignored: H×W uint8, 1 where nothing is counted; None: nowhere.

    Returns:
        2×100 int64: pixels of other classes, pixels of the class.
    """
    placed = levels.ravel() + true.ravel() * np.int64(BINS)
    if ignored is not None:
        placed = placed[ignored.ravel() == 0]
    return np.bincount(placed, minlength=2 * BINS).reshape(2, BINS)


def tolerant_histogram(
    levels: np.ndarray, true: np.ndarray, ignored: np.ndarray | None, tolerance: float
) -> np.ndarray:
    """Count pixels so that `tolerant_counts` can tell for each threshold how many come within `tolerance` of the other
    region. One pass serves all thresholds, as the neighbours of a true pixel reach what the highest of them reaches.

    Args:
        levels, true, ignored: as of `histogram`.
        tolerance: distance in pixels.

    Returns:
        4×100 int64: by their own level, pixels near the true region and pixels away from it; by the highest level near
        them, true pixels away from ignored ones and true pixels near those, which are judged only where they are found.
    """
    near = disk(tolerance)
    seen, unknown = levels, np.zeros_like(true)
    if ignored is not None:
        seen, unknown = levels * (1 - ignored), cv2.dilate(ignored, near)
    near_true, highest = cv2.dilate(true, near), cv2.dilate(seen, near)
    groups = (
        seen[near_true == 1],
        seen[(near_true | unknown) == 0],
        highest[(true & (1 - unknown)) == 1],
        highest[(true & unknown) == 1],
    )
    return np.stack([np.bincount(group, minlength=BINS) for group in groups])


def tolerant_counts(histogram: np.ndarray) -> np.ndarray:
    """99×4 int64 of a `tolerant_histogram`: at each threshold four counts as of `common.metrics.borders`."""
    near, away, known, unknown = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return np.stack([near, near + away, known + unknown, histogram[2].sum() + unknown], axis=1)


def counts(histogram: np.ndarray) -> np.ndarray:
    """99×3 int64 of a histogram: pixels predicted rightly, predicted, and true, at each threshold."""
    wrong, hits = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return np.stack([hits, hits + wrong, np.full_like(hits, histogram[1].sum())], axis=1)


def best(counts: np.ndarray) -> int:
    """Which threshold gives the highest F1; of equals, the fewest wrong pixels, then the nearest to 0.5.

    Args:
        counts: 99×3, as of `counts`.
    """
    hits, predicted, true = counts.T
    scores = 2 * hits / np.maximum(predicted + true, 1)
    wrong = predicted + true - 2 * hits
    return int(np.lexsort((np.abs(THRESHOLDS - 0.5), wrong, -scores))[0])
