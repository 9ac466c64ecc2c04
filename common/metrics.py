"""How well predicted class maps agree with the truth, counted over a whole set of images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from common.hrda.settings import IGNORE_LABEL

TOLERANCE = 2.0


class SegmentationMetrics:
    """Sums pixel counts image by image; `compute` turns them into scores.

    Counts are summed over the images before any ratio is taken, so that a photo without a crack
    neither divides by zero nor counts as a perfect score.

    Args:
        classes: names by index; index 0 is the background.
        tolerance: distance in pixels within which the tolerant scores accept a pixel. Annotators
            differ by a pixel or two about the edge of a crack, which is as much as the crack is wide.
    """

    def __init__(self, classes: Sequence[str], tolerance: float = TOLERANCE) -> None:
        self.classes = tuple(classes)
        self.tolerance = tolerance
        count = len(self.classes)
        self._confusion = np.zeros((count, count), dtype=np.int64)
        self._near_truth = np.zeros(count, dtype=np.int64)
        self._near_prediction = np.zeros(count, dtype=np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: H×W class indices.
            truth: H×W class indices, `IGNORE_LABEL` where nothing is counted.

        Raises:
            ValueError: the two differ in shape, or hold an index that no class has.
        """
        count = len(self.classes)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"Prediction and truth must have the same height and width. Received: {prediction.shape}, "
                f"{truth.shape}."
            )
        counted = truth != IGNORE_LABEL
        pairs = truth[counted].astype(np.int64) * count + prediction[counted]
        if pairs.size and (pairs.min() < 0 or truth[counted].max() >= count or prediction[counted].max() >= count):
            raise ValueError(f"Class indices must be below {count}, the number of classes: {', '.join(self.classes)}.")
        self._confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)
        for index in range(1, count):
            predicted, true = (prediction == index) & counted, (truth == index) & counted
            self._near_truth[index] += np.count_nonzero(predicted & self._near(true))
            self._near_prediction[index] += np.count_nonzero(true & self._near(predicted))

    def _near(self, region: np.ndarray) -> np.ndarray:
        if not region.any():
            return np.zeros_like(region)
        distance = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return distance <= self.tolerance

    def compute(self) -> dict[str, float]:
        """All scores from 0 to 1, by name.

        `iou/<class>`, `f1/<class>`, `precision/<class>` and `recall/<class>` for each class, `f1_2px/<class>`
        (and `precision_2px`, `recall_2px`) for each class but the background, then the means `mIoU` and
        `mF1`. Foreground comes before background. A class that is neither in the truth nor predicted has no
        score and is left out of the means; a ratio whose denominator is empty is 0.
        """
        hits = np.diag(self._confusion)
        true, predicted = self._confusion.sum(axis=1), self._confusion.sum(axis=0)
        scores: dict[str, float] = {}
        suffix = f"_{self.tolerance:g}px"
        for index in [*range(1, len(self.classes)), 0]:
            if true[index] + predicted[index] == 0:
                continue
            name = self.classes[index]
            scores[f"iou/{name}"] = _ratio(hits[index], true[index] + predicted[index] - hits[index])
            scores[f"f1/{name}"] = _ratio(2 * hits[index], true[index] + predicted[index])
            scores[f"precision/{name}"] = _ratio(hits[index], predicted[index])
            scores[f"recall/{name}"] = _ratio(hits[index], true[index])
            if index > 0:
                precision = _ratio(self._near_truth[index], predicted[index])
                recall = _ratio(self._near_prediction[index], true[index])
                scores[f"f1{suffix}/{name}"] = _ratio(2 * precision * recall, precision + recall)
                scores[f"precision{suffix}/{name}"] = precision
                scores[f"recall{suffix}/{name}"] = recall
        for mean, part in (("mIoU", "iou/"), ("mF1", "f1/")):
            values = [value for name, value in scores.items() if name.startswith(part)]
            scores[mean] = float(np.mean(values)) if values else 0.0
        return scores

    def main_score(self) -> float:
        """The score by which checkpoints are compared: the IoU of the foreground when there is one
        foreground class (the background's says little about a thin one), else mIoU."""
        return self.compute().get(f"iou/{self.classes[1]}" if len(self.classes) == 2 else "mIoU", 0.0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
