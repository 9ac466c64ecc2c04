"""The sandbox's own shift between the coordinate systems must be the SDK's."""

import copy

import pytest
from supervisely.annotation.annotation import Annotation

from sandbox.coordinates import bounds, to_pixel, to_subpixel

SIZE = (32, 24)
TRIANGLE, HOLE = [[0, 0], [31, 0], [31, 23]], [[3, 3], [5, 3], [5, 9]]
LABELS = [
    {"geometryType": "polygon", "points": {"exterior": TRIANGLE, "interior": [HOLE]}},
    {"geometryType": "rectangle", "points": {"exterior": [[31, 23], [0, 2]], "interior": []}},
    {"geometryType": "line", "points": {"exterior": [[4, 5], [6, 7]], "interior": []}},
    {"geometryType": "bitmap", "bitmap": {"data": "x", "origin": [3, 4]}},
    {"geometryType": "multipolygon", "parts": [{"exterior": HOLE, "interior": [TRIANGLE]}]},
    {"geometryType": "graph", "nodes": {"a": {"loc": [7, 8]}}},
]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label["geometryType"])
def test_shift_is_the_one_of_the_sdk_both_ways(label):
    whole = {"size": {"width": SIZE[0], "height": SIZE[1]}, "objects": [copy.deepcopy(label)]}
    ours = copy.deepcopy(label)
    to_subpixel(ours, ours["geometryType"])
    shifted = Annotation._to_subpixel_coordinate_system_json(whole)
    assert ours == shifted["objects"][0]
    to_pixel(ours, ours["geometryType"], SIZE)
    assert ours == Annotation._to_pixel_coordinate_system_json(shifted)["objects"][0]


def test_bounds_cover_all_points():
    assert bounds(LABELS[0]) == [0, 0, 23, 31]
    assert bounds(LABELS[2]) == [5, 4, 7, 6]
    assert bounds(LABELS[3]) is None
