import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervisely as sly
from PIL import Image

from common.data import mask_cache
from common.data.choice import BACKGROUND, UNCHOSEN_IS_BACKGROUND, Unchosen, background_twice, label_indices
from common.data.folders import ImageRecord
from common.data.labelled import TrainingScale, parts_sentence, read_annotation
from common.data.labels import resize_labels
from common.data.project import (
    ProjectError,
    check_labelled,
    check_target,
    draw_mask,
    open_project,
    prepare_labelled,
    prepare_unlabelled,
    project_classes,
)
from common.data.transforms import InputScale
from common.hrda.checks import SettingsError
from tests.shared import SHARED, needs_photos

SIZE = (20, 30)
IGNORE = Unchosen("ignore")
META = sly.ProjectMeta(
    [
        sly.ObjClass("crack", sly.Bitmap, color=[220, 20, 60]),
        sly.ObjClass("hole", sly.Polygon),
        sly.ObjClass("plate", sly.Rectangle),
        sly.ObjClass("moss", sly.Multipolygon),
        sly.ObjClass("fog", sly.AlphaMask),
        sly.ObjClass("wire", sly.Polyline),
        sly.ObjClass("any", sly.AnyGeometry),
        sly.ObjClass("tilted", sly.OrientedBBox),
        sly.ObjClass(BACKGROUND, sly.Rectangle),
    ]
)


def label(name: str, geometry) -> sly.Label:
    return sly.Label(geometry, META.get_obj_class(name))


def box(top, left, bottom, right) -> np.ndarray:
    """Mask of a rectangle whose last row and column belong to it."""
    mask = np.zeros(SIZE, bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def polygon(*corners, holes=()) -> sly.Polygon:
    return sly.Polygon([sly.PointLocation(*c) for c in corners], [[sly.PointLocation(*c) for c in h] for h in holes])


CRACK = label("crack", sly.Bitmap(np.ones((2, 3), bool), sly.PointLocation(4, 5)))
PLATE = label("plate", sly.Rectangle(0, 0, 9, 9))


def add(folder: Path, name: str = "a.png", labels=(CRACK,), size=SIZE, dataset="ds0", annotated=True) -> Path:
    """Add a photo to a project folder; returns the photo's path."""
    for part in ("img", "ann"):
        (folder / dataset / part).mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(META.to_json()))
    path = folder / dataset / "img" / name
    Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    if annotated:
        annotation = {"description": "", "tags": [], "size": {"height": size[0], "width": size[1]}}
        annotation["objects"] = [one.to_json() for one in labels]
        (folder / dataset / "ann" / f"{name}.json").write_text(json.dumps(annotation))
    return path


def masks(prepared) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for _, path in prepared]


def quiet(_: str) -> None:
    """A progress that nobody watches."""


# -------------------------------------------------------------------------------------------------------- opening
def test_nested_datasets_and_equal_names_stay_apart(tmp_path):
    for dataset in ("a", "a/datasets/b", "a/datasets/b/datasets/c", "z"):
        add(tmp_path, dataset=dataset)
    project = open_project(tmp_path)
    assert [r.key for r in project] == ["a/a.png", "a/b/a.png", "a/b/c/a.png", "z/a.png"]
    assert len({r.image_path for r in project}) == 4
    assert all(r.image_path.is_file() and r.annotation_path.is_file() for r in project)


def test_the_datasets_are_those_that_the_sdk_finds(tmp_path):
    for dataset in ("a", "a/datasets/b", "z"):
        add(tmp_path, dataset=dataset)
    add(tmp_path, dataset="only parent/datasets/child")
    theirs = {d.name for d in sly.Project(str(tmp_path), sly.OpenMode.READ).datasets}
    assert {r.dataset for r in open_project(tmp_path)} == theirs


def test_a_dataset_brings_those_nested_in_it(tmp_path):
    for dataset in ("a", "a/datasets/b", "ab"):
        add(tmp_path, dataset=dataset)
    assert [r.dataset for r in open_project(f"{tmp_path}:a")] == ["a", "a/b"]
    assert [r.dataset for r in open_project(f"{tmp_path}:a/b")] == ["a/b"]
    assert [r.dataset for r in open_project(f"{tmp_path}:ab,a/b")] == ["a/b", "ab"]


