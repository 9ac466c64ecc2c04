import json

import cv2
import numpy as np
import pycocotools.mask
import pytest

from common.data.folders import ProjectError
from common.data.project import open_project
from tests.train.importing.photos import SIZE, import_it, thin_lines, training_masks, write_mask, write_photo

PATCH = [[4, 20, 16, 20, 16, 30, 4, 30]]
CATEGORIES = [{"id": 7, "name": "crack"}, {"id": 3, "name": "patch"}, {"id": 9, "name": "never"}]


def rle(mask):
    runs = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def write_coco(path, photos, annotations, categories=CATEGORIES):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1], "license": 1}
        for number, name in enumerate(photos, 1)
    ]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def annotation(image, category, segmentation, **more):
    return {"id": image * 10, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


# ------------------------------------------------------------------------------------------------------------ COCO
def test_coco_has_the_pixels_that_its_own_reader_draws(tmp_path):
    folder = tmp_path / "data"
    line = thin_lines(3) == 1
    uncompressed = {"size": [*SIZE], "counts": [0, *np.diff([0, SIZE[0] * 5, SIZE[0] * SIZE[1]]).tolist()]}
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(folder / "train2017" / name)
    annotations = [
        annotation(1, 3, PATCH, bbox=[4, 20, 12, 10], area=120, iscrowd=0),
        annotation(1, 7, rle(line)),
        annotation(2, 3, uncompressed, iscrowd=1),
    ]
    write_coco(folder / "annotations" / "instances_train2017.json", ["a.jpg", "b.jpg", "c.jpg"], annotations)
    spec = import_it(folder, tmp_path / "cache")
    assert open_project(spec).class_names == ["crack", "patch"]
    masks = training_masks(spec, ["crack", "patch"], tmp_path / "cache")
    patch = pycocotools.mask.decode(pycocotools.mask.frPyObjects(PATCH, *SIZE))[..., 0]
    first = np.where(line, 1, patch * 2)
    assert np.array_equal(masks["ds0/a.jpg"], first), "the later object lies over the earlier"
    assert masks["ds0/b.jpg"][:, :5].min() == 2 and masks["ds0/b.jpg"][:, 5:].max() == 0
    assert masks["ds0/c.jpg"].max() == 0, "a photo without objects shows background"


def test_several_files_of_coco_are_datasets_with_photos_of_their_own(tmp_path):
    folder = tmp_path / "data"
    for number, split in enumerate(("train", "valid")):
        write_photo(folder / split / "a.jpg", seed=number)
        write_coco(folder / split / "_annotations.coco.json", ["a.jpg"], [annotation(1, 7, PATCH)])
    records = list(open_project(import_it(folder, tmp_path / "cache")))
    assert [record.key for record in records] == ["train/a.jpg", "valid/a.jpg"]
    assert [record.image_path.resolve().parent.name for record in records] == ["train", "valid"]


def no_areas(folder):
    write_coco(folder / "coco.json", ["a.jpg"], [annotation(1, 7, [], bbox=[1, 1, 5, 5])])


def lost(folder):
    write_coco(folder / "coco.json", ["gone.jpg"], [annotation(1, 7, PATCH)])


def other_size(folder):
    write_photo(folder / "a.jpg", (16, 16))


def bad_runs(folder):
    write_coco(folder / "coco.json", ["a.jpg"], [annotation(1, 7, {"size": [*SIZE], "counts": [10**9, 5]})])


def wrong_size_of_runs(folder):
    runs = {"size": [10**6, 10**6], "counts": [5, 5]}
    write_coco(folder / "coco.json", ["a.jpg"], [annotation(1, 7, runs)])


def no_coco(folder):
    (folder / "coco.json").write_text('{"images": [{"id": "x"}], "annotations": [], "categories": []}')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_areas, "has boxes alone, no area"),
        (lost, r"The photo 'gone\.jpg' of .*coco\.json is not there"),
        (other_size, "says that a.jpg is 32 pixels high and 48 wide; .*a.jpg is 16 and 16"),
        (bad_runs, r"Object 1 of a\.jpg in .*coco\.json has a segmentation that cannot be drawn"),
        (wrong_size_of_runs, "has a segmentation that cannot be drawn"),
        (no_coco, r"coco\.json is not COCO's JSON: images\.0\.id"),
    ],
)
def test_what_is_wrong_with_coco_is_said_of_the_file(tmp_path, harm, message):
    folder = tmp_path / "data"
    write_photo(folder / "a.jpg")
    write_coco(folder / "coco.json", ["a.jpg"], [annotation(1, 7, PATCH)])
    harm(folder)
    with pytest.raises(ProjectError, match=message):
        import_it(folder, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------ Pascal VOC
def voc_palette():
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = (0, 0, 0), (128, 0, 0), (0, 128, 0)
    palette[255] = (224, 224, 192)
    return palette.ravel().tolist()


@pytest.mark.parametrize("palette", [voc_palette(), None], ids=["palette", "index"])
def test_pascal_voc_has_its_classes_its_splits_and_a_border_that_does_not_count(tmp_path, palette):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    mask = thin_lines()
    mask[19, 4:16] = 255
    for name in ("2007_1", "2007_2", "2007_3"):
        write_photo(folder / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_1", "2007_2"):
        write_mask(folder / "SegmentationClass" / f"{name}.png", mask, palette)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_2\n")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "2007_1.xml").write_text("<annotation/>")
    spec = import_it(tmp_path / "VOCdevkit", tmp_path / "cache")
    project = open_project(spec)
    assert [record.key for record in project] == ["train/2007_1.jpg", "unlisted/2007_3.jpg", "val/2007_2.jpg"]
    assert project.class_names == ["aeroplane", "bicycle"]
    assert project.colours["aeroplane"] == (128, 0, 0)
    masks = training_masks(f"{spec}:train", ["aeroplane", "bicycle"], tmp_path / "cache")
    assert np.array_equal(masks["train/2007_1.jpg"], mask)


def test_boxes_of_pascal_voc_are_no_labels_for_every_pixel(tmp_path):
    write_photo(tmp_path / "data" / "JPEGImages" / "a.jpg")
    (tmp_path / "data" / "Annotations").mkdir()
    (tmp_path / "data" / "Annotations" / "a.xml").write_text("<annotation/>")
    with pytest.raises(ProjectError, match="has Pascal VOC's boxes .* and no masks"):
        import_it(tmp_path / "data", tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------ Cityscapes
def write_city(folder, objects, size=SIZE, split="train"):
    write_photo(folder / "leftImg8bit" / split / "ulm" / "ulm_0_1_leftImg8bit.png")
    labels = folder / "gtFine" / split / "ulm" / "ulm_0_1_gtFine_polygons.json"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": objects}))
    write_mask(labels.with_name("ulm_0_1_gtFine_labelIds.png"), np.zeros(SIZE, np.uint8))
    return labels


ROAD = {"label": "road", "polygon": [[0, 10], [47, 10], [47, 31], [0, 31]]}
CAR = {"label": "car", "polygon": [[5, 12], [15, 12], [15, 20], [5, 20]]}


def test_cityscapes_has_its_polygons_and_colours(tmp_path):
    write_city(tmp_path / "data", [ROAD, CAR])
    spec = import_it(tmp_path / "data", tmp_path / "cache")
    project = open_project(spec)
    assert [record.key for record in project] == ["train/ulm/ulm_0_1_leftImg8bit.png"]
    assert project.colours == {"road": (128, 64, 128), "car": (0, 0, 142)}
    [mask] = training_masks(f"{spec}:train", ["road", "car"], tmp_path / "cache").values()
    drawn = np.zeros(SIZE, np.uint8)
    for index, one in enumerate((ROAD, CAR), 1):
        cv2.fillPoly(drawn, [np.array(one["polygon"])], index)
    assert np.array_equal(mask, drawn)


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ([ROAD], (5, 5), "is for another size"),
        ([{"label": "road"}], SIZE, "Cannot read the labels .*_polygons.json"),
        ([{"label": "road", "polygon": [["x", 1]] * 4}], SIZE, "Cannot read the labels"),
    ],
)
def test_damaged_labels_of_cityscapes_are_named_and_never_empty(tmp_path, objects, size, message):
    write_city(tmp_path / "data", objects, size)
    with pytest.raises(ProjectError, match=message):
        import_it(tmp_path / "data", tmp_path / "cache")


def test_photos_of_one_name_in_subfolders_stay_apart_in_coco(tmp_path):
    folder = tmp_path / "data"
    for number, name in enumerate(("a.jpg", "night/a.jpg")):
        write_photo(folder / name, seed=number)
    write_coco(folder / "coco.json", ["a.jpg", "night/a.jpg"], [annotation(2, 7, PATCH)])
    masks = training_masks(import_it(folder, tmp_path / "cache"), ["crack"], tmp_path / "cache")
    assert {key: bool(mask.any()) for key, mask in masks.items()} == {"ds0/a.jpg": False, "night/a.jpg": True}
