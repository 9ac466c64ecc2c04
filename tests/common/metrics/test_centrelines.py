import time

import cv2
import numpy as np
import pytest
from skimage.morphology import medial_axis, skeletonize

from common.metrics.centrelines import centreline_matches, skeleton, thickness, thin_radius


def crack(seed, size=(120, 160), width=5):
    """A crooked line across the photo."""
    rng = np.random.default_rng(seed)
    columns = np.linspace(5, size[1] - 6, 9).astype(int)
    rows = rng.integers(20, size[0] - 20, 9)
    mask = np.zeros(size, np.uint8)
    cv2.polylines(mask, [np.stack([columns, rows], axis=1).astype(np.int32)], False, 1, width)
    return mask


def test_skeleton_is_that_of_the_whole_photo():
    for seed, width in enumerate((1, 2, 5, 9)):
        mask = crack(seed, width=width)
        mask[:3] = 1
        assert np.array_equal(skeleton(mask, 16.0), skeletonize(mask))
    assert not skeleton(np.zeros((4, 5), np.uint8), 16.0).any()


def test_counts_are_those_of_the_published_definition():
    true, predicted = crack(0), crack(0, width=3)
    predicted[:, 70:90] = 0
    predicted |= crack(1, width=1)
    true_line, predicted_line = skeletonize(true), skeletonize(predicted)
    expected = [
        (predicted_line & (true > 0)).sum(),
        predicted_line.sum(),
        (true_line & (predicted > 0)).sum(),
        true_line.sum(),
    ]
    assert centreline_matches(predicted, true, 16.0) == expected


def test_prediction_over_the_whole_photo_takes_no_longer_for_being_thick():
    small = np.ones((200, 200), np.uint8)
    small[::97, ::89] = 0
    framed = medial_axis(np.pad(small, 1), rng=0)[1:-1, 1:-1]
    assert np.array_equal(skeleton(small, 16.0), framed), "the photo's edge is a border too"
    whole = np.ones((512, 512), np.uint8)
    before = time.thread_time()
    skeleton(whole, 16.0)
    assert time.thread_time() - before < 5


@pytest.mark.parametrize(("width", "radius"), [(1, 1), (3, 2), (21, 11)])
def test_thickness_is_half_the_width_also_at_the_photos_edge(width, radius):
    mask = np.zeros((60, 200), np.uint8)
    mask[20 : 20 + width] = 1
    assert thickness(mask) == pytest.approx(radius, rel=0.06)
    mask = np.zeros((60, 200), np.uint8)
    mask[:width] = 1
    assert thickness(mask) == pytest.approx(radius, rel=0.06)
    assert thickness(np.zeros((5, 5), np.uint8)) == 0


def test_thin_is_relative_to_the_photo():
    assert thin_radius((320, 480)) == 16
    assert thin_radius((4000, 3000)) == 3000 / 32
