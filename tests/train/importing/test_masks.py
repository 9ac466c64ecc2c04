import json
import re

import numpy as np
import pytest
from PIL import Image

from common.data.folders import ProjectError
from common.data.project import open_project
from tests.train.importing.photos import (
    SIZE,
    import_it,
    thin_lines,
    training_masks,
    write_mask,
    write_photo,
)
from train.importing.imported import UNLABELLED

CLASSES = ["crack", "patch"]
PALETTE = [0, 0, 0, 220, 20, 60, 30, 60, 200]


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_photo(tmp_path / "data" / "images" / f"{number}.jpg", seed=number)
        write_mask(tmp_path / "data" / "masks" / f"{number}.png", thin_lines(number))
    return tmp_path / "data"


def expected(number):
    return thin_lines(number)


def check_equal(masks):
    assert {key: mask.tolist() for key, mask in masks.items()} == {
        f"ds0/{number}.jpg": thin_lines(number).tolist() for number in range(3)
    }


@pytest.mark.parametrize("palette", [None, PALETTE], ids=["index", "palette"])
def test_index_masks_are_what_training_learns_from(folder, tmp_path, palette):
    ignored = thin_lines(0)
    ignored[0, 10:20] = 255
    write_mask(folder / "masks" / "0.png", ignored, palette and palette + [0] * 759)
    spec = import_it(folder, tmp_path / "cache", names=CLASSES)
    masks = training_masks(spec, CLASSES, tmp_path / "cache")
    assert np.array_equal(masks["ds0/0.jpg"], ignored), "255 must stay what does not count"
    assert np.array_equal(masks["ds0/1.jpg"], thin_lines(1)) and np.array_equal(masks["ds0/2.jpg"], thin_lines(2))
    project = open_project(spec)
    assert project.class_names == CLASSES
    if palette:
        assert project.colours["crack"] == (220, 20, 60)


def test_masks_of_0_and_255_have_a_foreground(folder, tmp_path):
    for number in range(3):
        write_mask(folder / "masks" / f"{number}.png", np.uint8(255) * (thin_lines(number) > 0))
    assert open_project(import_it(folder, tmp_path / "cache")).class_names == ["foreground"]
    spec = import_it(folder, tmp_path / "cache", names=["background", "crack"])
    masks = training_masks(spec, ["crack"], tmp_path / "cache")
    assert all(np.array_equal(masks[f"ds0/{number}.jpg"], thin_lines(number) > 0) for number in range(3))


def test_names_of_values_are_the_same_whatever_else_the_masks_hold(folder, tmp_path):
    assert open_project(import_it(folder, tmp_path / "cache")).class_names == ["class_1", "class_2"]
    for number in range(3):
        write_mask(folder / "masks" / f"{number}.png", np.uint8(thin_lines(number) == 2) * np.uint8(2))
    assert open_project(import_it(folder, tmp_path / "cache")).class_names == ["class_2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "background\ncrack\npatch\n"),
        ("classes.json", '["crack", "patch"]'),
        ("classes.json", '{"0": "background", "1": "crack", "2": "patch"}'),
        ("palette.json", '{"crack": 1, "patch": [2, 7]}'),
        ("obj_class_to_machine_color.json", '{"__bg__": [0, 0, 0], "crack": [1, 1, 1], "patch": [2, 2, 2]}'),
        ("masks/obj_class_to_machine_color.json", '{"crack": [1, 1, 1], "patch": [2, 2, 2]}'),
    ],
)
def test_a_file_beside_the_masks_names_their_values(folder, tmp_path, name, text):
    (folder / name).write_text(text)
    # Of masks that have names, --classes of a training chooses among them.
    spec = import_it(folder, tmp_path / "cache", names=["patch"])
    assert open_project(spec).class_names == CLASSES
    check_equal(training_masks(spec, CLASSES, tmp_path / "cache"))


def test_masks_in_named_colours_are_read(folder, tmp_path):
    colours = np.array(PALETTE, np.uint8).reshape(3, 3)
    for number in range(2):
        write_mask(folder / "masks" / f"{number}.png", colours[thin_lines(number)])
    write_mask(folder / "masks" / "2.png", thin_lines(2), PALETTE)
    (folder / "classes.json").write_text(json.dumps({"crack": PALETTE[3:6], "patch": PALETTE[6:9]}))
    spec = import_it(folder, tmp_path / "cache")
    check_equal(training_masks(spec, CLASSES, tmp_path / "cache"))
    assert open_project(spec).colours == {"crack": (220, 20, 60), "patch": (30, 60, 200)}


def test_subfolders_and_splits_become_datasets(tmp_path):
    for place in ("train/images/day", "train/images", "val/images"):
        write_photo(tmp_path / "data" / place / "a.jpg")
        write_mask(tmp_path / "data" / place.replace("images", "masks") / "a.png", thin_lines())
    project = open_project(import_it(tmp_path / "data", tmp_path / "cache"))
    assert [record.key for record in project] == ["train/a.jpg", "train/day/a.jpg", "val/a.jpg"]
    chosen = import_it(f"{tmp_path / 'data'}:val", tmp_path / "cache")
    assert [record.key for record in open_project(chosen)] == ["val/a.jpg"]


