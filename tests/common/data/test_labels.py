"""Labels at another size: what is thin survives, what is wide keeps its area, and 'nearest' is the reference's."""

import cv2
import numpy as np
import pytest

from common.data.labels import count_parts, present, resize_labels, summed_parts
from common.hrda.pixels import IGNORE_LABEL

LARGE, SMALL = (1500, 2000), (240, 320)


def lines(width: float) -> np.ndarray:
    """42 separate straight lines at as many angles, `width` pixels wide, of class 1: one in each cell of a grid."""
    side = 240
    mask = np.zeros(LARGE, np.uint8)
    columns, rows = np.meshgrid(np.arange(side) - side / 2, np.arange(side) - side / 2)
    for number in range(42):
        angle, (row, column) = np.pi * number / 42, divmod(number, 7)
        across = np.abs(columns * np.sin(angle) - rows * np.cos(angle) + 0.3 * number)
        along = np.abs(columns * np.cos(angle) + rows * np.sin(angle))
        place = np.s_[row * 249 : row * 249 + side, column * 285 : column * 285 + side]
        mask[place] = (across < width / 2) & (along < 100)
    return mask


@pytest.mark.parametrize("width", [1, 1.5, 2, 3])
def test_every_thin_line_survives_in_one_piece(width):
    mask = lines(width)
    small = resize_labels(mask, SMALL)
    assert count_parts(mask, small) == {1: (42, 42)}
    assert cv2.connectedComponents(small)[0] - 1 == 42
    assert small.sum() * 6.25 / (42 * 200) < 1.1, "nearly all of it one pixel wide"
    broken = cv2.connectedComponents(resize_labels(mask, SMALL, "nearest"))[0] - 1
    assert broken > 3 * 42, "which the nearest pixels leave as dots"


def test_what_is_wide_keeps_its_area_and_its_border():
    mask = np.zeros(LARGE, np.uint8)
    cv2.circle(mask, (900, 700), 400, 1, -1)
    mask[:, 1500:] = 2
    small = resize_labels(mask, SMALL)
    nearest = resize_labels(mask, SMALL, "nearest")
    assert (small == 2).sum() == (nearest == 2).sum()
    assert abs(int((small == 1).sum()) / int((nearest == 1).sum()) - 1) < 0.005
    assert (small != nearest).mean() < 0.003


def test_thin_class_on_a_wide_one_survives_and_what_does_not_count_stays():
    mask = np.full(LARGE, 2, np.uint8)
    mask[:, 700:702] = 1
    mask[800:] = IGNORE_LABEL
    small = resize_labels(mask, SMALL)
    assert (small[:128].max(axis=1) == 2).all() and ((small[:127] == 1).sum(axis=1) >= 1).all()
    assert (small[:127] == 1).sum() <= 2 * 127
    assert (small[128:] == IGNORE_LABEL).all()


def test_enlarging_and_nearest_pick_single_pixels():
    mask = np.array([[0, 200], [3, IGNORE_LABEL]], np.uint8)
    assert set(np.unique(resize_labels(mask, (9, 11)))) == {0, 3, 200, IGNORE_LABEL}
    noise = np.random.default_rng(0).integers(0, 5, (90, 120), np.uint8)
    picked = resize_labels(noise, (30, 40), "nearest")
    assert np.array_equal(picked, noise[1::3, 1::3])
    assert resize_labels(noise, (90, 120)) is noise


def test_parts_are_counted_by_class_and_added_up():
    mask = np.zeros((40, 40), np.uint8)
    mask[2:4, 2:30], mask[20:22, 2:30], mask[30:, 30:], mask[10, 10] = 1, 1, 2, IGNORE_LABEL
    small = np.zeros((20, 20), np.uint8)
    small[1, 4] = 1
    found = count_parts(mask, small)
    assert found == {1: (1, 2), 2: (0, 1)}
    assert summed_parts([found, {2: (1, 1)}, {}]) == {1: (1, 2), 2: (1, 2)}
    assert present(mask) == [0, 1, 2, IGNORE_LABEL]
