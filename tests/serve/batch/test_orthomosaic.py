"""Orthomosaics: the labels of a photo of the same pixels, in files that other tools read, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import torch
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from rio_cogeo import cog_validate

from benchmarks.orthomosaic import stub_worker
from common.hrda.checks import SettingsError
from common.hrda.pixels import IMAGENET_MEAN
from serve.__main__ import main
from serve.batch.orthomosaic import EMPTY, predict_orthomosaic, require_fitting
from serve.batch.polygons import write_polygons
from serve.batch.tiff import RasterOptions, is_orthomosaic, raster_options
from serve.batch.worker import Worker
from serve.errors import RequestError
from serve.model.settings import read_settings
from tests.tiny import tiny_checkpoint, tiny_encoder

ROOT = Path(__file__).resolve().parents[3]
SIZE = (215, 310)
PLACE = from_origin(500_000, 5_000_000, 0.01, 0.01)
FILL = np.rint(IMAGENET_MEAN).astype(np.uint8)
OWN = {"input_scale": "original", "stride": 48, "thresholds": {"crack": 0.45, "patch": 0.17}}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tiny_encoder():
        yield Worker.from_file(tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.pth"), "cpu", settings=OWN)
    torch.set_num_threads(threads)


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def picture(size=SIZE, seed=0, bands=3):
    """Patches of colours, H×W×bands uint8, in which the drawn network finds two classes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size[0] // 10, size[1] // 10, bands), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, bands)


def write(path, pixels, crs="EPSG:32633", transform=PLACE, **profile):
    """A GeoTIFF of pixels H×W×bands."""
    height, width, bands = pixels.shape
    profile = {"crs": crs, "transform": transform, "photometric": "RGB" if bands >= 3 else "MINISBLACK"} | profile
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=pixels.dtype, **profile
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def photo_labels(worker, pixels):
    [labels] = worker.labels([np.ascontiguousarray(pixels)])
    return labels


def quiet(_):
    """Nobody reads along."""


# --------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("settings", "profile"),
    [
        ({}, {"tiled": True, "blockxsize": 64, "blockysize": 32}),
        ({"flip": True, "batch_size": 3}, {"blockysize": 1, "interleave": "band"}),
        ({"blending": "gaussian", "detail_overlap": False}, {"compress": "deflate", "bigtiff": "yes"}),
        ({"thresholds": {"crack": 0.4}, "min_component": 30}, {"blockysize": 7}),
        ({"classes": ["patch"], "thresholds": {"crack": 0.45, "patch": 0.15}, "min_component": 4}, {}),
    ],
    ids=["tiles", "mirrored", "blended", "thresholds", "classes"],
)
def test_labels_are_those_of_the_same_pixels_as_one_photo(worker, tmp_path, output, settings, profile):
    own = Worker(worker.deployment, OWN | settings)
    pixels = picture()
    source = write(tmp_path / "mosaic.tif", pixels, **profile)
    found = read(predict_orthomosaic(own, source, output, say=quiet).labels)
    expected = photo_labels(own, pixels)
    expected[np.isin(expected, own.unwanted)] = 0
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1, "labels of one class alone would show nothing"


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (64, 64), (129, 97)])
def test_labels_are_those_of_a_photo_whatever_the_shape(worker, tmp_path, output, size):
    pixels = picture(size)
    source = write(tmp_path / "mosaic.tif", pixels, crs=None, transform=None)
    assert np.array_equal(
        read(predict_orthomosaic(worker, source, output, say=quiet).labels), photo_labels(worker, pixels)
    )


# ---------------------------------------------------------------------------------------------------------- files
def test_the_labels_are_a_cloud_optimised_geotiff_in_the_same_place(worker, tmp_path, output):
    transform = PLACE @ Affine.rotation(10)
    source = write(tmp_path / "mosaic.tif", picture((530, 610)), transform=transform)
    found = predict_orthomosaic(worker, source, output, say=quiet)
    is_valid, errors, _ = cog_validate(found.labels, strict=True)
    assert is_valid, errors
    with rasterio.open(found.labels) as file:
        assert (file.crs, file.nodata, file.dtypes) == ("EPSG:32633", EMPTY, ("uint8",))
        assert file.transform.almost_equals(transform, 1e-9)
        assert file.colormap(1)[1] == (220, 20, 60, 255)
        assert json.loads(file.tags()["CLASSES"]) == ["__bg__", "crack", "patch"]
        assert file.overviews(1)
    assert sorted(path.name for path in output.iterdir()) == [
        "mosaic.geojson",
        "mosaic.labels.tif",
        "mosaic.local.geojson",
    ]