def test_a_colon_in_the_path_is_not_taken_for_a_dataset(tmp_path):
    folder = tmp_path / "C:" / "walls:2024"
    add(folder, dataset="north")
    add(folder, dataset="south")
    assert len(open_project(folder)) == 2
    assert [r.dataset for r in open_project(f"{folder}:south")] == ["south"]


def test_annotations_of_the_old_naming_are_found(tmp_path):
    add(tmp_path, "a.png")
    (tmp_path / "ds0/ann/a.png.json").rename(tmp_path / "ds0/ann/a.json")
    add(tmp_path, "b.png", annotated=False)
    first, second = open_project(tmp_path)
    assert first.annotation_path.name == "a.json" and second.annotation_path is None


def test_files_that_are_no_photos_are_passed_over(tmp_path, caplog):
    add(tmp_path, "UPPER.PNG")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "ds0/img" / name).write_text("?")
    assert [r.name for r in open_project(tmp_path)] == ["UPPER.PNG"]
    assert ".db" in caplog.text


def test_classes_come_in_the_projects_order_without_the_background(tmp_path):
    add(tmp_path, annotated=False)
    names = ["crack", "hole", "plate", "moss", "fog", "wire", "any", "tilted"]
    assert project_classes(f"{tmp_path}:ds0") == names == open_project(tmp_path).class_names
    assert open_project(tmp_path).colours["crack"] == (220, 20, 60)


def test_what_is_no_project_is_refused_with_the_remedy(tmp_path):
    project = tmp_path / "p"
    add(project, dataset="a/datasets/b")
    with pytest.raises(ProjectError, match="no such project folder.*elsewhere"):
        open_project(tmp_path / "elsewhere")
    with pytest.raises(ProjectError, match="did you mean 'a/b'"):
        open_project(f"{project}:a/bb")
    with pytest.raises(ProjectError, match=r"write .*p:a/b\."):
        open_project(project / "a" / "datasets" / "b")
    with pytest.raises(ProjectError, match="no dataset ''"):
        open_project(f"{project}:")
    (project / "meta.json").write_text("{")
    with pytest.raises(ProjectError, match="Cannot read .*meta.json"):
        open_project(project)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("a/img", ":a"),
        ("a/ann", ":a"),
        ("a/img/a.png", ":a"),
        ("a/datasets", ":a"),
        ("a/datasets/b/img", ":a/b"),
        ("only parent", ":only parent"),
        ("only parent/datasets", ":only parent"),
        ("other", ""),
        ("meta.json", ""),
    ],
)
def test_what_is_said_of_a_path_within_a_project_can_be_opened(tmp_path, wrong, right):
    project = tmp_path / "p"
    for dataset in ("a", "a/datasets/b", "only parent/datasets/child"):
        add(project, dataset=dataset)
    (project / "other").mkdir()
    with pytest.raises(ProjectError) as refusal:
        open_project(project / wrong)
    written = re.search(r"write (.*)\.$", str(refusal.value)).group(1)
    assert written == f"{project}{right}"
    assert len(open_project(written))


def test_what_is_said_of_a_folder_of_projects_or_a_misspelt_one_can_be_opened(tmp_path):
    for name in ("photos", "walls"):
        add(tmp_path / name)
    with pytest.raises(ProjectError, match="It holds projects") as refusal:
        open_project(tmp_path)
    assert len(open_project(re.search(r"write ([^,]*),", str(refusal.value)).group(1)))
    for misspelt in ("photo", "photo:ds0", "photo/ds0"):
        with pytest.raises(ProjectError, match="Did you mean") as refusal:
            open_project(tmp_path / misspelt)
        assert len(open_project(re.search(r"mean (.*)\?$", str(refusal.value)).group(1)))


