"""What the result card says of the best checkpoint."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.metrics.photos import PhotoTally
from train.page.result import describe, error_picture, html_errors, html_table
from train.run.scores import HEADINGS, Scores, table


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({}, "last.pth. It was not measured."),
        ({"mIoU": 0.5}, "last.pth. mIoU 50.0%."),
        ({"mIoU": 0.5, "iou/crack": 0.25}, "last.pth. mIoU 50.0%. IoU: crack 25.0%."),
        (
            {
                "mIoU": 0.5,
                "f1_2px/crack": 0.9,
                "cldice/crack": 0.8,
                "best_iou/crack": 0.3,
                "best_threshold/crack": 0.37,
            },
            "last.pth. mIoU 50.0%. F1 within 2 px: crack 90.0%. clDice: crack 80.0%. "
            "Best threshold: crack 0.37 (IoU 30.0%).",
        ),
    ],
)
def test_result_says_what_was_measured(metrics: dict[str, float], sentence: str):
    assert describe("last.pth", metrics) == sentence


def test_many_classes_are_counted_instead_of_listed():
    metrics = {"mIoU": 0.5} | {f"{score}/class {number}": 0.5 for score in ("iou", "cldice") for number in range(12)}
    assert describe("best.pth", metrics).endswith("class 9 50.0% and 2 more.")


class Page(HTMLParser):
    """Cells, links and pictures of a piece of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("td", "th"):
            self.cells.append("")
        elif tag == "a":
            self.links.append(found["href"])
        elif tag == "img":
            self.pictures.append(found["src"])

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.fixture
def scores() -> Scores:
    tally = PhotoTally(("__bg__", "<b>crack"))
    truth = np.zeros((20, 40), np.uint8)
    truth[10] = 1
    for number, length in enumerate((40, 10, 30, 0, 20, 35)):
        crack = np.full(truth.shape, 0.1, np.float32)
        crack[10, :length] = 0.9
        tally.update(f"<i>{number}.jpg", number, (crack > 0.5).astype(np.uint8), truth, np.stack([1 - crack, crack]))
    return Scores(40, tally.photos())


def test_table_has_the_scores_and_names_that_are_no_html(scores: Scores):
    [row] = table(scores)
    html = html_table([row])
    assert Page(html).cells == [*HEADINGS, "<b>crack", row.threshold, *row.cells]
    assert "<b>" not in html


def test_worst_photos_are_links_to_their_pictures_with_names_that_are_no_html(scores: Scores, tmp_path: Path):
    for number in (1, 2):
        for kind in ("photo", "errors"):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}_{kind}.jpg")
    html = html_errors(scores, tmp_path, "7")
    page = Page(html)
    assert page.pictures == [f"errors/{number}_errors.jpg?run=7" for number in (1, 2)]
    assert page.links == [f"errors/{n}_{kind}.jpg?run=7" for n in (1, 2) for kind in ("errors", "photo")]
    assert "<i>" not in html
    assert html.index("&lt;i&gt;3.jpg") < html.index("&lt;i&gt;1.jpg"), "the worst first"
    assert html_errors(scores, tmp_path / "none", "7") == ""


@pytest.mark.parametrize("name", ["../secret.jpg", "1_errors.txt", "", ".", "2_errors.jpg", "link.jpg"])
def test_nothing_but_pictures_of_errors_is_given_out(name: str, tmp_path: Path):
    folder = tmp_path / "errors"
    folder.mkdir()
    (tmp_path / "secret.jpg").touch()
    (folder / "1_errors.txt").touch()
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "1_errors.jpg").touch()
    assert error_picture(folder, name) is None
    assert error_picture(folder, "1_errors.jpg") == folder / "1_errors.jpg"
