"""Lengths and widths, on lines that were drawn with known ones."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import rasterio
from PIL import Image

from common.data.images import ImageError
from serve.batch.outputs.format import OutputOptions
from serve.batch.outputs.measures import CLASSES, COMPONENTS, measure
from serve.batch.photos import read_photo
from tests.serve.batch.outputs.drawn import arc, arm, bar, result_of

MIDDLE = (150.3, 149.8)


def crack(labels: np.ndarray, **options) -> dict:
    """The measures of the only crack in `labels`."""
    found = measure(result_of(labels), OutputOptions(**options))
    json.dumps(asdict(found))  # Plain numbers, whatever they were computed with.
    [component] = [row for row in found.components if row["class"] == "crack"]
    return component


def assert_width(found: dict, width: float) -> None:
    assert found["mean_width_px"] == pytest.approx(width, abs=0.5)
    # Of pixels no line is equally wide everywhere.
    assert found["p95_width_px"] == pytest.approx(width, abs=0.75)
    assert found["max_width_px"] == pytest.approx(width, abs=1.1)
    assert found["mean_width_px"] <= found["p95_width_px"] <= found["max_width_px"]


@pytest.mark.parametrize("width", [1.5, 2, 3, 4, 5, 7, 8, 12, 20])
@pytest.mark.parametrize("degrees", [0, 2, 13, 26.57, 45, 60, 90, 135])
def test_straight_line(degrees, width):
    labels = bar(300, MIDDLE, degrees, 200, width)
    found = crack(labels)
    assert found["length_px"] == pytest.approx(200, rel=0.03)
    assert found["branches"] == 1
    # At 0° and 45° whole rows of pixels are in or out: what is drawn may be wider or narrower than what was asked for.
    assert_width(found, labels.sum() / 200)


@pytest.mark.parametrize("width", [1.5, 2, 3, 5, 8])
@pytest.mark.parametrize("radius", [30, 60, 120])
def test_curved_line(radius, width):
    found = crack(arc(300, MIDDLE, radius, 2, width))
    assert found["length_px"] == pytest.approx(4 * radius, rel=0.03)
    assert found["branches"] == 1
    assert_width(found, width)


@pytest.mark.parametrize("width", [1.5, 3, 5, 8])
def test_closed_line(width):
    found = crack(arc(300, MIDDLE, 60, 4, width))
    assert found["length_px"] == pytest.approx(120 * np.pi, rel=0.03)
    assert found["branches"] == 1
    assert_width(found, width)


@pytest.mark.parametrize("width", [1.5, 3, 5, 8])
@pytest.mark.parametrize("angles", [(10, 130, 250), (0, 90, 180), (20, 110, 200, 290)])
def test_branching_line(angles, width):
    labels = np.any([arm(300, MIDDLE, degrees, 100, width) for degrees in angles], axis=0)
    found = crack(labels)
    assert found["length_px"] == pytest.approx(100 * len(angles), rel=0.03)
    assert found["branches"] == len(angles)
    assert_width(found, width)


def test_rough_border_makes_no_branches():
    labels = bar(300, MIDDLE, 20, 240, 9)
    rng = np.random.default_rng(0)
    rough = labels & ~(rng.random(labels.shape) < 0.3)
    labels = rough | bar(300, MIDDLE, 20, 240, 7)
    found = crack(labels)
    assert found["branches"] == 1
    assert found["length_px"] == pytest.approx(240, rel=0.03)
    assert found["mean_width_px"] == pytest.approx(8, abs=1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (1, 3), (2, 2), (5, 5), (3, 20), (40, 40), (300, 300)])
def test_blots_are_as_long_as_they_are_wide_and_never_shorter(rows, columns):
    labels = np.zeros((300, 300), bool)
    labels[:rows, :columns] = True
    found = crack(labels)
    assert found["length_px"] == pytest.approx(max(rows, columns), rel=0.03, abs=1)
    assert found["mean_width_px"] == pytest.approx(min(rows, columns), rel=0.03, abs=1)


def test_crack_that_leaves_the_photo_ends_at_its_edge():
    labels = np.zeros((80, 120), bool)
    labels[40:43] = True
    found = crack(labels)
    assert found["length_px"] == pytest.approx(120, rel=0.01)
    assert found["mean_width_px"] == pytest.approx(3, abs=0.05)


def test_noise_is_measured_whatever_its_form():
    noise = np.random.default_rng(1).random((60, 60)) < 0.45
    found = measure(result_of(noise), OutputOptions())
    assert sum(row["area_px"] for row in found.components) == noise.sum()
    assert all(row["length_px"] >= row["max_width_px"] > 0 and row["branches"] >= 1 for row in found.components)


def test_rows_tell_place_share_and_confidence_and_sum_up():
    labels = np.zeros((100, 200), np.uint8)
    labels[10:13, 20:80], labels[50:90, 100:104] = 1, 1
    confidences = np.full(labels.shape, 0.25, np.float32)
    confidences[50:90, 100:104] = 0.75
    found = measure(result_of(labels, confidences=confidences), OutputOptions(mm_per_pixel=0.5))
    first, second = found.components
    whole, absent = found.classes
    assert list(COMPONENTS) == list(first) or set(COMPONENTS) == set(first)
    assert set(CLASSES) == set(whole) == set(absent)
    assert [first[name] for name in ("photo", "class", "component")] == ["night/a.jpg", "crack", 1]
    assert [first[name] for name in ("left", "top", "box_width", "box_height")] == [20, 10, 60, 3]
    assert (first["area_px"], first["area_percent"], first["confidence"]) == (180, 0.9, 0.25)
    assert first["length_px"] == pytest.approx(60, abs=0.5)
    assert first["length_mm"] == pytest.approx(first["length_px"] / 2, abs=0.01)
    assert first["mean_width_mm"] == pytest.approx(1.5, abs=0.01)
    assert (first["area_mm2"], first["mm_per_pixel"]) == (45, 0.5)
    assert (whole["components"], whole["area_px"], whole["branches"]) == (2, 340, 2)
    assert whole["length_px"] == pytest.approx(first["length_px"] + second["length_px"], abs=0.02)
    assert whole["confidence"] == pytest.approx((180 * 0.25 + 160 * 0.75) / 340, abs=1e-4)
    assert (whole["height_px"], whole["width_px"]) == (100, 200)
    assert (absent["class"], absent["components"], absent["area_px"], absent["length_px"]) == ("stain", 0, 0, 0)
    assert absent["mean_width_px"] is absent["confidence"] is None


def test_place_is_read_of_a_geotiff_and_of_nothing_else(tmp_path, recwarn):
    path, plain, broken = tmp_path / "ortho.TIF", tmp_path / "plain.tif", tmp_path / "broken.tif"
    pixels = np.zeros((3, 20, 30), np.uint8)
    shape = {"driver": "GTiff", "width": 30, "height": 20, "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(0.002, 0, 400000, 0, -0.002, 5700000)
    with rasterio.open(path, "w", **shape, transform=transform, crs="EPSG:32633") as file:
        file.write(pixels)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(plain)
    broken.write_bytes(b"II*\0no more")
    placed, flat = (read_photo(each, each.name, each.stem) for each in (path, plain))
    assert (placed.transform, placed.crs) == ((0.002, 0, 400000, 0, -0.002, 5700000), "EPSG:32633")
    assert flat.transform is flat.crs is None
    with pytest.raises(ImageError, match=r"broken\.tif"):
        read_photo(broken, "broken.tif", "broken")
    assert not [each for each in recwarn if "georeference" in str(each.message).lower()]


@pytest.mark.parametrize(
    ("transform", "crs", "scale"),
    [
        ((0.002, 0, 400000, 0, -0.002, 5700000), "EPSG:32633", 2),
        ((0.0012, 0.0016, 0, 0.0016, -0.0012, 0), "EPSG:32633", 2),
        ((0.01, 0, 0, 0, -0.01, 0), "EPSG:2263", 3.048006),
        ((1e-8, 0, 15, 0, -1e-8, 50), "EPSG:4326", None),
        ((0.002, 0, 0, 0, -0.004, 0), "EPSG:32633", None),
        (None, None, None),
    ],
    ids=["metres", "turned", "feet", "degrees", "no squares", "no place"],
)
def test_scale_is_that_of_a_georeferenced_photo(transform, crs, scale):
    labels = bar(60, (30, 30), 0, 40, 3)
    [row] = measure(result_of(labels, transform=transform, crs=crs), OutputOptions()).components
    if scale is None:
        assert row["mm_per_pixel"] is row["length_mm"] is row["area_mm2"] is None
    else:
        assert row["mm_per_pixel"] == pytest.approx(scale, rel=1e-6)
        assert row["length_mm"] == pytest.approx(scale * row["length_px"], rel=1e-3)
    given = measure(result_of(labels, transform=transform, crs=crs), OutputOptions(mm_per_pixel=7)).components
    assert given[0]["mm_per_pixel"] == 7