def test_a_project_without_photos_is_refused(tmp_path):
    add(tmp_path).unlink()
    with pytest.raises(ProjectError, match="no images"):
        open_project(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "meta.json").write_text(json.dumps(META.to_json()))
    with pytest.raises(ProjectError, match="has no dataset"):
        open_project(tmp_path / "empty")


# -------------------------------------------------------------------------------------------------------- drawing
CLASSES = ("crack", "hole", "plate", "moss", "fog", "any", "tilted")


def drawn(*labels: sly.Label, classes=CLASSES, unchosen=UNCHOSEN_IS_BACKGROUND, meta=META):
    annotation = {"objects": [one.to_json() for one in labels]}
    indices = label_indices((c.name for c in meta.obj_classes), classes, unchosen)
    return draw_mask(annotation, meta, indices, SIZE)


SQUARE = polygon((2, 3), (2, 12), (9, 12), (9, 3))
SQUARES = [polygon((0, 0), (0, 4), (4, 4), (4, 0)), polygon((9, 9), (9, 12), (12, 12), (12, 9))]


@pytest.mark.parametrize(
    ("one", "index", "expected"),
    [
        (label("crack", sly.Bitmap(box(0, 0, 1, 3) | box(4, 4, 4, 4))), 1, box(0, 0, 1, 3) | box(4, 4, 4, 4)),
        (label("hole", SQUARE), 2, box(2, 3, 9, 12)),
        (label("plate", sly.Rectangle(5, 6, 7, 9)), 3, box(5, 6, 7, 9)),
        (label("plate", sly.Rectangle(-5, -6, 7, 99)), 3, box(0, 0, 7, 29)),
        (label("moss", sly.Multipolygon(SQUARES)), 4, box(0, 0, 4, 4) | box(9, 9, 12, 12)),
        (label("fog", sly.AlphaMask(np.uint8([[0, 127, 128, 255]]), sly.PointLocation(3, 3))), 5, box(3, 5, 3, 6)),
        (label("any", SQUARE), 6, box(2, 3, 9, 12)),
        (label("tilted", sly.OrientedBBox(2, 3, 9, 12)), 7, box(2, 3, 9, 12)),
        (label("tilted", sly.OrientedBBox(8, 2, 10, 16, angle=np.pi / 2)), 7, box(2, 8, 16, 10)),
    ],
    ids=[
        "bitmap",
        "polygon",
        "rectangle",
        "rectangle beyond the border",
        "multipolygon",
        "alpha mask",
        "any shape",
        "box",
        "turned box",
    ],
)
def test_every_shape_with_an_area_is_drawn(one, index, expected):
    assert np.array_equal(drawn(one), np.uint8(index * expected))


def test_a_hole_in_a_polygon_shows_what_lies_below():
    ring = polygon((1, 1), (1, 15), (15, 15), (15, 1), holes=[((5, 5), (5, 10), (10, 10), (10, 5))])
    expected = np.uint8(3 * box(0, 0, 9, 9))
    expected[box(1, 1, 15, 15)] = 2
    expected[box(5, 5, 10, 10)] = 0
    expected[box(5, 5, 9, 9)] = 3
    assert np.array_equal(drawn(PLATE, label("hole", ring)), expected)


def test_later_labels_cover_earlier_ones():
    assert drawn(PLATE, CRACK)[4, 5] == 1
    assert drawn(CRACK, PLATE)[4, 5] == 3


def test_a_polygon_that_crosses_itself_and_the_border_keeps_its_area():
    bow = polygon((2, -4), (14, 20), (2, 20), (14, -4))
    expected = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(expected, [np.array([[-4, 2], [20, 14], [20, 2], [-4, 14]])], 2)
    assert np.array_equal(drawn(label("hole", bow)), expected) and expected[:, :5].any() and expected[:, 15:].any()


def test_a_bitmap_beyond_the_border_is_cut_not_refused():
    beyond = [
        label("crack", sly.Bitmap(np.ones((4, 5), bool), sly.PointLocation(18, 27))),
        label("crack", sly.Bitmap(np.ones((4, 5), bool), sly.PointLocation(-2, -1))),
        label("crack", sly.Bitmap(np.ones((4, 5), bool), sly.PointLocation(40, 40))),
    ]
    assert np.array_equal(drawn(*beyond), box(18, 27, 19, 29) | box(0, 0, 1, 3))


