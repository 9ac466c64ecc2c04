"""From rows of logits, as sliding hands them over, to labels, confidences and probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import cv2
import numpy as np
import torch
from torch import Tensor

from common.hrda.settings import BACKGROUND


@dataclass(frozen=True)
class LabelRule:
    """How probabilities become labels."""

    thresholds: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Probability from which a pixel takes this class (index, background excluded); the most probable such class
    wins. Elsewhere the most probable of the classes without a threshold. Empty: the most probable class everywhere."""
    min_component: int = 0
    """Connected areas (8 neighbours) of one class with fewer pixels become background; 0 keeps all."""


class LabelRows:
    """A sink that keeps one class index a pixel, and where asked how probable it is.

    Args:
        size: (H, W) of the image.
        rule: how a pixel gets its class.
        confidence: whether to keep probabilities too.
    """

    def __init__(self, size: tuple[int, int], rule: LabelRule, *, confidence: bool) -> None:
        self.labels = np.empty(size, dtype=np.uint8)
        """H×W class indices."""
        self.confidence = np.empty(size, dtype=np.float16) if confidence else None
        """H×W probability of each pixel's class, if asked for."""
        self._thresholds = dict(rule.thresholds)

    def __call__(self, top: int, logits: Tensor) -> None:
        rows = slice(top, top + logits.shape[1])
        if self.confidence is None:
            self.labels[rows] = label_rows(logits, self._thresholds)
            return
        probabilities = logits.softmax(0)
        labels = label(probabilities, self._thresholds)
        self.labels[rows] = labels.to(torch.uint8).cpu().numpy()
        self.confidence[rows] = probabilities.gather(0, labels[None])[0].half().cpu().numpy()


def label_rows(logits: Tensor, thresholds: Mapping[int, float]) -> np.ndarray:
    """Class indices rows×W uint8 of rows of logits C×rows×W, see `LabelRule.thresholds`."""
    # The most probable class is that of the highest logit: no softmax needed.
    labels = label(logits.softmax(0), thresholds) if thresholds else logits.argmax(0)
    return labels.to(torch.uint8).cpu().numpy()


class ProbabilityRows:
    """A sink that keeps the probabilities of all classes.

    Args:
        num_classes: C.
        size: (H, W) of the image.
        dtype: numpy's float16 or float32.
    """

    def __init__(self, num_classes: int, size: tuple[int, int], dtype: type[np.floating] = np.float32) -> None:
        self.probabilities = np.empty((num_classes, *size), dtype=dtype)
        """C×H×W."""

    def __call__(self, top: int, logits: Tensor) -> None:
        self.probabilities[:, top : top + logits.shape[1]] = logits.softmax(0).cpu().numpy()


def label(probabilities: Tensor, thresholds: Mapping[int, float]) -> Tensor:
    """Class indices (…) int64 of probabilities C×…, see `LabelRule.thresholds`."""
    if not thresholds:
        return probabilities.argmax(0)
    free = probabilities.clone()
    reached = torch.full_like(probabilities, -1.0)
    for index, threshold in thresholds.items():
        own = probabilities[index]
        reached[index] = torch.where(own >= threshold, own, -1.0)
        free[index] = -1.0
    best, winner = reached.max(0)
    return torch.where(best >= 0, winner, free.argmax(0))


def remove_small_components(labels: np.ndarray, min_pixels: int, num_classes: int) -> None:
    """Turn connected areas of fewer than `min_pixels` pixels of one class into background, in place.

    Args:
        labels: H×W uint8 class indices.
        min_pixels: areas from this size on stay.
        num_classes: C, the background included.
    """
    for index in range(num_classes):
        if index == BACKGROUND:
            continue
        _, areas, stats, _ = cv2.connectedComponentsWithStats((labels == index).view(np.uint8), connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] < min_pixels
        small[0] = False
        if small.any():
            labels[small[areas]] = BACKGROUND


def mean_confidences(labels: np.ndarray, confidence: np.ndarray, num_classes: int) -> list[float | None]:
    """Mean of `confidence` (H×W float) over each class's pixels in `labels` (H×W uint8); None where it has none."""
    counts = np.bincount(labels.ravel(), minlength=num_classes)
    sums = np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=num_classes)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
