import numpy as np
import pytest
import scipy.stats

from common.metrics import SegmentationMetrics
from common.metrics.photos import PhotoTally

CLASSES = ("__bg__", "crack")


def photo(seed, skill=1.5, size=(32, 40)):
    """Truth with a line, and probabilities that know something of it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    truth[rng.integers(4, 28) :, 8 + seed % 20] = 1
    truth[:, :2] = 255
    logits = np.random.default_rng(1000 + seed).normal(size=size) + skill * (truth == 1)
    crack = 1 / (1 + np.exp(1 - logits))
    return truth, np.stack([1 - crack, crack]).astype(np.float32)


def tally(count, skill=1.5):
    made = PhotoTally(CLASSES)
    for seed in range(count):
        truth, probabilities = photo(seed, skill)
        made.update(f"{seed}.jpg", seed, probabilities.argmax(0), truth, probabilities)
    return made


def test_scores_of_the_table_are_those_of_the_metrics():
    made = tally(6)
    scores = made.metrics.compute()
    photos = made.photos()
    assert photos.thresholds[1] == scores["best_threshold/crack"]
    for of_table, name in (("iou", "best_iou"), ("precision", "best_precision"), ("recall", "best_recall")):
        assert photos.scores_of("crack")[of_table].value == pytest.approx(scores[f"{name}/crack"])
    assert photos.scores_of("crack")["f1_2px"].value == pytest.approx(scores["best_f1_2px/crack"])
    assert photos.foreground() == photos.scores_of("crack"), "of one class the mean is its own score"
    assert photos.mean_iou().value == pytest.approx(scores["mIoU"])


def test_interval_is_that_of_scipys_bootstrap_over_photos():
    photos = tally(12).photos()
    named = photos.counts[:, 1, :3].astype(float)

    def iou(chosen, axis=-1):
        hits, predicted, true = np.moveaxis(named[chosen].sum(axis=-2), -1, 0)
        return hits / (predicted + true - hits)

    expected = scipy.stats.bootstrap(
        (np.arange(12),), lambda chosen, axis: iou(chosen), n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    score = photos.scores_of("crack")["iou"]
    width = expected.high - expected.low
    assert (score.low, score.high) == pytest.approx(tuple(expected), abs=0.1 * width)
    assert score.low < score.value < score.high


def test_difference_is_drawn_photo_by_photo_and_is_surer_than_its_parts():
    better, worse = tally(12, 2.0).photos(), tally(12, 1.0).photos()
    gain = better.difference(worse)
    ours, theirs = better.foreground()["iou"], worse.foreground()["iou"]
    assert gain.value == pytest.approx(ours.value - theirs.value)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.high - gain.low < (ours.high - ours.low) + (theirs.high - theirs.low)
    assert better.difference(better).value == 0


def test_other_photos_are_not_compared():
    with pytest.raises(ValueError, match="same validation photos"):
        tally(6).photos().difference(tally(7).photos())


def test_few_photos_have_no_interval():
    score = tally(4).photos().scores_of("crack")["iou"]
    assert score.value > 0
    assert score.low is None and score.high is None


def test_worst_photos_are_those_with_the_most_wrong_pixels_beyond_two_pixels():
    made = PhotoTally(CLASSES)
    truth = np.zeros((20, 40), np.uint8)
    truth[10] = 1
    for name, row, length in (("two beside", 12, 40), ("half missing", 10, 20), ("elsewhere", 2, 40)):
        crack = np.full(truth.shape, 0.1, np.float32)
        crack[row, :length] = 0.9
        made.update(name, 0, (crack > 0.5).astype(np.uint8), truth, np.stack([1 - crack, crack]))
    photos = made.photos()
    assert [photos.names[place] for place in photos.worst(6)] == ["elsewhere", "half missing"]


def test_counts_of_photos_add_up_to_those_of_all():
    together = SegmentationMetrics(CLASSES)
    for seed in range(3):
        truth, probabilities = photo(seed)
        together.update(probabilities.argmax(0), truth, probabilities)
    assert np.array_equal(tally(3).metrics.counts, together.counts)