def test_unchosen_classes_become_background_or_ignored():
    background = label(BACKGROUND, sly.Rectangle(15, 20, 18, 25))
    assert set(np.unique(drawn(PLATE, CRACK, background, classes=("crack",)))) == {0, 1}
    ignoring = drawn(PLATE, CRACK, background, classes=("crack",), unchosen=IGNORE)
    assert ignoring[0, 0] == 255 and ignoring[4, 5] == 1 and ignoring[16, 21] == 0 and ignoring[19, 29] == 0
    covered = drawn(CRACK, PLATE, classes=("crack",))
    assert not covered.any(), "an unchosen label over a crack hides it"


def test_one_class_is_ignored_while_others_are_background():
    moss = label("moss", sly.Multipolygon([polygon((12, 20), (12, 25), (16, 25), (16, 20))]))
    mask = drawn(PLATE, CRACK, moss, classes=("crack",), unchosen=Unchosen(ignored=("moss",)))
    assert (mask[0, 0], mask[4, 5], mask[14, 22]) == (0, 1, 255)
    assert (mask == 255).sum() == 30


def test_class_of_ones_own_called_background_is_background_unless_it_is_trained():
    meta = META.add_obj_class(sly.ObjClass("Background", sly.Rectangle))
    all_over = sly.Label(sly.Rectangle(0, 0, 19, 29), meta.get_obj_class("Background"))
    for unchosen in (UNCHOSEN_IS_BACKGROUND, IGNORE):
        assert set(np.unique(drawn(all_over, CRACK, classes=("crack",), unchosen=unchosen, meta=meta))) == {0, 1}
    assert (drawn(all_over, classes=("Background",), meta=meta) == 1).all()
    assert "'Background' would be trained as a class of its own" in background_twice(["crack", "Background"])
    assert background_twice(["crack", "back wall"]) is None


def test_the_order_of_the_chosen_classes_gives_the_indices():
    assert drawn(CRACK, classes=("plate", "crack"))[4, 5] == 2


def test_shapes_without_area_are_refused_only_where_their_class_is_chosen():
    wire = label("wire", sly.Polyline([sly.PointLocation(1, 1), sly.PointLocation(9, 9)]))
    assert drawn(wire, CRACK, classes=("crack",), unchosen=IGNORE).max() == 1
    with pytest.raises(ProjectError, match="class 'wire', is a line.*no area.*bitmap, polygon, rectangle"):
        drawn(wire, classes=("wire",))


def test_a_label_that_the_sdk_cannot_read_is_named():
    unknown = CRACK.to_json() | {"classTitle": "rust"}
    with pytest.raises(ProjectError, match="Label 2 of the annotation .*rust"):
        draw_mask({"objects": [CRACK.to_json(), unknown]}, META, {"crack": 1}, SIZE)


# ------------------------------------------------------------------------------------------------------ preparing
def test_masks_lie_beside_their_photos_with_their_counts(tmp_path):
    add(tmp_path / "p", "a.png", [PLATE, CRACK])
    add(tmp_path / "p", "b.png", [])
    add(tmp_path / "p", "c.png", annotated=False)
    prepared = prepare_labelled(
        open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", unchosen=IGNORE, progress=quiet
    )
    assert prepared.classes == (BACKGROUND, "crack")
    assert [record.name for record, _ in prepared] == ["a.png", "b.png"], "what is not annotated teaches nothing"
    first, second = masks(prepared)
    assert first.dtype == np.uint8 and first.shape == SIZE
    assert prepared.pixels.tolist() == [[500, 6], [600, 0]] and (first == 255).sum() == 94
    assert not second.any()
    assert np.allclose(prepared.class_shares, [1100 / 1106, 6 / 1106])


