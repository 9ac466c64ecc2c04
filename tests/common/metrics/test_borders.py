import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries

from common.metrics.borders import border, border_matches, disk, region_matches

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def places(mask):
    return set(zip(*np.nonzero(mask), strict=True))


def plain_counts(pixels, partners, unknown, tolerance):
    """Found and judged, pixel by pixel."""
    found = judged = 0
    for pixel in pixels:
        if any(math.dist(pixel, partner) <= tolerance for partner in partners):
            found, judged = found + 1, judged + 1
        elif not any(math.dist(pixel, place) <= tolerance for place in unknown):
            judged += 1
    return [found, judged]


def plain_border(region, ignored):
    """Places of the border, and of where it may lie besides."""
    inside, hidden = places(region), places(ignored)
    known, possible = set(), set(hidden)
    for row, column in inside:
        around = {(row + down, column + right) for down, right in NEIGHBOURS}
        around = {(r, c) for r, c in around if 0 <= r < region.shape[0] and 0 <= c < region.shape[1]}
        if around - inside - hidden:
            known.add((row, column))
        if around & hidden:
            possible.add((row, column))
    return known, possible


def drawn(seed, size=(9, 11), ignored_share=0.1):
    """Two regions that lie about the same place, and ignored pixels."""
    rng = np.random.default_rng(seed)
    true = np.zeros(size, np.uint8)
    row, column = rng.integers(1, 5, 2)
    true[row : row + rng.integers(1, 5), column : column + rng.integers(1, 7)] = 1
    predicted = np.roll(true, rng.integers(-2, 3, 2), axis=(0, 1)) ^ (rng.random(size) < 0.05)
    ignored = (rng.random(size) < ignored_share).astype(np.uint8)
    return predicted.astype(np.uint8) & (1 - ignored), true & (1 - ignored), ignored


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 2.5, 4.0])
def test_counts_are_those_of_the_plain_definition(tolerance):
    for seed in range(25):
        predicted, true, ignored = drawn(seed)
        hidden = places(ignored)
        expected = [
            *plain_counts(places(predicted), places(true), hidden, tolerance),
            *plain_counts(places(true), places(predicted), hidden, tolerance),
        ]
        assert list(region_matches(predicted, true, ignored, tolerance)) == expected
        (predicted_border, maybe_predicted), (true_border, maybe_true) = (
            plain_border(region, ignored) for region in (predicted, true)
        )
        expected = [
            *plain_counts(predicted_border, true_border, maybe_true, tolerance),
            *plain_counts(true_border, predicted_border, maybe_predicted, tolerance),
        ]
        assert list(border_matches(predicted, true, ignored, tolerance)) == expected


@pytest.mark.parametrize("tolerance", [2.0, 4.0])
def test_counts_are_those_of_distances_and_borders_of_the_libraries(tolerance):
    rng = np.random.default_rng(0)
    blobs = rng.random((2, 60, 80)) < 0.02
    predicted, true = (distance_transform_edt(~blob) < 4 for blob in blobs)

    def expected(ours, theirs):
        near = distance_transform_edt(~theirs) <= tolerance
        return [(ours & near).sum(), ours.sum()]

    masks = predicted.astype(np.uint8), true.astype(np.uint8)
    assert list(region_matches(*masks, None, tolerance)) == [*expected(predicted, true), *expected(true, predicted)]
    borders = [find_boundaries(mask, connectivity=1, mode="inner") for mask in masks]
    assert list(border_matches(*masks, None, tolerance)) == [*expected(*borders), *expected(*borders[::-1])]


def test_pixel_next_to_ignored_ones_is_wrong_only_if_it_is_whatever_they_hide():
    tolerance = 2.0
    left_out = 0
    for seed in range(40):
        predicted, true, ignored = drawn(seed, size=(7, 8), ignored_share=0.0)
        hidden = sorted(places(np.random.default_rng(seed).random((7, 8)) < 0.1))[:5]
        for place in hidden:
            ignored[place] = 1
        predicted, true = predicted & (1 - ignored), true & (1 - ignored)
        regions, borders = (
            count(predicted, true, ignored, tolerance)[:2] for count in (region_matches, border_matches)
        )
        pixels, (edge, _) = places(predicted), plain_border(predicted, ignored)
        fewest_missed = len(pixels)
        for values in itertools.product((0, 1), repeat=len(hidden)):
            whole = true.copy()
            for place, value in zip(hidden, values, strict=True):
                whole[place] = value
            found, judged = plain_counts(pixels, places(whole), (), tolerance)
            fewest_missed = min(fewest_missed, judged - found)
            found, judged = plain_counts(edge, plain_border(whole, np.zeros_like(whole))[0], (), tolerance)
            assert borders[0] <= found
            assert borders[1] - borders[0] <= judged - found
        assert regions[1] - regions[0] == fewest_missed
        left_out += len(pixels) - regions[1]
    assert left_out > 10, "the case is met"


def test_edges_of_the_photo_and_of_what_is_ignored_are_no_borders():
    region = np.zeros((8, 8), np.uint8)
    region[:, :4] = 1
    assert border(region, None)[0].sum(axis=0).tolist() == [0, 0, 0, 8, 0, 0, 0, 0]
    ignored = np.zeros_like(region)
    ignored[:, 4:6] = 1
    known, possible = border(region, ignored)
    assert not known.any()
    assert possible.sum(axis=0).tolist() == [0, 0, 0, 8, 8, 8, 0, 0]


def test_border_that_is_hidden_by_an_ignored_seam_is_not_counted_as_missed():
    true, predicted, ignored = np.zeros((3, 20, 30), np.uint8)
    true[:, :10], predicted[:, :14], ignored[:, 10:13] = 1, 1, 1
    predicted &= 1 - ignored
    assert border_matches(predicted, true, ignored, 2.0) == [0, 0, 0, 0], "within 2 px of where the border may be"
    predicted[:, :20] = 1 - ignored[:, :20]
    assert border_matches(predicted, true, ignored, 2.0) == [0, 20, 0, 0], "too far from all of it"


@pytest.mark.parametrize(("radius", "pixels"), [(0, 1), (1, 5), (1.5, 9), (2, 13), (4, 49)])
def test_disk_holds_the_pixels_within_its_radius(radius, pixels):
    assert disk(radius).sum() == pixels
