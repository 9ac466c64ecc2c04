"""Collections that are more than photos of a folder: projects of an instance, GeoTIFF files and orthomosaics."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import supervisely as sly
from PIL import Image
from rasterio.transform import from_origin

from serve.__main__ import main
from serve.batch.orthomosaic import EMPTY
from serve.batch.storage import Folder
from serve.batch.worker import Worker

PLACE = from_origin(500_000, 5_000_000, 0.005, 0.005)
OWN = ("--settings", "input_scale=original")


# ---------------------------------------------------------------------------------------------- a project's images
@pytest.fixture(scope="module")
def labels(checkpoint: Path, image: np.ndarray) -> np.ndarray:
    """What the model finds in the only photo of the projects."""
    [found] = Worker.from_file(checkpoint, "cpu").labels([image])
    assert set(np.unique(found)) == {0, 1, 2}
    return found


@pytest.fixture
def project(api, instance, image, labels, monkeypatch) -> SimpleNamespace:
    """A photo in each of two datasets, one nested in the other; the outer one has two labels of its own: the crack as
    the model will find it, and rust."""
    for name, value in (("SERVER_ADDRESS", instance.address), ("API_TOKEN", instance.token)):
        monkeypatch.setenv(name, value)
    created = api.project.create(instance.workspace_id, "bridge", change_name_if_conflict=True)
    classes = [sly.ObjClass("crack", sly.Bitmap, [220, 20, 60]), sly.ObjClass("rust", sly.Rectangle)]
    api.project.update_meta(created.id, sly.ProjectMeta(obj_classes=sly.ObjClassCollection(classes)))
    outer = api.dataset.create(created.id, "day")
    inner = api.dataset.create(created.id, "night", parent_id=outer.id)
    [first] = api.image.upload_nps(outer.id, ["a.png"], [image])
    [second] = api.image.upload_nps(inner.id, ["a.png"], [image])
    own = [sly.Label(sly.Bitmap(labels == 1), classes[0]), sly.Label(sly.Rectangle(0, 0, 9, 9), classes[1])]
    api.annotation.upload_ann(first.id, sly.Annotation(image.shape[:2], own))
    return SimpleNamespace(id=created.id, inner=inner.id, first=first.id, second=second.id)


@pytest.fixture
def run_project(project, checkpoint, tmp_path, inline):
    """Run the command on the project; its status and the photos that were worked on."""

    def run(*words: object) -> tuple[int, list[str]]:
        inline.photos.clear()
        command = ["batch", "--model", checkpoint, "--project", project.id, "--output", tmp_path / "out"]
        return main([str(word) for word in (*command, "--device", "cpu", *words)]), sorted(inline.photos)

    return run


def titles(api, image_id: int) -> dict[int, str]:
    """Names of the classes by the number of the label."""
    return {one["id"]: one["classTitle"] for one in api.annotation.download_json(image_id)["objects"]}


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("append", ["__bg__", "crack", "crack", "rust", "stain"]),
        ("replace", ["__bg__", "crack", "stain"]),
        ("iou_merge", ["__bg__", "crack", "rust", "stain"]),
    ],
)
def test_upload_leaves_of_the_labels_that_are_there_what_its_mode_says(api, project, run_project, mode, found):
    assert run_project("--upload", mode) == (0, ["day/a.png", "day/night/a.png"])
    after = titles(api, project.first)
    assert sorted(after.values()) == found
    assert sorted(titles(api, project.second).values()) == ["__bg__", "crack", "stain"]
    assert run_project("--upload", mode) == (0, [])
    assert titles(api, project.first) == after


def test_of_a_project_only_the_datasets_are_predicted_that_are_asked_for(api, project, run_project, capsys):
    before = titles(api, project.first)
    assert run_project("--dataset", project.inner, "--upload", "append") == (0, ["day/night/a.png"])
    assert titles(api, project.first) == before and titles(api, project.second)
    assert run_project("--dataset", 10**9, "--upload", "append") == (2, [])
    assert f"{10**9}" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- GeoTIFF and orthomosaics
def write(path: Path, pixels: np.ndarray, **profile: object) -> None:
    """A GeoTIFF of pixels H×W×3, five millimetres each."""
    height, width, bands = pixels.shape
    profile = {"crs": "EPSG:32633", "transform": PLACE, "photometric": "RGB"} | profile
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype="uint8", **profile
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))


@pytest.fixture
def survey(tmp_path, monkeypatch) -> SimpleNamespace:
    """A photo, a GeoTIFF that is small enough to be one and has an empty edge, and an orthomosaic."""
    random, folder = np.random.default_rng(5), tmp_path / "photos"
    (folder / "deck").mkdir(parents=True)
    monkeypatch.setattr("serve.batch.tiff.LARGEST_PHOTO", 20_000)
    Image.fromarray(random.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(folder / "photo.png")
    small = random.integers(1, 256, (90, 100, 3), dtype=np.uint8)
    small[:, :30] = 0
    write(folder / "small.tif", small, nodata=0)
    large = random.integers(0, 256, (150, 200, 3), dtype=np.uint8)
    write(folder / "deck/large.tif", large)
    return SimpleNamespace(folder=folder, small=small, large=large)


EVERYTHING = ["deck/large.tif", "photo.png", "small.tif"]
MOSAIC = [f"orthomosaics/deck/large.{kind}" for kind in ("geojson", "labels.tif", "local.geojson")]


def test_orthomosaics_are_photos_of_a_collection(run, survey, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert run("--format", "masks,csv,geojson", *OWN) == (0, EVERYTHING)
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("orthomosaics/**/*.*")) == MOSAIC
    worker = Worker.from_file(checkpoint, "cpu", settings={"input_scale": "original"})
    [labels] = worker.labels([survey.large])
    with rasterio.open(out / MOSAIC[1]) as file:
        np.testing.assert_array_equal(file.read(1), labels)
        assert file.transform == PLACE
    records = [json.loads(line) for line in (out / "manifest/all.jsonl").read_text().splitlines()]
    [noted] = [record for record in records if record["photo"] == "deck/large.tif"]
    assert sorted(noted["result"]) == MOSAIC
    assert noted["counts"] == np.bincount(labels.ravel(), minlength=3).tolist()

    assert run("--format", "masks,csv,geojson", *OWN) == (0, [])
    assert run("--format", "masks,overlay", *OWN) == (0, ["photo.png", "small.tif"]), "formats are for photos"
    (out / MOSAIC[0]).unlink()
    half = out / f"orthomosaics/deck/.large.labels.tif.{'0' * 32}.ovr.tmp"
    half.write_bytes(b"half")
    assert run("--format", "masks", *OWN) == (0, ["deck/large.tif"])
    assert (out / MOSAIC[0]).is_file() and not half.exists()


def test_place_of_a_small_geotiff_reaches_its_outputs_and_what_is_empty_stays_so(run, survey, checkpoint, tmp_path):
    assert run("--format", "masks,csv,geojson", *OWN)[0] == 0
    with (tmp_path / "out/csv/components.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scales = {row["photo"]: row["mm_per_pixel"] for row in rows}
    assert scales == {"photo.png": "", "small.tif": "5.0"}
    assert all(float(row["area_mm2"]) == 25 * int(row["area_px"]) for row in rows if row["photo"] == "small.tif")
    found = geopandas.read_file(tmp_path / "out/geojson/small.geojson")
    assert found.crs.to_epsg() == 32633
    assert found.total_bounds[0] >= 500_000 + 30 * 0.005, "nothing lies in the empty edge"
    labels = np.asarray(Image.open(tmp_path / "out/masks/small.png"))
    assert not labels[:, :30].any() and labels[:, 30:].any()


def test_bands_are_those_that_the_command_names(run, survey, checkpoint, tmp_path):
    assert run("--bands", "3,2,1", *OWN)[0] == 0
    [labels] = Worker.from_file(checkpoint, "cpu", settings={"input_scale": "original"}).labels(
        [survey.large[..., ::-1].copy()]
    )
    with rasterio.open(tmp_path / "out" / MOSAIC[1]) as file:
        np.testing.assert_array_equal(file.read(1), labels)
    assert run("--bands", "3,2,1", *OWN) == (0, [])
    assert run(*OWN) == (0, EVERYTHING), "other samples are other settings"


def test_what_is_not_for_orthomosaics_is_refused_before_anything_is_predicted(run, survey, tmp_path, capsys):
    assert run("--settings", "input_scale=original", "confidence=true") == (2, [])
    assert "For an orthomosaic confidence must be false" in capsys.readouterr().err
    assert run("--bands", "1,2") == (2, [])
    assert "bands must be one number or three" in capsys.readouterr().err


def test_orthomosaic_that_is_damaged_costs_the_others_nothing(run, survey, tmp_path, capsys):
    path = survey.folder / "deck/large.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(*OWN) == (3, EVERYTHING)
    assert "deck/large.tif: Cannot read the TIFF" in capsys.readouterr().out
    assert run(*OWN) == (3, ["deck/large.tif"])
    assert not [*(tmp_path / "out").glob("orthomosaics/**/*.*")]


def test_orthomosaics_in_s3(run, survey, s3, tmp_path):
    bucket, out = Folder("s3://site/photos"), Folder("s3://site/out")
    for name in EVERYTHING:
        bucket.write(name, (survey.folder / name).read_bytes())
    places = {"source": bucket.address, "output": out.address}
    assert run(*OWN, **places) == (0, EVERYTHING)
    assert run(*OWN) == (0, EVERYTHING)
    for name in (*MOSAIC, "masks/small.png"):
        assert out.read(name) == (tmp_path / "out" / name).read_bytes()
    assert run(*OWN, **places) == (0, [])


def test_predict_writes_the_formats_of_a_small_geotiff_with_its_scale(survey, checkpoint, tmp_path):
    words = ["--model", str(checkpoint), "--output", str(tmp_path / "found"), "--device", "cpu"]
    assert main(["predict", str(survey.folder), *words, "--format", "csv", *OWN]) == 0
    with (tmp_path / "found/photos/csv/classes.csv").open(newline="") as file:
        assert {row["photo"]: row["mm_per_pixel"] for row in csv.DictReader(file)} == {
            "photo.png": "",
            "small.tif": "5.0",
        }
    assert main(["predict", str(survey.folder / "small.tif"), *words, *OWN]) == 0
    with rasterio.open(tmp_path / "found/small.labels.tif") as file:
        assert (file.read(1)[:, :30] == EMPTY).all()