def test_pixels_and_parts_are_counted_at_the_scale_of_training(tmp_path):
    """Three cracks: two of them one pixel wide, which every fourth pixel of every fourth row may miss."""
    lines = [box(1, 0, 1, 29), box(9, 0, 9, 29), box(14, 0, 17, 29)]
    add(tmp_path / "p", labels=[label("crack", sly.Bitmap(line)) for line in lines])

    def prepare(labels):
        scale = TrainingScale(InputScale(16, 16), labels)
        return prepare_labelled(
            open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", scale=scale, progress=quiet
        )

    for labels in ("nearest", "keep_thin"):
        prepared = prepare(labels)
        small = resize_labels(masks(prepared)[0], (11, 16), labels)
        assert masks(prepared)[0].shape == SIZE
        assert prepared.pixels.tolist() == [[(small == 0).sum(), (small == 1).sum()]]
        assert prepare(labels).parts == prepared.parts, "found in the cache"
    assert prepared.parts == {"crack": (3, 3)}
    assert parts_sentence(prepared, "keep_thin", "source").startswith(
        "Of the parts of each class these are left at the scale of training (source): crack 100% (3 of 3); data.scale"
    )
    own = prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)
    assert own.pixels[0, 1] == sum(line.sum() for line in lines) and parts_sentence(own, "nearest", "source") is None


def test_a_second_call_decodes_and_draws_nothing(tmp_path, monkeypatch):
    add(tmp_path / "p", "a.png")
    add(tmp_path / "p", "b.png", [PLATE, CRACK])
    first = prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)
    monkeypatch.setattr(mask_cache, "read_image", lambda path: pytest.fail(f"decoded {path} again"))
    monkeypatch.setattr(sly.Label, "from_json", lambda *_: pytest.fail("parsed a label again"))
    second = prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)
    prepare_unlabelled(open_project(tmp_path / "p"), tmp_path / "cache", progress=quiet)
    assert first.items == second.items and np.array_equal(first.pixels, second.pixels)


def test_the_cache_notices_every_change(tmp_path):
    add(tmp_path / "p", "a.png", [CRACK, PLATE])

    def mask(classes=("crack",), **settings) -> Path:
        project = open_project(tmp_path / "p")
        return prepare_labelled(project, classes, tmp_path / "cache", progress=quiet, **settings)[0][1]

    add(tmp_path / "p", "a.png", [PLATE, CRACK])
    seen = [mask(), mask(("plate",)), mask(("plate", "crack")), mask(("crack", "plate")), mask(unchosen=IGNORE)]
    add(tmp_path / "p", "a.png", [CRACK])
    seen.append(mask())
    assert len(set(seen)) == len(seen) and all(path.is_file() for path in seen)


def test_a_photo_that_was_replaced_is_read_again(tmp_path):
    path = add(tmp_path / "p")
    prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)
    path.write_bytes(b"broken since")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ProjectError, match="a.png"):
        prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)


@pytest.mark.parametrize("damage", [b"", b"\0" * 60, b"{}", b"[1, {}]", None])
@pytest.mark.parametrize("pattern", ["masks/*.png", "masks/*.json", "images.json"])
def test_what_is_damaged_in_the_cache_is_made_again(tmp_path, pattern, damage):
    """As a power loss leaves it: empty, of zeros, another file's content, or gone."""
    add(tmp_path / "p", "a.png", [CRACK])
    project, cache = open_project(tmp_path / "p"), tmp_path / "cache"
    first = prepare_labelled(project, ["crack"], cache, progress=quiet)
    whole = {path: path.read_bytes() for path in cache.rglob("*.*")}
    [path] = cache.glob(pattern)
    path.unlink() if damage is None else path.write_bytes(damage)
    second = prepare_labelled(project, ["crack"], cache, progress=quiet)
    assert np.array_equal(first.pixels, second.pixels) and np.array_equal(masks(first)[0], masks(second)[0])
    assert {path: path.read_bytes() for path in cache.rglob("*.*")} == whole


