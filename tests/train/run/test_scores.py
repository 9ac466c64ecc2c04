import numpy as np

from common.metrics import SegmentationMetrics
from common.metrics.segmentation import MEANS
from train.scores import SHOWN, THIN, shown


def test_every_score_that_is_shown_exists():
    truth = np.eye(30, dtype=np.uint8)
    metrics = SegmentationMetrics(("__bg__", "crack"))
    metrics.update(truth, truth, np.stack([1.0 - truth, truth]))
    scores = metrics.compute()
    assert {f"{score}/crack" for score in SHOWN} <= set(scores)
    assert set(THIN) <= set(MEANS)


def test_means_and_chosen_scores_are_shown_and_the_rest_is_not():
    scores = {"mIoU": 0.5, "iou/road/wet": 0.25, "precision_4px/crack": 1.0, "best_threshold/crack": 0.3}
    assert list(shown(scores)) == ["mIoU", "iou/road/wet", "best_threshold/crack"]
