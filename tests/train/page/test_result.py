"""What the result card says of the best checkpoint."""

import pytest

from train.page.result import describe


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({}, "last.pth. It was not measured."),
        ({"mIoU": 0.5}, "last.pth. mIoU 50.0%."),
        ({"mIoU": 0.5, "iou/crack": 0.25, "f1_2px/crack": 0.9}, "last.pth. mIoU 50.0%. IoU: crack 25.0%."),
    ],
)
def test_result_says_what_was_measured(metrics: dict[str, float], sentence: str):
    assert describe("last.pth", metrics) == sentence


def test_many_classes_are_counted_instead_of_listed():
    metrics = {"mIoU": 0.5} | {f"iou/class {number}": 0.5 for number in range(12)}
    assert describe("best.pth", metrics).endswith("class 9 50.0% and 2 more.")
