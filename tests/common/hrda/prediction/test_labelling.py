"""Labels, confidences and small areas, against what is plain to see."""

from __future__ import annotations

import numpy as np
import torch

from common.hrda.prediction.labelling import (
    LabelRows,
    LabelRule,
    ProbabilityRows,
    label,
    mean_confidences,
    remove_small_components,
)


def rows_into(sink: LabelRows | ProbabilityRows, logits: torch.Tensor, step: int = 3) -> None:
    for top in range(0, logits.shape[1], step):
        sink(top, logits[:, top : top + step])


def test_rows_of_any_height_give_the_labels_of_the_whole() -> None:
    logits = torch.randn(4, 10, 7)
    plain, careful = (LabelRows((10, 7), LabelRule(), confidence=confidence) for confidence in (False, True))
    rows_into(plain, logits)
    rows_into(careful, logits)
    np.testing.assert_array_equal(plain.labels, logits.argmax(0).numpy())
    np.testing.assert_array_equal(careful.labels, plain.labels)
    np.testing.assert_allclose(careful.confidence, logits.softmax(0).amax(0).numpy(), atol=1e-3)
    assert plain.confidence is None


def test_a_threshold_lets_a_class_win_before_it_is_the_most_probable() -> None:
    probabilities = torch.tensor([[0.60, 0.35, 0.05], [0.72, 0.28, 0.00], [0.10, 0.20, 0.70], [0.35, 0.40, 0.25]]).T
    assert label(probabilities, {}).tolist() == [0, 0, 2, 1]
    assert label(probabilities, {1: 0.3}).tolist() == [1, 0, 2, 1]
    # A class below its threshold is no choice at all, however probable.
    assert label(probabilities, {1: 0.45, 2: 0.9}).tolist() == [0, 0, 0, 0]
    assert label(probabilities, {1: 0.2, 2: 0.2}).tolist() == [1, 1, 2, 1]


def test_small_areas_become_background_and_touching_corners_count_as_one_area() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[0, 0] = labels[1, 1] = labels[2, 2] = 1
    labels[5, 0:2] = 1
    labels[0, 6:8] = 2
    remove_small_components(labels, 3, 3)
    assert labels.sum() == 3
    assert labels[0, 0] == labels[1, 1] == labels[2, 2] == 1


def test_mean_confidence_counts_the_pixels_of_a_class_only() -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    confidence = np.array([[0.9, 0.6], [0.8, 0.5]], np.float16)
    background, crack, other = mean_confidences(labels, confidence, 3)
    np.testing.assert_allclose((background, crack), (0.7, 0.7), atol=1e-3)
    assert other is None


def test_probabilities_are_kept_in_the_dtype_that_was_asked_for() -> None:
    logits = torch.randn(3, 5, 4)
    sink = ProbabilityRows(3, (5, 4), np.float16)
    rows_into(sink, logits, 2)
    assert sink.probabilities.dtype == np.float16
    np.testing.assert_allclose(sink.probabilities, logits.softmax(0).numpy(), atol=1e-3)