def test_cache_that_cannot_be_written_to_serves_what_it_has(tmp_path, monkeypatch):
    add(tmp_path / "p", "a.png", [CRACK])
    project, cache = open_project(tmp_path / "p"), tmp_path / "cache"
    first = prepare_labelled(project, ["crack"], cache, progress=quiet)
    (cache / "images.json").unlink()

    opened = Path.open

    def read_only(path, mode="r", *arguments, **options):
        if "r" not in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    assert prepare_labelled(project, ["crack"], cache, progress=quiet).items == first.items


def test_an_interrupted_write_leaves_no_half_mask(tmp_path, monkeypatch):
    add(tmp_path / "p")
    project = open_project(tmp_path / "p")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare_labelled(project, ["crack"], tmp_path / "cache", progress=quiet)
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert masks(prepare_labelled(project, ["crack"], tmp_path / "cache", progress=quiet))[0].sum() == 6


@pytest.mark.parametrize("stated", [(30, 20), (20, 30)])
def test_labels_and_photo_agree_on_the_exif_orientation(tmp_path, stated):
    """The file holds 20×30 pixels and says "turn me": upright, and in the annotation tool, it is 30×20."""
    crack = label("crack", sly.Bitmap(np.ones((2, 3), bool), sly.PointLocation(1, 2)))
    path = add(tmp_path / "p", "a.jpg", [crack], size=stated)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    if stated == (30, 20):
        prepared = prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)
        assert masks(prepared)[0].shape == (30, 20) == sly.image.read(str(path)).shape[:2]
        assert masks(prepared)[0][1:3, 2:5].all()
    else:
        with pytest.raises(ProjectError, match="30 pixels high and 20 wide.*EXIF"):
            prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=quiet)


def test_progress_is_told_to_the_end(tmp_path, capsys):
    for name in "abc":
        add(tmp_path / "p", f"{name}.png")
    said = []
    prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", progress=said.append)
    assert said[-1] == "Masks of the source: 3 of 3." and not capsys.readouterr().err
    prepare_unlabelled(open_project(tmp_path / "p"), tmp_path / "cache")
    assert "3/3" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.fixture
def broken(tmp_path):
    """A good photo, an unreadable one, one with an annotation of another size and one with a broken annotation."""
    add(tmp_path / "p", "good.png")
    add(tmp_path / "p", "cut.png").write_bytes(b"\x89PNG")
    add(tmp_path / "p", "small.png", size=(10, 30))
    add(tmp_path / "p", "torn.png")
    (tmp_path / "p/ds0/ann/torn.png.json").write_text('{"objects": [')
    return open_project(tmp_path / "p")


def test_all_broken_images_are_named_at_once(broken, tmp_path):
    with pytest.raises(ProjectError) as caught:
        prepare_labelled(broken, ["crack"], tmp_path / "cache", progress=quiet)
    message = str(caught.value)
    assert "3 of 4 images" in message and "skip_broken" in message and "good.png" not in message
    assert all(name in message for name in ("cut.png", "small.png", "torn.png.json", "10 and 30"))


def test_skip_broken_goes_on_without_them_and_says_so(broken, tmp_path):
    said = []
    prepared = prepare_labelled(broken, ["crack"], tmp_path / "cache", skip_broken=True, progress=said.append)
    assert [record.name for record, _ in prepared] == ["good.png"] and len(prepared.left_out) == 3
    assert sum("Left out" in sentence for sentence in said) == 3
    rest = prepare_unlabelled(broken, tmp_path / "cache", skip_broken=True, progress=quiet)
    assert [record.name for record, _ in rest] == ["good.png", "small.png", "torn.png"]
    with pytest.raises(ProjectError, match="1 of 4 images.*\n.*cut.png"):
        prepare_unlabelled(broken, tmp_path / "cache", progress=quiet)


def test_skip_broken_does_not_train_on_nothing(broken, tmp_path):
    bad = replace(broken, records=tuple(r for r in broken if r.name != "good.png"))
    with pytest.raises(ProjectError, match="None is left"):
        prepare_labelled(bad, ["crack"], tmp_path / "cache", skip_broken=True, progress=quiet)