def test_polygons_are_in_the_mosaics_coordinates_and_in_wgs84(worker, tmp_path, output):
    source = write(tmp_path / "mosaic.tif", picture())
    found = predict_orthomosaic(worker, source, output, say=quiet)
    world, local = (geopandas.read_file(path) for path in found.polygons)
    assert (world.crs.to_epsg(), local.crs.to_epsg()) == (4326, 32633)
    labels = read(found.labels)
    counts = {name: int((labels == index).sum()) for index, name in ((1, "crack"), (2, "patch"))}
    assert local.groupby("class")["area_px"].sum().to_dict() == {name: n for name, n in counts.items() if n}
    assert world.is_valid.all() and local.is_valid.all()
    back = world.to_crs(32633)
    assert back.geometry.hausdorff_distance(local.geometry, align=True).max() < 1e-3, "a millimetre"
    content = json.loads(found.polygons[0].read_text())
    assert "crs" not in content, "RFC 7946 has none"
    rings = [part.exterior for shape in world.geometry for part in getattr(shape, "geoms", [shape])]
    assert all(ring.is_ccw for ring in rings)


def test_polygons_without_tolerance_cover_the_pixels_of_the_labels(worker, tmp_path, output):
    source = write(tmp_path / "mosaic.tif", picture(), crs=None, transform=None)
    found = predict_orthomosaic(worker, source, output, say=quiet)
    assert [path.name for path in found.polygons] == ["mosaic.local.geojson"], "no place on the earth is known"
    [path] = write_polygons(found.labels, tmp_path / "exact", worker.legend, 0)
    features = json.loads(path.read_text())["features"]
    values = {"crack": 1, "patch": 2}
    shapes = [(shapely.geometry.shape(one["geometry"]), values[one["properties"]["class"]]) for one in features]
    assert np.array_equal(rasterio.features.rasterize(shapes, SIZE), read(found.labels))


# --------------------------------------------------------------------------------------------------- empty pixels
def hole(size=SIZE):
    """Where a mosaic is empty: an edge wider than a window, and a spot."""
    empty = np.zeros(size, bool)
    empty[:, :140] = True
    empty[100:130, 200:220] = True
    return empty


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask"])
def test_empty_pixels_stay_empty_and_what_they_hold_changes_nothing(worker, tmp_path, output, kind):
    pixels, empty = np.maximum(picture(), 1), hole()
    source = tmp_path / "mosaic.tif"
    if kind == "nodata":
        pixels[empty] = 0
        write(source, pixels, nodata=0)
    elif kind == "alpha":
        write(source, np.dstack([pixels, np.where(empty, 0, 255).astype(np.uint8)]), alpha="yes")
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write(source, pixels)
            with rasterio.open(source, "r+") as file:
                file.write_mask(~empty)
    found = read(predict_orthomosaic(worker, source, output, say=quiet).labels)
    filled = np.where(empty[..., None], FILL, pixels).astype(np.uint8)
    assert np.array_equal(found, np.where(empty, EMPTY, photo_labels(worker, filled)))


def test_windows_without_a_pixel_do_not_go_through_the_network(tmp_path, output):
    own = stub_worker(64, stride=64)
    network, seen = own.deployment.networks["float32", False], []
    network.context_images = lambda images, pool=network.context_images: seen.append(len(images)) or pool(images)
    pixels = np.full((256, 256, 3), 200, np.uint8)
    pixels[64:, 64:] = 0
    source = write(tmp_path / "mosaic.tif", pixels, nodata=0)
    found = read(predict_orthomosaic(own, source, output, say=quiet).labels)
    assert len(seen) == 7, "four crops above, three at the left"
    assert (found[64:, 64:] == EMPTY).all() and (found[:64] == 0).all() and (found[:, :64] == 0).all()


