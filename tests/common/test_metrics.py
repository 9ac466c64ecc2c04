import math

import numpy as np
import pytest

from common.hrda.settings import IGNORE_LABEL
from common.metrics import SegmentationMetrics

CRACK = ("__bg__", "crack")


def test_scores_of_a_case_worked_out_by_hand():
    metrics = SegmentationMetrics(CRACK)
    truth = np.zeros((10, 10), np.uint8)
    truth[:, :4] = 1  # 40 pixels
    prediction = np.zeros_like(truth)
    prediction[:, 2:5] = 1  # 30 pixels, 20 of them right
    metrics.update(prediction, truth)
    scores = metrics.compute()
    assert scores["iou/crack"] == pytest.approx(20 / 50)
    assert scores["precision/crack"] == pytest.approx(20 / 30)
    assert scores["recall/crack"] == pytest.approx(20 / 40)
    assert scores["f1/crack"] == pytest.approx(40 / 70)
    assert scores["iou/__bg__"] == pytest.approx(50 / 80)
    assert scores["mIoU"] == pytest.approx((20 / 50 + 50 / 80) / 2)
    assert scores["precision_2px/crack"] == 1.0
    assert scores["recall_2px/crack"] == 1.0
    assert metrics.main_score() == scores["iou/crack"]


def test_two_classes_report_the_foreground_first():
    metrics = SegmentationMetrics(CRACK)
    metrics.update(np.array([[0, 1]]), np.array([[1, 0]]))
    assert next(iter(metrics.compute())) == "iou/crack"


@pytest.mark.parametrize(("shift", "within"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_tolerance_accepts_a_line_two_pixels_beside_and_no_further(shift, within):
    truth, prediction = np.zeros((2, 40, 40), np.uint8)
    truth[10] = 1
    prediction[10 + shift] = 1
    metrics = SegmentationMetrics(CRACK)
    metrics.update(prediction, truth)
    assert metrics.compute()["f1_2px/crack"] == within


def test_absent_class_gives_no_nan_and_no_perfect_score():
    metrics = SegmentationMetrics(("__bg__", "crack", "stain"))
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    metrics.update(np.array([[0, 0, 1, 0]], np.uint8), truth)
    scores = metrics.compute()
    assert not any("stain" in name for name in scores)
    assert scores["mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics.main_score() == scores["mIoU"]
    assert all(math.isfinite(value) for value in scores.values())


def test_class_never_predicted_scores_zero_and_stays_in_the_mean():
    metrics = SegmentationMetrics(CRACK)
    metrics.update(np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8))
    scores = metrics.compute()
    assert scores["iou/crack"] == scores["precision/crack"] == scores["f1_2px/crack"] == 0
    assert scores["mIoU"] == pytest.approx(12 / 16 / 2)


def test_ignored_pixels_count_neither_as_hit_nor_as_miss():
    truth = np.array([[1, 0, IGNORE_LABEL, IGNORE_LABEL]], np.uint8)
    metrics = SegmentationMetrics(CRACK)
    metrics.update(np.array([[1, 0, 1, 0]], np.uint8), truth)
    assert metrics.compute()["precision/crack"] == 1.0
    assert metrics.compute()["precision_2px/crack"] == 1.0


def test_counts_add_up_over_images_so_that_an_empty_photo_does_no_harm():
    together, apart = SegmentationMetrics(CRACK), SegmentationMetrics(CRACK)
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 2, (2, 8, 24), dtype=np.uint8)
    together.update(prediction, truth)
    for columns in (slice(0, 10), slice(10, 24)):
        apart.update(prediction[:, columns], truth[:, columns])
    apart.update(np.zeros((5, 5), np.uint8), np.full((5, 5), IGNORE_LABEL, np.uint8))
    assert apart.compute()["iou/crack"] == together.compute()["iou/crack"]


def test_nothing_measured_is_zero_and_not_an_error():
    metrics = SegmentationMetrics(CRACK)
    assert metrics.compute() == {"mIoU": 0.0, "mF1": 0.0}
    assert metrics.main_score() == 0.0


def test_wrong_shapes_and_indices_are_named():
    metrics = SegmentationMetrics(CRACK)
    with pytest.raises(ValueError, match="same height and width"):
        metrics.update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match="__bg__, crack"):
        metrics.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 2, np.uint8))
