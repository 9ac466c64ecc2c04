"""Pictures of validations on the page, and which files the app hands out for them."""

from pathlib import Path

import pytest
from supervisely.app import DataJson, StateJson

from train.page.monitor import MonitorCard
from train.page.previews import PHOTOS, PICTURES, PreviewBoard, picture_file
from train.run.state import Preview


@pytest.fixture
def board(card: MonitorCard) -> PreviewBoard:
    return card.previews


def previews(iteration: int, validation: int = 2, target: int = 1) -> list[Preview]:
    kinds = ["validation"] * validation + ["target"] * target
    return [
        Preview(kind, "a.jpg", {role: f"/run/previews/{iteration:06d}/{n}_{role}.jpg" for role in PICTURES[kind]})
        for n, kind in enumerate(kinds)
    ]


def url(kind: str, photo: int, role: str) -> str:
    return DataJson()[f"preview_{kind}_{photo}_{role}"]["url"]


def test_board_follows_the_validations_until_a_person_looks_back(board: PreviewBoard):
    board.clear()
    assert DataJson()["previews"]["hide"]
    board.add(10, previews(10), "r")
    assert not DataJson()["previews"]["hide"]
    assert DataJson()["preview_slider"]["hide"], "one stop is no choice"
    board.add(20, previews(20), "r")
    assert (DataJson()["preview_slider"]["min"], StateJson()["preview_slider"]["value"]) == (-1, 0)
    assert url("target", 1, "pseudo_label") == "previews/000020/2_pseudo_label.jpg?run=r", "relative to the page"

    StateJson()["preview_slider"]["value"] = -1
    board.choose(-1)
    board.add(30, previews(30), "r")
    assert StateJson()["preview_slider"]["value"] == -2
    assert url("validation", 1, "prediction").startswith("previews/000010/")
    assert DataJson()["preview_caption"]["text"] == "Validation 1 of 3, after iteration 10"

    board.choose(0)
    board.add(40, previews(40), "r")
    assert StateJson()["preview_slider"]["value"] == 0
    assert DataJson()["preview_caption"]["text"] == "Validation 4 of 4, after iteration 40"


def test_value_that_a_browser_sends_late_is_no_choice(board: PreviewBoard):
    """Each request of a page brings the page's whole state, which may be that of a moment ago."""
    board.clear()
    for iteration in (10, 20, 30):
        board.add(iteration, previews(iteration), "r")
    board.choose(-2)
    board.clear()
    board.add(10, previews(10), "r")
    StateJson()["preview_slider"]["value"] = -2
    board.add(20, previews(20), "r")
    assert StateJson()["preview_slider"]["value"] == 0
    assert DataJson()["preview_caption"]["text"] == "Validation 2 of 2, after iteration 20"


def test_rows_without_photo_are_hidden(board: PreviewBoard):
    board.clear()
    board.add(10, previews(10, validation=PHOTOS + 2, target=0), "r")
    assert not DataJson()[f"preview_validation_{PHOTOS}"]["hide"]
    assert DataJson()["preview_target_1"]["hide"]
    assert DataJson()["preview_target"]["hide"]


def test_validation_without_pictures_changes_nothing(board: PreviewBoard):
    board.clear()
    board.add(10, [], "r")
    assert DataJson()["previews"]["hide"]


@pytest.mark.parametrize(
    ("iteration", "name"),
    [
        ("..", "secret.jpg"), ("000010", "../secret.jpg"), ("000010", ".."), ("000010", "other.txt"),
        ("000010", "missing.jpg"), ("", "secret.jpg"), ("000010", "link.jpg"), ("000010/..", "secret.jpg"),
        ("000010", "x" * 300 + ".jpg"),
    ],
)  # fmt: skip
def test_nothing_but_pictures_of_the_run_is_handed_out(tmp_path: Path, iteration: str, name: str):
    folder = tmp_path / "previews"
    (folder / "000010").mkdir(parents=True)
    for path in (tmp_path / "secret.jpg", folder / "secret.jpg", folder / "000010" / "other.txt"):
        path.write_bytes(b"secret")
    (folder / "000010" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    picture = folder / "000010" / "photo.jpg"
    picture.write_bytes(b"picture")
    assert picture_file(folder, "000010", "photo.jpg") == picture.resolve()
    assert picture_file(folder, iteration, name) is None