def test_a_class_whose_pixels_are_all_covered_is_refused(tmp_path):
    add(tmp_path / "p", labels=[CRACK, PLATE])
    with pytest.raises(ProjectError, match="no pixel of the class 'crack'"):
        prepare_labelled(open_project(tmp_path / "p"), ["crack", "plate"], tmp_path / "cache", progress=quiet)


def test_classes_without_labels_are_refused_all_at_once_with_those_that_have_some(tmp_path):
    add(tmp_path, "a.png", [CRACK, CRACK])
    add(tmp_path, "b.png", [PLATE])
    project = open_project(tmp_path)
    assert check_labelled(project, ["crack", "plate"], "source") == []
    message = r"source.*no label of the classes 'moss', 'fog'.*leave them out.*--classes.*crack \(2\), plate \(1\)"
    with pytest.raises(ProjectError, match=message):
        check_labelled(project, ["crack", "moss", "fog"], "source")
    with pytest.raises(ProjectError, match="source.*no class 'crak': did you mean 'crack'"):
        check_labelled(project, ["crak"], "source")


def test_classes_that_cannot_be_measured_are_told_all_at_once(tmp_path):
    add(tmp_path / "p", "a.png", [CRACK, PLATE])
    project, said = open_project(tmp_path / "p"), []
    [sentence] = check_labelled(project, ["plate", "moss", "rust"], "validation")
    assert "has no label of the classes 'moss', 'rust': how well they are found is not measured." in sentence
    prepared = prepare_labelled(
        project, ["plate", "moss", "rust"], tmp_path / "cache", role="validation", progress=said.append
    )
    assert prepared.pixels.sum(axis=0).tolist() == [500, 100, 0, 0]
    assert not any("not measured" in one for one in said), "it was told already"
    covered = [label("hole", polygon((1, 1), (1, 3), (3, 3), (3, 1))), CRACK, PLATE]
    add(tmp_path / "p", "a.png", covered)
    prepare_labelled(
        open_project(tmp_path / "p"), ["plate", "hole"], tmp_path / "cache", role="validation", progress=said.append
    )
    assert sum("no label of the class 'hole': how well it is found is not measured" in one for one in said) == 1
    with pytest.raises(ProjectError, match="validation.*no label of the classes 'moss', 'fog'"):
        check_labelled(project, ["moss", "fog"], "validation")
    with pytest.raises(ProjectError, match="validation.*no class 'crak': did you mean 'crack'"):
        check_labelled(project, ["crak"], "validation")


def test_classes_without_area_are_refused_all_at_once_before_anything_is_drawn(tmp_path):
    add(tmp_path, labels=[CRACK])
    project = open_project(tmp_path)
    assert project.shapeless == {"wire": "line"}
    with pytest.raises(ProjectError, match=r"covers no area: 'wire' \(line\)\. Leave them out .*--classes"):
        check_labelled(project, ["crack", "wire"], "source")


@pytest.mark.parametrize("role", ["source", "validation"])
def test_a_project_without_any_label_is_refused(tmp_path, role):
    add(tmp_path, labels=[])
    with pytest.raises(ProjectError, match="no label of the class 'crack' in 1 images.*labels: none"):
        check_labelled(open_project(tmp_path), ["crack"], role)
    (tmp_path / "ds0/ann/a.png.json").unlink()
    with pytest.raises(ProjectError, match="no annotated image"):
        check_labelled(open_project(tmp_path), ["crack"], role)


def test_prepare_checks_for_its_role(tmp_path):
    add(tmp_path / "p", labels=[PLATE])
    with pytest.raises(ProjectError, match="The validation .* no label of the class 'crack'"):
        prepare_labelled(open_project(tmp_path / "p"), ["crack"], tmp_path / "cache", role="validation")


