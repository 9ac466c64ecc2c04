"""Files that cannot be read any more: which disk is waited for, and which photo is lost."""

import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.folders import ImageRecord, ProjectError, for_each_image
from common.data.images import ImageError, read_image
from common.data.labelled import count_labels
from common.data.reading import PAUSES_S, MaskLost, Patience, only_this_one, read_labelled_photo, read_mask


@pytest.fixture
def photo(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.full((8, 9, 3), 7, np.uint8))
    return tmp_path / "a.png"


class Waits:
    """Patience without waiting: what is said and how long is waited; at a number of pauses something happens."""

    def __init__(self, at: int = 0, action=None) -> None:
        self.said, self.pauses = [], []
        self._at, self._action = at, action
        self.patience = Patience(self.said.append, self.pause)

    def pause(self, seconds: float) -> bool | None:
        self.pauses.append(seconds)
        return self._action() if len(self.pauses) == self._at else None


@pytest.fixture
def away(monkeypatch):
    """A disk whose files answer with an error while its list says True."""
    answers = {"away": True, "number": errno.EIO, "below": Path("/")}
    read = Path.read_bytes, Path.open

    def fail_or(call):
        def made(path, *arguments, **options):
            if answers["away"] and path.is_relative_to(answers["below"]):
                raise OSError(answers["number"], os.strerror(answers["number"]), str(path))
            return call(path, *arguments, **options)

        return made

    monkeypatch.setattr(Path, "read_bytes", fail_or(read[0]))
    monkeypatch.setattr(Path, "open", fail_or(read[1]))
    return answers


def test_share_that_comes_back_within_a_minute_costs_the_wait_and_no_photo(photo, away):
    waits = Waits(6, lambda: away.update(away=False))
    lost = {}
    assert waits.patience.read(lambda: read_image(photo), photo, lost).shape == (8, 9, 3)
    assert not lost
    assert sum(waits.pauses) >= 30
    [sentence] = waits.said
    assert sentence.startswith(f"Cannot read the image {photo}: Input/output error. Its disk seems to be away")
    assert "for 2 minutes" in sentence


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN])
def test_share_that_stays_away_is_no_reason_to_leave_photos_out(photo, away, number):
    away["number"] = number
    waits, lost = Waits(), {}
    with pytest.raises(ImageError, match=str(photo)):
        waits.patience.read(lambda: read_image(photo), photo, lost)
    assert not lost
    assert waits.pauses == list(PAUSES_S)


def test_share_that_shows_an_empty_folder_is_away(tmp_path):
    """As the place where it was mounted does."""
    waits = Waits()
    with pytest.raises(ImageError):
        waits.patience.read(lambda: read_image(tmp_path / "a.png"), tmp_path / "a.png", {})
    assert waits.pauses == list(PAUSES_S)


def test_one_file_on_a_bad_place_of_its_disk_is_left_out_in_the_end(photo, away):
    away["below"] = photo
    waits, lost = Waits(), {}
    assert waits.patience.read(lambda: read_image(photo), photo, lost) is None
    assert list(lost) == [photo]
    assert waits.pauses == list(PAUSES_S)


def test_wait_ends_when_it_is_told_to(photo, away):
    waits = Waits(2, lambda: True)
    with pytest.raises(ImageError):
        waits.patience.read(lambda: read_image(photo), photo, {})
    assert len(waits.pauses) == 2


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:40])])
def test_photo_that_is_gone_or_cut_off_is_read_once_more_and_not_waited_for(photo, harm):
    content = photo.read_bytes()
    harm(photo)
    waits, lost = Waits(), {}
    with pytest.raises(ImageError, match=str(photo)):
        waits.patience.read(lambda: read_image(photo), photo)
    assert waits.patience.read(lambda: read_image(photo), photo, lost) is None
    assert str(photo) in lost[photo]
    assert (len(waits.pauses), waits.said) == (2, [])
    being_written = Waits(1, lambda: photo.write_bytes(content) and None)
    assert being_written.patience.read(lambda: read_image(photo), photo).shape == (8, 9, 3)


def test_photo_of_another_size_than_its_labels_is_noticed(photo):
    mask = photo.with_name("mask.png")
    cv2.imwrite(str(mask), np.zeros((8, 9), np.uint8))
    assert read_labelled_photo(photo, mask).shape == (8, 9, 3)
    cv2.imwrite(str(photo), np.zeros((16, 18, 3), np.uint8))
    with pytest.raises(ImageError, match="16 pixels high and 18 wide, where 8 and 9 were prepared") as caught:
        read_labelled_photo(photo, mask)
    assert only_this_one(caught.value)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x")])
def test_mask_that_is_lost_is_never_taken_for_a_lost_photo(photo, harm):
    mask = photo.with_name("mask.png")
    cv2.imwrite(str(mask), np.zeros((8, 9), np.uint8))
    harm(mask)
    for read in (lambda: read_mask(mask), lambda: read_labelled_photo(photo, mask)):
        with pytest.raises(MaskLost, match=str(mask)):
            Waits().patience.read(read, photo, {})


def test_preparing_waits_for_a_disk_and_refuses_to_leave_all_of_it_out(photo, away):
    records = [ImageRecord("d", path.name, path, None) for path in sorted(photo.parent.iterdir())]

    def sizes(waits: Waits):
        work = lambda record: read_image(record.image_path).shape[:2]  # noqa: E731
        return for_each_image(records, work, "Photos", True, lambda _: None, waits.patience)[0]

    with pytest.raises(ProjectError, match=r"Photos: Cannot read the image .*a\.png.*Its disk is away"):
        sizes(Waits())
    assert sizes(Waits(3, lambda: away.update(away=False))) == [(record, (8, 9)) for record in records]


def test_labels_on_a_disk_that_is_away_do_not_count_as_none(photo, away):
    record = ImageRecord("d", photo.name, photo, photo.with_name("b.png"))
    with pytest.raises(ProjectError, match=r"Cannot read the annotation .*b\.png: .*Input/output error"):
        count_labels([record])
    away["away"] = False
    assert not count_labels([record]), "one annotation that is damaged is named later, with all others"