def test_the_folder_of_the_photos_may_be_named_and_masks_may_carry_the_whole_name(folder, tmp_path):
    (folder / "masks" / "0.png").rename(folder / "masks" / "0.jpg.png")
    spec = import_it(folder / "images", tmp_path / "cache")
    check_equal(training_masks(spec, ["class_1", "class_2"], tmp_path / "cache"))


def test_photos_without_masks_say_nothing_and_are_kept_apart(folder, tmp_path):
    (folder / "masks" / "1.png").unlink()
    said = []
    project = open_project(import_it(folder, tmp_path / "cache", said))
    assert {record.key: record.annotation_path is not None for record in project} == {
        "ds0/0.jpg": True,
        "ds0/2.jpg": True,
        f"ds0/{UNLABELLED}/1.jpg": False,
    }
    assert "3 photos, 2 with labels; classes: class_1, class_2" in said[-1]


def test_a_target_needs_photos_alone_whatever_its_labels_are(folder, tmp_path):
    (folder / "masks" / "1.png").write_bytes(b"no mask")
    project = open_project(import_it(folder, tmp_path / "cache", labelled=False))
    assert len(project) == 3 and not any(record.annotation_path for record in project)
    alone = open_project(import_it(folder / "images", tmp_path / "other", labelled=False))
    assert len(alone) == 3


def test_photos_alone_are_a_target(tmp_path):
    write_photo(tmp_path / "photos" / "night" / "a.jpg")
    write_photo(tmp_path / "photos" / "b.png")
    project = open_project(import_it(tmp_path / "photos", tmp_path / "cache", labelled=False))
    assert [record.key for record in project] == ["ds0/b.png", "night/a.jpg"]


def test_the_same_folder_is_imported_once_until_a_file_changes(folder, tmp_path):
    said = []
    first = import_it(folder, tmp_path / "cache", said)
    count = len(said)
    assert import_it(folder, tmp_path / "cache", said) == first
    assert "imported before" in said[-1] and len(said) == count + 1
    write_mask(folder / "masks" / "0.png", np.zeros(SIZE, np.uint8))
    assert import_it(folder, tmp_path / "cache", said) != first


def test_a_turned_photo_has_labels_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_photo(tmp_path / "data" / "images" / "a.jpg", exif=exif)
    shown = thin_lines(size=SIZE[::-1])
    write_mask(tmp_path / "data" / "masks" / "a.png", shown)
    masks = training_masks(import_it(tmp_path / "data", tmp_path / "cache"), ["class_1"], tmp_path / "cache")
    assert np.array_equal(masks["ds0/a.jpg"], shown == 1)
    write_mask(tmp_path / "data" / "masks" / "a.png", thin_lines())
    with pytest.raises(ProjectError, match="turned by its EXIF tag"):
        import_it(tmp_path / "data", tmp_path / "cache")


def lost_photo(folder):
    (folder / "images" / "1.jpg").unlink()


def other_size(folder):
    write_mask(folder / "masks" / "1.png", np.zeros((20, 48), np.uint8))


def many_colours(folder):
    write_photo(folder / "masks" / "1.png")


def jpeg(folder):
    (folder / "masks" / "1.png").unlink()
    write_photo(folder / "masks" / "1.jpg")


def jpeg_called_png(folder):
    write_photo(folder / "masks" / "1.png", format="JPEG")


def damaged(folder):
    content = (folder / "masks" / "1.png").read_bytes()
    (folder / "masks" / "1.png").write_bytes(content[: len(content) // 2])


def nameless(folder):
    write_mask(folder / "masks" / "1.png", thin_lines(values=(1, 9)))
    (folder / "classes.txt").write_text("background\ncrack\npatch\n")


def two_photos(folder):
    write_photo(folder / "images" / "1.png")


def unreadable_names(folder):
    (folder / "classes.json").write_text('{"crack": "red"}')


def beyond_255(folder):
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(folder / "masks" / "1.png")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lost_photo, r"1 of 3 masks .* have no photo of their name .*'1\.png'"),
        (other_size, r"masks/1\.png is 20 pixels high and 48 wide, its photo .*images/1\.jpg 32 and 48"),
        (many_colours, r"masks/1\.png is an RGB picture of more than 256 colours.*classes\.json"),
        (jpeg, r"masks/1\.jpg is a JPEG, which changes the values"),
        (jpeg_called_png, r"masks/1\.png is a JPEG"),
        (damaged, r"Cannot read the mask .*masks/1\.png"),
        (nameless, r"hold the values 0, 1, 2, 9, and .*classes\.txt names .*1 crack, 2 patch: what is 9\?"),
        (two_photos, r"masks/1\.png is that of two photos, 1\.jpg and 1\.png"),
        (unreadable_names, r"Cannot read the names of classes in .*classes\.json: expected JSON such as"),
        (beyond_255, r"masks/1\.png holds other numbers than 0 to 255"),
    ],
)
def test_what_is_wrong_with_masks_is_said_of_the_file(folder, tmp_path, harm, message):
    harm(folder)
    with pytest.raises(ProjectError) as refused:
        import_it(folder, tmp_path / "cache")
    assert re.search(message, str(refused.value)), refused.value
    assert not list((tmp_path / "cache").glob("imported/*"))
