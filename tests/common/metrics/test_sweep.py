import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from common.hrda.pixels import IGNORE_LABEL
from common.metrics import THRESHOLDS, SegmentationMetrics
from common.metrics.borders import region_matches
from common.metrics.sweep import BINS, best, counts, histogram, levels, tolerant_counts, tolerant_histogram

CLASSES = ("__bg__", "crack", "stain")


def photo(seed, size=(24, 31), share=0.1, dtype=np.float32):
    """Truth with ignored pixels, and probabilities that know something of it."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size, p=(0.8, share, 0.2 - share)).astype(np.uint8)
    logits = rng.normal(size=(3, *size)) + 1.5 * (np.arange(3)[:, None, None] == truth)
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    truth[rng.random(size) < 0.05] = IGNORE_LABEL
    return truth, probabilities.astype(dtype)


def plain_counts(truth, plane, index):
    """One pass over the pixels a threshold."""
    counted = truth != IGNORE_LABEL
    true = (truth == index) & counted
    rows = []
    for threshold in THRESHOLDS.astype(plane.dtype):
        predicted = (plane >= threshold) & counted
        rows.append([(predicted & true).sum(), predicted.sum(), true.sum()])
    return np.array(rows)


def plain_best(rows):
    """The highest F1, of equals the fewest wrong pixels, then the nearest to 0.5."""

    def rank(number):
        hits, predicted, true = rows[number]
        wrong = predicted + true - 2 * hits
        return (-2 * hits / max(predicted + true, 1), wrong, abs(THRESHOLDS[number] - 0.5))

    return min(range(len(rows)), key=rank)


def f1(row):
    return 2 * row[0] / (row[1] + row[2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_histogram_holds_the_counts_of_ninety_nine_passes(dtype):
    truth, probabilities = photo(0, dtype=dtype)
    # Values that are thresholds themselves, on which rounding would show.
    probabilities[1].flat[:99] = THRESHOLDS
    probabilities[1].flat[99:104] = (0, 1, 0.5, 0.29, 0.57)
    held = histogram(levels(probabilities[1]), (truth == 1).view(np.uint8), (truth == IGNORE_LABEL).view(np.uint8))
    assert np.array_equal(counts(held), plain_counts(truth, probabilities[1], 1))


def test_scores_are_those_of_the_plain_sweep_over_several_photos():
    metrics = SegmentationMetrics(CLASSES)
    photos = [photo(seed, share=share) for seed, share in enumerate((0.1, 0.02, 0.15, 0.0))]
    for truth, probabilities in photos:
        metrics.update(probabilities.argmax(0), truth, probabilities)
    scores = metrics.compute()
    for index, name in ((1, "crack"), (2, "stain")):
        each = [plain_counts(truth, probabilities[index], index) for truth, probabilities in photos]
        together = sum(each)
        at = plain_best(together)
        assert scores[f"ods/{name}"] == pytest.approx(f1(together[at]), abs=1e-12)
        assert scores[f"best_threshold/{name}"] == THRESHOLDS[at]
        assert scores[f"ois/{name}"] == pytest.approx(f1(sum(rows[plain_best(rows)] for rows in each)), abs=1e-12)
    assert scores["mODS"] == pytest.approx((scores["ods/crack"] + scores["ods/stain"]) / 2)
    assert not any(name.endswith("__bg__") for name in scores if name.startswith(("ods", "ois", "best")))


def test_best_scores_are_those_of_scikit_learn():
    truth, probabilities = photo(3)
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(probabilities.argmax(0), truth, probabilities)
    scores = metrics.compute()
    counted = truth != IGNORE_LABEL
    true, plane = truth[counted] == 2, probabilities[2][counted]
    by_threshold = [f1_score(true, plane >= threshold) for threshold in THRESHOLDS.astype(np.float32)]
    assert scores["ods/stain"] == pytest.approx(max(by_threshold))
    assert scores["ois/stain"] == pytest.approx(max(by_threshold)), "of one photo both are one"
    predicted = plane >= np.float32(scores["best_threshold/stain"])
    assert scores["best_iou/stain"] == pytest.approx(jaccard_score(true, predicted))


def test_perfect_separation_is_cut_in_the_middle_and_an_empty_photo_at_the_top():
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    sure = histogram(levels(np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)), truth, None)
    assert THRESHOLDS[best(counts(sure))] == 0.5
    empty = histogram(levels(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)), np.zeros_like(truth), None)
    chosen = best(counts(empty))
    assert counts(empty)[chosen].tolist() == [0, 0, 0]
    assert THRESHOLDS[chosen] == 0.5, "nothing is predicted from 0.41 on: no more is asked for than that"


def test_photo_without_the_class_lowers_the_best_over_all_photos_and_not_each_photos_own():
    metrics = SegmentationMetrics(("__bg__", "crack"))
    sure = np.array([[0.1, 0.6, 0.6]], np.float32)
    metrics.update(np.array([[0, 1, 1]]), np.array([[0, 1, 1]]), np.stack([1 - sure, sure]))
    false_alarm = np.array([[0.1, 0.1, 0.7]], np.float32)
    metrics.update(np.array([[0, 0, 1]]), np.array([[0, 0, 0]]), np.stack([1 - false_alarm, false_alarm]))
    scores = metrics.compute()
    assert scores["ods/crack"] == pytest.approx(4 / 5)
    assert scores["ois/crack"] == 1.0


def test_classes_come_one_by_one_or_as_one_array():
    truth, probabilities = photo(1)
    array, stream = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    array.update(probabilities.argmax(0), truth, probabilities)
    stream.update(probabilities.argmax(0), truth, (plane for plane in probabilities))
    assert np.array_equal(array.counts, stream.counts)


def test_values_that_are_no_probabilities_are_refused():
    truth = np.zeros((2, 2), np.uint8)
    metrics = SegmentationMetrics(("__bg__", "crack"))
    with pytest.raises(ValueError, match="softmax"):
        metrics.update(truth, truth, np.array([[[0.0, 0], [0, 0]], [[-3, 2], [0, 0]]]))
    with pytest.raises(ValueError, match=r"height and width, \(2, 2\)"):
        metrics.update(truth, truth, np.zeros((2, 2, 3)))
    for maps in (1, 3):
        with pytest.raises(ValueError, match=f"each of 2 classes, the background included. Received: {maps}"):
            metrics.update(truth, truth, np.zeros((maps, 2, 2)))
    assert not metrics.counts.any(), "a refused photo leaves nothing behind"


def test_missing_values_reach_no_threshold():
    held = histogram(levels(np.array([[np.nan, 0.5]], np.float32)), np.array([[1, 1]], np.uint8), None)
    assert held[1].nonzero()[0].tolist() == [0, 50]
    assert held.shape == (2, BINS)


def test_no_probabilities_no_sweep():
    metrics = SegmentationMetrics(("__bg__", "crack"))
    metrics.update(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))
    assert not {"ods/crack", "ois/crack", "best_iou/crack", "best_threshold/crack", "mODS"} & set(metrics.compute())


def test_tolerant_counts_are_those_of_each_threshold_by_itself():
    truth, probabilities = photo(5)
    truth[:3] = IGNORE_LABEL
    true, ignored = (truth == 1).view(np.uint8), (truth == IGNORE_LABEL).view(np.uint8)
    swept = tolerant_counts(tolerant_histogram(levels(probabilities[1]), true, ignored, 2.0))
    for row, threshold in zip(swept, THRESHOLDS.astype(np.float32), strict=True):
        predicted = (probabilities[1] >= threshold).view(np.uint8) * (1 - ignored)
        assert row.tolist() == region_matches(predicted, true, ignored, 2.0)


def test_scores_at_the_best_threshold_are_those_of_a_prediction_cut_there():
    truth, probabilities = photo(6)
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(probabilities.argmax(0), truth, probabilities)
    scores = metrics.compute()
    cut = SegmentationMetrics(CLASSES)
    cut.update((probabilities[1] >= np.float32(scores["best_threshold/crack"])).astype(np.uint8), truth)
    expected = cut.compute()
    for best_of, of in (("best_iou", "iou"), ("best_precision", "precision"), ("best_recall", "recall")):
        assert scores[f"{best_of}/crack"] == pytest.approx(expected[f"{of}/crack"])
    assert scores["best_f1_2px/crack"] == pytest.approx(expected["f1_2px/crack"])
