"""Every format read by the programs of others."""

import contextlib
import csv
import io
import json
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pandas as pd
import pytest
import supervisely as sly
import yaml
from PIL import Image
from pycocotools.coco import COCO
from rasterio.features import rasterize
from supervisely.convert.image.coco.coco_converter import COCOConverter
from supervisely.convert.image.pascal_voc.pascal_voc_converter import PascalVOCConverter
from supervisely.convert.image.yolo.yolo_converter import YOLOConverter

from serve.batch.outputs import FORMATS, chosen_formats, needs_of
from serve.batch.outputs.format import OutputOptions
from serve.batch.outputs.measures import CLASSES, COMPONENTS
from serve.batch.outputs.writing import Writer
from serve.batch.result import Result, result_names
from tests.serve.batch.outputs.drawn import LEGEND, arc, arm, bar

SIZE = 120
PHOTOS = ("b.jpg", "a.png", "a.jpg", "night/c.jpg", "none.jpg")


def labels_of(photo: str) -> np.ndarray:
    """Two classes in each photo but one: thin lines, a closed one around something, parts that touch by corners."""
    labels = np.zeros((SIZE, SIZE + 10), np.uint8)
    if photo == "none.jpg":
        return labels
    angle = 20 * PHOTOS.index(photo) + 10
    part = labels[:, :SIZE]
    part[arc(SIZE, (40, 40), 25, 4, 3)] = 1
    part[bar(SIZE, (40, 40), angle, 9, 4)] = 2
    part[arm(SIZE, (95, 20), -angle / 4, 70, 1.2)] = 1
    labels[100:104, -6:], labels[104:107, -9:-6] = 2, 2
    return labels


@pytest.fixture(scope="module")
def results() -> list[Result]:
    names = result_names(PHOTOS)
    rng = np.random.default_rng(0)
    found = []
    for photo in PHOTOS:
        labels = labels_of(photo)
        image = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
        confidences = np.full(labels.shape, 0.625, np.float32)
        probabilities = rng.random((3, *labels.shape)).astype(np.float16)
        found.append(Result(photo, names[photo], labels, LEGEND, image, confidences, probabilities))
    return found


