import math
import pickle

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from common.hrda.pixels import IGNORE_LABEL
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


def test_class_that_is_predicted_but_not_in_the_truth_has_no_score_and_sways_no_choice():
    """It costs the class that is there, and is no class with an IoU of 0."""
    truth = np.array([[0, 0, 0, 1, 1, 1]], np.uint8)
    classes = ("__bg__", "crack", "stain")
    fair, better = SegmentationMetrics(classes), SegmentationMetrics(classes)
    probabilities = np.full((3, *truth.shape), 1 / 3, np.float32)
    fair.update(np.array([[0, 0, 1, 1, 0, 0]], np.uint8), truth, probabilities)
    better.update(np.array([[0, 2, 0, 1, 1, 1]], np.uint8), truth, probabilities)
    scores = better.compute()
    assert not any("stain" in name for name in scores)
    assert scores["iou/__bg__"] == pytest.approx(2 / 3)
    assert scores["mIoU"] == pytest.approx((1 + 2 / 3) / 2)
    assert better.main_score() > fair.main_score()


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


def street(seed, size=(48, 64)):
    """A photo of four classes, one of them thin: truth with ignored pixels, prediction, probabilities."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    truth[rng.integers(20, 30) :] = 1
    truth[rng.integers(5, 40), :] = 2
    truth[:, rng.integers(5, 60)] = 3
    logits = rng.normal(size=(4, *size)) + 2 * (np.arange(4)[:, None, None] == truth)
    probabilities = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    truth[rng.random(size) < 0.02] = IGNORE_LABEL
    truth[:, :4] = IGNORE_LABEL
    return probabilities.argmax(0).astype(np.uint8), truth, probabilities


STREET = ("__bg__", "road", "kerb", "pole")


def test_counts_of_several_processes_add_up_to_those_of_one():
    together = SegmentationMetrics(STREET)
    ranks = [SegmentationMetrics(STREET) for _ in range(3)]
    for number in range(7):
        together.update(*street(number))
        ranks[number % 3].update(*street(number))
    summed = SegmentationMetrics(STREET)
    summed.counts[...] = sum(rank.counts for rank in ranks)
    assert summed.compute() == together.compute()
    first, *others = (pickle.loads(pickle.dumps(rank)) for rank in ranks)
    for rank in others:
        first.merge(rank)
    assert np.array_equal(first.counts, together.counts)
    assert first.compute() == together.compute()


def test_counts_of_other_classes_or_tolerances_are_not_added():
    metrics = SegmentationMetrics(CRACK)
    for other in (SegmentationMetrics(STREET), SegmentationMetrics(CRACK, tolerances=[2, 3])):
        with pytest.raises(ValueError, match="same classes and tolerances"):
            metrics.merge(other)


def test_no_score_depends_on_what_is_predicted_where_nothing_counts():
    rng = np.random.default_rng(0)
    for seed in range(5):
        prediction, truth, probabilities = street(seed)
        one, other = SegmentationMetrics(STREET), SegmentationMetrics(STREET)
        one.update(prediction, truth, probabilities)
        ignored = truth == IGNORE_LABEL
        prediction[ignored] = rng.integers(0, 4, ignored.sum())
        probabilities[:, ignored] = rng.random((4, ignored.sum()))
        other.update(prediction, truth, probabilities)
        assert np.array_equal(one.counts, other.counts)


def test_right_where_it_counts_is_perfect_whatever_is_ignored():
    rng = np.random.default_rng(0)
    for seed in range(5):
        _, truth, _ = street(seed)
        metrics = SegmentationMetrics(STREET)
        ignored = truth == IGNORE_LABEL
        metrics.update(np.where(ignored, rng.integers(0, 4, truth.shape), truth), truth)
        assert set(metrics.compute().values()) == {1.0}


def test_scores_without_tolerance_are_those_of_scikit_learn():
    metrics = SegmentationMetrics(STREET)
    photos = [street(seed) for seed in range(3)]
    for one in photos:
        metrics.update(*one)
    counted = [truth != IGNORE_LABEL for _, truth, _ in photos]
    true = np.concatenate([truth[mask] for (_, truth, _), mask in zip(photos, counted, strict=True)])
    predicted = np.concatenate([prediction[mask] for (prediction, _, _), mask in zip(photos, counted, strict=True)])
    scores = metrics.compute()
    by_name = dict(zip(("precision", "recall", "f1"), precision_recall_fscore_support(true, predicted), strict=False))
    by_name["iou"] = jaccard_score(true, predicted, average=None)
    for score, values in by_name.items():
        assert [scores[f"{score}/{name}"] for name in STREET] == pytest.approx(values.tolist())
    assert scores["mIoU"] == pytest.approx(by_name["iou"].mean())


def test_boundary_score_sees_what_the_tolerant_score_of_a_large_area_does_not():
    truth, prediction = np.zeros((2, 100, 100), np.uint8)
    truth[:50], prediction[:60] = 1, 1
    metrics = SegmentationMetrics(CRACK)
    metrics.update(prediction, truth)
    scores = metrics.compute()
    assert scores["f1_2px/crack"] > 0.9
    assert scores["boundary_f1_2px/crack"] == scores["boundary_f1_4px/crack"] == 0


def test_boundary_score_by_hand():
    truth, prediction = np.zeros((2, 40, 40), np.uint8)
    truth[:20], prediction[:23, :20], prediction[:20, 20:] = 1, 1, 1
    metrics = SegmentationMetrics(CRACK)
    metrics.update(prediction, truth)
    scores = metrics.compute()
    assert scores["boundary_f1_4px/crack"] == 1.0
    # Borders: 40 pixels of the truth in row 19; of the prediction 20 in row 19, 2 at the step, 20 in row 22. In 2 px
    # are those of row 19 and of the step, and of the truth the two columns next to the step.
    precision, recall = 22 / 42, 22 / 40
    assert scores["boundary_f1_2px/crack"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_gap_costs_centreline_score_more_than_the_pixels_it_has():
    truth, prediction = np.zeros((2, 60, 100), np.uint8)
    truth[25:34] = 1
    prediction[28:31, :50], prediction[28:31, 60:] = 1, 1
    metrics = SegmentationMetrics(CRACK)
    metrics.update(prediction, truth)
    scores = metrics.compute()
    assert scores["iou/crack"] == pytest.approx(0.3)
    assert scores["cldice/crack"] == pytest.approx(2 * 0.9 / 1.9, abs=0.01), "thinner is no fault, the gap is"


def test_centreline_score_is_left_to_classes_that_are_thin():
    truth = np.zeros((200, 200), np.uint8)
    truth[:100], truth[150:153] = 1, 2
    metrics = SegmentationMetrics(("__bg__", "road", "kerb"))
    metrics.update(truth, truth)
    scores = metrics.compute()
    assert "cldice/road" not in scores
    assert scores["cldice/kerb"] == scores["mclDice"] == 1.0


def test_one_photo_with_a_thick_place_does_not_take_the_centreline_score_away():
    thin, thick = np.zeros((2, 200, 200), np.uint8)
    thin[50:53], thick[:100] = 1, 1
    metrics = SegmentationMetrics(CRACK)
    for truth in (thin, thick, thin):
        metrics.update(truth, truth)
    assert metrics.compute()["cldice/crack"] == 1.0