def test_a_mosaic_without_any_pixel_is_empty(worker, tmp_path, output):
    source = write(tmp_path / "mosaic.tif", np.zeros((*SIZE, 3), np.uint8), nodata=0)
    found = predict_orthomosaic(worker, source, output, say=quiet)
    assert (read(found.labels) == EMPTY).all()
    assert json.loads(found.polygons[0].read_text())["features"] == []


# ---------------------------------------------------------------------------------------------- bands and samples
def test_of_more_bands_three_are_chosen_and_that_is_said(worker, tmp_path, output):
    pixels, said = picture(bands=5), []
    source = write(tmp_path / "mosaic.tif", pixels, photometric="MINISBLACK")
    found = read(predict_orthomosaic(worker, source, output, say=said.append).labels)
    assert np.array_equal(found, photo_labels(worker, pixels[..., :3]))
    assert "Of 5 bands these are predicted: 1, 2, 3; --bands chooses others." in said
    chosen = predict_orthomosaic(worker, source, output, raster_options("5,3,1", None), quiet)
    assert np.array_equal(read(chosen.labels), photo_labels(worker, pixels[..., [4, 2, 0]]))
    with pytest.raises(SettingsError, match="bands names band 6; .* has 5 bands"):
        predict_orthomosaic(worker, source, output, raster_options("6,2,1", None), quiet)


