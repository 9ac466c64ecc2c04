"""What the result card says of the best checkpoint."""

import pytest

from train.page.result import describe


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({}, "last.pth. It was not measured."),
        ({"mIoU": 0.5}, "last.pth. mIoU 50.0%."),
        ({"mIoU": 0.5, "iou/crack": 0.25}, "last.pth. mIoU 50.0%. IoU: crack 25.0%."),
        (
            {
                "mIoU": 0.5,
                "f1_2px/crack": 0.9,
                "cldice/crack": 0.8,
                "best_iou/crack": 0.3,
                "best_threshold/crack": 0.37,
            },
            "last.pth. mIoU 50.0%. F1 within 2 px: crack 90.0%. clDice: crack 80.0%. "
            "Best threshold: crack 0.37 (IoU 30.0%).",
        ),
    ],
)
def test_result_says_what_was_measured(metrics: dict[str, float], sentence: str):
    assert describe("last.pth", metrics) == sentence


def test_many_classes_are_counted_instead_of_listed():
    metrics = {"mIoU": 0.5} | {f"{score}/class {number}": 0.5 for score in ("iou", "cldice") for number in range(12)}
    assert describe("best.pth", metrics).endswith("class 9 50.0% and 2 more.")