@pytest.fixture(scope="module")
def written(results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All formats of all photos."""
    return write(results, tmp_path_factory.mktemp("outputs"))


def write(results: list[Result], folder: Path, formats: str = ",".join(FORMATS), **options: object) -> Path:
    writer = Writer(folder, chosen_formats(formats), LEGEND, OutputOptions(**options))
    for result in results:
        writer.add(result)
    writer.finish()
    assert len(set(writer.files)) == len(writer.files), "a file was written over another"
    return folder


def photos_beside(results: list[Result], folder: Path) -> None:
    """The photos where a reader looks for them, without those of one name: readers tell them apart by the stem."""
    for result in results:
        if result.photo != "a.png":
            path = folder / result.photo
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(result.image).save(path, quality=95)


def read_by(converter: type, folder: Path) -> dict[str, np.ndarray]:
    """What a converter of the SDK's import reads: H×W class indices by the photo's name without its suffix."""
    reader = converter(str(folder), None, False)
    assert reader.validate_format()
    meta, found = reader.get_meta(), {}
    for item in reader.get_items():
        annotation = reader.to_supervisely(item, meta)
        labels = np.zeros(annotation.img_size, np.uint8)
        for label in annotation.labels:
            if isinstance(label.geometry, sly.Rectangle) or label.obj_class.name not in LEGEND.classes:
                continue
            drawn = np.zeros(labels.shape, np.uint8)
            label.geometry.draw(drawn, 1)
            labels[drawn > 0] = LEGEND.classes.index(label.obj_class.name)
        found[Path(item.path).stem] = labels
    return found


def agreement(one: np.ndarray, other: np.ndarray, index: int) -> float:
    """Intersection over union of class `index`."""
    both, either = (one == index) & (other == index), (one == index) | (other == index)
    return both.sum() / max(either.sum(), 1) if either.any() else 1.0


def assert_near(one: np.ndarray, other: np.ndarray) -> None:
    """No class lies farther than a pixel from where it is in the other labels."""
    for here, there in ((one, other), (other, one)):
        for index, _ in LEGEND.found:
            near = cv2.dilate((there == index).astype(np.uint8), np.ones((3, 3), np.uint8))
            assert (here == index).any()
            assert not (here == index)[near == 0].any()


def test_every_photo_has_its_files_also_those_of_one_name(written):
    def names(pattern: str) -> list[str]:
        return sorted(path.relative_to(written).as_posix() for path in written.glob(pattern) if path.is_file())

    stems = ["a.jpg", "a.png", "b", "night/c", "none"]
    assert names("masks/**/*.png") == [f"masks/{stem}.png" for stem in stems]
    assert names("overlay/**/*") == [f"overlay/{stem}.png" for stem in stems]
    assert names("probabilities/**/*") == [f"probabilities/{stem}.npz" for stem in stems]
    assert names("geojson/**/*") == [f"geojson/{stem}.geojson" for stem in stems]
    assert names("yolo/labels/**/*") == [f"yolo/labels/{stem}.txt" for stem in stems]
    assert names("pascal/Annotations/**/*") == [f"pascal/Annotations/{stem}.xml" for stem in stems]
    assert names("supervisely/**/*") == sorted(f"supervisely/{photo}.json" for photo in PHOTOS)
    assert {path.name for path in written.iterdir()} == set(FORMATS)


def test_masks_are_indices_with_the_colours_of_the_classes(written, results):
    for result in results:
        with Image.open(written / "masks" / f"{result.name}.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), result.labels)
            colours = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(colours, np.array(LEGEND.palette, np.uint8)[result.labels])
    assert json.loads((written / "masks" / "classes.json").read_text()) == {"__bg__": 0, "crack": 1, "stain": 2}


def test_coco_masks_are_read_by_pycocotools_pixel_by_pixel(written, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(written / "coco" / "annotations.json"))
    assert {each["name"]: each["id"] for each in coco.loadCats(coco.getCatIds())} == {"crack": 1, "stain": 2}
    images = {each["file_name"]: each for each in coco.loadImgs(coco.getImgIds())}
    assert list(images) == sorted(PHOTOS)
    for result in results:
        image, labels = images[result.photo], np.zeros(result.size, np.uint8)
        assert (image["height"], image["width"]) == result.size
        for each in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(each).astype(bool)
            assert not labels[mask].any(), "parts overlap"
            labels[mask] = each["category_id"]
            assert each["area"] == mask.sum()
            assert each["bbox"] == list(cv2.boundingRect(mask.view(np.uint8)))
            assert each["score"] == 0.625
        np.testing.assert_array_equal(labels, result.labels)


def test_coco_polygons_are_read_by_pycocotools_and_leave_holes_open(written, results, tmp_path):
    exact = write(results, tmp_path, "coco-polygons", tolerance=0)
    for folder, least in ((exact, 0.93), (written, 0.85)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(folder / "coco-polygons" / "annotations.json"))
        for image in coco.loadImgs(coco.getImgIds()):
            labels, expected = np.zeros((image["height"], image["width"]), np.uint8), labels_of(image["file_name"])
            for each in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                assert isinstance(each["segmentation"], list)
                labels[coco.annToMask(each) > 0] = each["category_id"]
            for index, _ in LEGEND.found:
                assert agreement(labels, expected, index) > least, (image["file_name"], index)


def test_coco_is_read_by_the_sdks_import(written, results, tmp_path):
    (tmp_path / "annotations.json").write_bytes((written / "coco" / "annotations.json").read_bytes())
    photos_beside([result for result in results if result.photo != "a.jpg"], tmp_path)
    found = read_by(COCOConverter, tmp_path)
    for photo in ("b.jpg", "night/c.jpg"):
        # It makes polygons of masks, which it draws again.
        assert_near(found[Path(photo).stem], labels_of(photo))


def test_yolo_is_read_by_the_sdks_import(written, results, tmp_path):
    data = yaml.safe_load((written / "yolo" / "data.yaml").read_text())
    assert (data["names"], data["nc"]) == (["crack", "stain"], 2)
    assert (written / "yolo/labels/none.txt").read_text() == ""
    for result in results:
        # As filled from the numbers themselves: the SDK's reader moves corners to whole pixels.
        labels = np.zeros(result.size, np.uint8)
        for line in (written / "yolo/labels" / f"{result.name}.txt").read_text().splitlines():
            index, *numbers = line.split()
            ring = np.array(numbers, float).reshape(-1, 2) * result.size[::-1]
            assert ring.min() >= 0
            assert (ring <= result.size[::-1]).all()
            labels[rasterize([{"type": "Polygon", "coordinates": [ring.tolist()]}], result.size) > 0] = int(index) + 1
        for index, _ in LEGEND.found:
            assert agreement(labels, result.labels, index) > 0.85
    for path in ("data.yaml", "labels/b.txt", "labels/night/c.txt"):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((written / "yolo" / path).read_bytes())
    photos_beside([result for result in results if result.photo in ("b.jpg", "night/c.jpg")], tmp_path / "images")
    found = read_by(YOLOConverter, tmp_path)
    for photo in ("b.jpg", "night/c.jpg"):
        assert_near(found[Path(photo).stem], labels_of(photo))


def test_pascal_voc_is_read_by_the_sdks_import(written, results, tmp_path, monkeypatch):
    def flat(*args: object, **named: object) -> object:
        found = np_unique(*args, **named)
        return (found[0], found[1].ravel(), *found[2:]) if named.get("return_inverse") else found

    # The reader is older than numpy 2, whose inverse has the array's shape.
    np_unique = np.unique
    monkeypatch.setattr(np, "unique", flat)
    for path in (written / "pascal").rglob("*"):
        if path.is_file() and path.stem not in ("a.jpg", "a.png"):
            target = tmp_path / path.relative_to(written / "pascal").with_name(path.name)
            target = tmp_path.joinpath(*(part for part in target.relative_to(tmp_path).parts if part != "night"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    photos_beside([result for result in results if result.photo in ("b.jpg", "night/c.jpg")], tmp_path / "JPEGImages")
    reader = PascalVOCConverter(str(tmp_path), None, False)
    assert reader.validate_format()
    [item] = [each for each in reader.get_items() if each.name == "b.jpg"]
    boxes = [label for label in reader.to_supervisely(item).labels if isinstance(label.geometry, sly.Rectangle)]
    count, *_ = cv2.connectedComponents((labels_of("b.jpg") == 1).view(np.uint8))
    assert len([label for label in boxes if label.obj_class.name.startswith("crack")]) == count - 1
    assert max(label.geometry.right for label in boxes) == SIZE + 9
    found = read_by(PascalVOCConverter, tmp_path)
    for photo in ("b.jpg", "night/c.jpg"):
        np.testing.assert_array_equal(found[Path(photo).stem], labels_of(photo))
    assert (written / "pascal/ImageSets/Segmentation/val.txt").read_text().split() == [
        "a.jpg", "a.png", "b", "night/c", "none",
    ]  # fmt: skip


def test_geojson_is_read_by_geopandas_in_pixels(written, results, tmp_path):
    exact = write(results, tmp_path, "geojson", tolerance=0)
    for result in results:
        for folder, least in ((exact, 1.0), (written, 0.85)):
            found = geopandas.read_file(folder / "geojson" / f"{result.name}.geojson")
            if result.photo == "none.jpg":
                assert len(found) == 0
                continue
            assert found.geometry.is_valid.all()
            for index, name in LEGEND.found:
                own = found[found["class"] == name]
                drawn = rasterize(own.geometry, result.size)
                assert agreement(drawn * index, result.labels, index) >= least
                assert own["area_px"].sum() == (result.labels == index).sum()
            assert (found["confidence"] == 0.625).all()


def test_geojson_of_a_georeferenced_photo_has_its_coordinates_and_their_system(tmp_path):
    labels = labels_of("b.jpg")
    placed = Result(
        "b.tif", "b", labels, LEGEND, confidences=np.ones(labels.shape, np.float32),
        transform=(0.5, 0, 400000, 0, -0.5, 5700000), crs="EPSG:32633",
    )  # fmt: skip
    found = geopandas.read_file(write([placed], tmp_path, "geojson", tolerance=0) / "geojson" / "b.geojson")
    assert found.crs.to_epsg() == 32633
    left, bottom, right, top = found.total_bounds
    rows, columns = np.nonzero(labels)
    assert (left, right) == (400000 + columns.min() / 2, 400000 + (columns.max() + 1) / 2)
    assert (top, bottom) == (5700000 - rows.min() / 2, 5700000 - (rows.max() + 1) / 2)


def test_tables_are_read_by_pandas_and_hold_the_same(written):
    for table, columns in (("classes", CLASSES), ("components", COMPONENTS)):
        text = pd.read_csv(written / "csv" / f"{table}.csv")
        columnar = pd.read_parquet(written / "parquet" / f"{table}.parquet")
        assert list(text) == list(columnar) == list(columns)
        pd.testing.assert_frame_equal(text, columnar, check_dtype=False)
        kinds = {name: columnar.dtypes[name].kind for name, kind in columns.items() if kind is not str}
        assert kinds == {name: "i" if kind is int else "f" for name, kind in columns.items() if kind is not str}
    classes, components = (pd.read_csv(written / "csv" / f"{name}.csv") for name in ("classes", "components"))
    assert list(classes["photo"].unique()) == sorted(PHOTOS)
    assert len(classes) == 2 * len(PHOTOS)
    assert (classes[classes["photo"] == "none.jpg"]["area_px"] == 0).all()
    summed = components.groupby(["photo", "class"])["area_px"].sum()
    for (photo, name), area in summed.items():
        assert area == (labels_of(photo) == LEGEND.classes.index(name)).sum()
    with (written / "csv" / "components.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["length_mm"] == "", "no scale is known"


def test_probabilities_and_overlays_are_those_of_the_photo(written, results):
    for result in results:
        with np.load(written / "probabilities" / f"{result.name}.npz") as file:
            np.testing.assert_array_equal(file["probabilities"], result.probabilities)
            assert file["classes"].tolist() == list(LEGEND.classes)
        drawn = np.asarray(Image.open(written / "overlay" / f"{result.name}.png"))
        np.testing.assert_array_equal(drawn[result.labels == 0], result.image[result.labels == 0])
        assert (drawn[result.labels > 0] != result.image[result.labels > 0]).any(axis=-1).all()


def test_collection_is_the_same_whatever_the_order_of_the_photos(written, results, tmp_path):
    again = write(results[::-1], tmp_path)
    for path in written.rglob("*"):
        if path.is_file() and path.suffix != ".npz":
            assert path.read_bytes() == (again / path.relative_to(written)).read_bytes(), path.name


def test_formats_ask_for_what_they_need(results):
    for each in FORMATS.values():
        needs = needs_of([each])
        for result in results:
            bare = Result(
                result.photo, result.name, result.labels, LEGEND, **{name: getattr(result, name) for name in needs}
            )
            each.files(bare, OutputOptions())
            if each.merge and each.merge.part:
                assert isinstance(each.merge.part.of(bare, OutputOptions()), bytes)


def test_empty_collection_has_whole_files_too(tmp_path):
    folder = write([], tmp_path)
    assert json.loads((folder / "coco" / "annotations.json").read_text())["annotations"] == []
    assert len(pd.read_parquet(folder / "parquet" / "components.parquet")) == 0