def test_colours_are_taken_by_what_the_file_calls_them(worker, tmp_path, output):
    pixels = picture(bands=4)
    source = write(tmp_path / "mosaic.tif", pixels, photometric="MINISBLACK")
    with rasterio.open(source, "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    found = read(predict_orthomosaic(worker, source, output, say=quiet).labels)
    assert np.array_equal(found, photo_labels(worker, pixels[..., [3, 2, 1]]))


def test_grey_and_palette_become_colours(worker, tmp_path, output):
    grey = picture(bands=1)
    found = predict_orthomosaic(worker, write(tmp_path / "grey.tif", grey), output, say=quiet)
    assert np.array_equal(read(found.labels), photo_labels(worker, np.repeat(grey, 3, axis=2)))
    table = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    source = write(tmp_path / "palette.tif", grey, photometric="PALETTE")
    with rasterio.open(source, "r+") as file:
        file.write_colormap(1, {sample: tuple(map(int, rgb)) for sample, rgb in enumerate(table)})
    found = predict_orthomosaic(worker, source, output, say=quiet)
    assert np.array_equal(read(found.labels), photo_labels(worker, table[grey[..., 0]]))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_samples_are_scaled_by_a_range_or_by_percentiles(worker, tmp_path, output, dtype):
    pixels, said = picture(), []
    samples = (pixels.astype(dtype) * 16 + 1000).astype(dtype)
    source = write(tmp_path / "mosaic.tif", samples, photometric="MINISBLACK")
    options = raster_options(None, f"1000,{1000 + 255 * 16}")
    found = read(predict_orthomosaic(worker, source, output, options, said.append).labels)
    assert np.array_equal(found, photo_labels(worker, pixels))
    assert "Samples: 1000 becomes 0 and 5080 255." in said
    said.clear()
    found = read(predict_orthomosaic(worker, source, output, say=said.append).labels)
    low, high = np.percentile(samples.astype(np.float64), (2, 98))
    scaled = np.rint(np.clip((samples.astype(np.float32) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    assert (found != photo_labels(worker, scaled)).mean() < 0.02, "a sample of the pixels gives nearly the percentiles"
    assert any(sentence.startswith(f"Samples of {dtype}: ") and "--range LOW,HIGH" in sentence for sentence in said)


def test_samples_that_are_no_number_are_empty(worker, tmp_path, output):
    pixels, empty = picture().astype(np.float32), hole()
    pixels[empty] = np.nan
    source = write(tmp_path / "mosaic.tif", pixels, nodata=np.nan, photometric="MINISBLACK")
    found = read(predict_orthomosaic(worker, source, output, raster_options(None, "0,255"), quiet).labels)
    filled = np.where(empty[..., None], FILL, picture()).astype(np.uint8)
    assert np.array_equal(found, np.where(empty, EMPTY, photo_labels(worker, filled)))


# ------------------------------------------------------------------------------------------------- which and what
def test_mosaics_are_told_from_photos(tmp_path):
    placed = write(tmp_path / "placed.tif", picture())
    plain = write(tmp_path / "plain.tif", picture(), crs=None, transform=None)
    big = tmp_path / "big.tif"
    with rasterio.open(
        big, "w", driver="GTiff", width=20_000, height=6000, count=3, dtype="uint8", sparse_ok=True, bigtiff="yes"
    ):
        pass
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(placed.read_bytes()[:6])
    assert [is_orthomosaic(path) for path in (placed, plain, big, damaged)] == [True, False, True, False]
    (tmp_path / "plain.tfw").write_text("0.01\n0\n0\n-0.01\n500000\n5000000\n")
    assert is_orthomosaic(plain)
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), picture())
    assert not is_orthomosaic(photo)


@pytest.mark.parametrize(
    ("settings", "scale", "message"),
    [
        ({}, (512, 640), r"trained on photos scaled to \(512, 640\) pixels.*input_scale=original"),
        ({}, 2.0, "trained on photos scaled to 2 times their size"),
        ({"long_side": 640}, None, "long_side must be null"),
        ({"scales": [1.0, 0.5]}, None, r"scales must be \[1\.0\]"),
        ({"min_component": 5000}, None, "min_component must be at most 1000"),
        ({"confidence": True}, None, "confidence must be false"),
    ],
)
def test_settings_that_are_not_for_mosaics_are_refused(settings, scale, message):
    with pytest.raises(SettingsError, match=message):
        require_fitting(read_settings(settings), scale)


@pytest.mark.parametrize(
    ("bands", "samples", "message"),
    [
        ("1,2", None, "bands must be one number or three"),
        ("0,1,2", None, "bands must be the numbers of one band or of three"),
        ("red", None, "bands must be the numbers"),
        (None, "5", "range must be the samples that become 0 and 255"),
        (None, "9,5", "range must be the lower sample first"),
        (None, "nan,5", "range must be the samples"),
    ],
)
def test_options_of_the_samples_are_checked(bands, samples, message):
    with pytest.raises(SettingsError, match=message):
        raster_options(bands, samples)


def test_a_damaged_mosaic_is_said_in_a_sentence(worker, tmp_path, output):
    source = write(tmp_path / "mosaic.tif", picture((600, 700)), compress="deflate")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(RequestError, match=r"Cannot read the TIFF .*mosaic\.tif"):
        predict_orthomosaic(worker, source, output, RasterOptions(), quiet)
    assert list(output.iterdir()) == [], "no half of a result is left"


def test_the_command_line_takes_mosaics_by_themselves(tmp_path, capsys):
    with tiny_encoder():
        model = tiny_checkpoint(tmp_path / "model.pth")
        (tmp_path / "in").mkdir()
        pixels = picture()
        write(tmp_path / "in" / "mosaic.tif", pixels)
        cv2.imwrite(str(tmp_path / "in" / "photo.png"), pixels[..., ::-1])
        command = ["predict", str(tmp_path / "in"), "--model", str(model), "--output", str(tmp_path / "out")]
        assert main(command) == 2
        assert "input_scale=original" in capsys.readouterr().err
        assert main([*command, "--settings", "input_scale=original"]) == 0
        said = capsys.readouterr().out
    assert f"{tmp_path / 'in' / 'mosaic.tif'}: 310×215 pixels, EPSG:32633." in said
    assert {path.name for path in (tmp_path / "out" / "in").iterdir()} == {
        "mosaic.geojson",
        "mosaic.labels.tif",
        "mosaic.local.geojson",
        "photo.png.json",
    }


def test_memory_does_not_grow_with_the_picture(tmp_path):
    code = (
        "from pathlib import Path; from benchmarks.orthomosaic import measured, stub_worker, write_mosaic\n"
        f"place = Path({str(tmp_path)!r}); write_mosaic(place / 'mosaic.tif', 10240, 10240, every=10)\n"
        "print(measured(stub_worker(256, stride=256, detail_overlap=False), place / 'mosaic.tif', place))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert found["gigabytes"] < 0.25, "the pixels alone are 0.31"