def test_labelled_part_of_the_target_needs_labels_but_not_of_every_class(tmp_path):
    add(tmp_path / "p", labels=[PLATE])

    def prepare(classes):
        return prepare_labelled(
            open_project(tmp_path / "p"), classes, tmp_path / "cache", role="labelled target", progress=lambda _: None
        )

    assert prepare(["crack", "plate"]).pixels.tolist() == [[SIZE[0] * SIZE[1] - 100, 0, 100]]
    with pytest.raises(ProjectError, match="The labelled target .* has no label of the classes 'crack', 'hole'"):
        prepare(["crack", "hole"])
    with pytest.raises(ProjectError, match="has no class 'crak': did you mean 'crack'"):
        prepare(["crak"])


def test_an_empty_list_of_photos_is_refused(tmp_path):
    add(tmp_path)
    none = replace(open_project(tmp_path), records=())
    for check in (lambda: check_labelled(none, ["crack"], "source"), lambda: check_target(none)):
        with pytest.raises(ProjectError, match="no images"):
            check()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "No class was chosen"),
        ([BACKGROUND, "crack"], "is the background"),
        (["crack", "crack"], "chosen twice"),
        ([str(i) for i in range(255)], "at most 254"),
    ],
)
def test_choices_that_no_mask_can_hold_are_refused(tmp_path, classes, message):
    add(tmp_path)
    with pytest.raises(ProjectError, match=message):
        check_labelled(open_project(tmp_path), classes, "source")


def test_a_wrong_setting_for_unchosen_classes_is_refused():
    with pytest.raises(SettingsError, match="Unknown become 'drop'"):
        Unchosen("drop")


def test_photos_and_masks_are_read_without_the_sdk():
    """Serving and the workers of a data loader read photos without the seconds that the SDK's import takes."""
    code = "import sys, common.data.images, common.data.mask_cache; print({'supervisely', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@needs_photos
def test_the_real_photos_prepare(tmp_path):
    folder = SHARED / "data" / "cracks_real"
    validation = prepare_labelled(
        open_project(f"{folder}:validation"), ["crack"], tmp_path, role="validation", progress=quiet
    )
    assert len(validation) == 48 and 0.005 < validation.class_shares[1] < 0.03
    assert len(prepare_unlabelled(open_project(f"{folder}:target"), tmp_path, progress=quiet)) == 107


def test_label_whose_places_no_picture_has_is_named():
    """The SDK reads such coordinates, and fails where it draws them."""
    far = CRACK.to_json() | {
        "geometryType": "polygon",
        "points": {"exterior": [[1e300, 5], [1, 2], [3, 4]], "interior": []},
    }
    far.pop("bitmap", None)
    meta = sly.ProjectMeta([sly.ObjClass(CRACK.obj_class.name, sly.Polygon)])
    with pytest.raises(ProjectError, match=r"Label 1 of road\.png cannot be drawn: .*Correct or delete it"):
        draw_mask({"objects": [far]}, meta, {CRACK.obj_class.name: 1}, SIZE, "road.png")


def test_annotation_nested_without_end_is_named(tmp_path):
    path = tmp_path / "road.png.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ProjectError, match=r"Cannot read the annotation .*road\.png\.json"):
        read_annotation(ImageRecord("ds0", "road.png", tmp_path / "road.png", path))


def test_photo_that_is_gone_is_named_and_not_one_less(tmp_path):
    add(tmp_path / "p", "here.png")
    add(tmp_path / "p", "gone.png").unlink()
    link = add(tmp_path / "p", "link.png")
    link.unlink()
    link.symlink_to(tmp_path / "nowhere.png")
    # As old releases of the SDK named annotations: it is of no photo that is gone.
    add(tmp_path / "p", "old.png.jpg")
    (tmp_path / "p/ds0/ann/old.png.jpg.json").rename(tmp_path / "p/ds0/ann/old.png.json")
    project = open_project(tmp_path / "p")
    with pytest.raises(ProjectError, match="2 of 4 images") as caught:
        prepare_labelled(project, ["crack"], tmp_path / "cache", progress=quiet)
    assert "gone.png" in str(caught.value) and "link.png" in str(caught.value)
    prepared = prepare_labelled(project, ["crack"], tmp_path / "cache", skip_broken=True, progress=quiet)
    assert [record.name for record, _ in prepared] == ["here.png", "old.png.jpg"] and len(prepared.left_out) == 2
