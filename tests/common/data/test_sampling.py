import math

import numpy as np
import pytest

from common.data.sampling import (
    ClassSampler,
    RareClassSettings,
    balancing_temperature,
    class_probabilities,
    class_sampler,
)
from common.hrda.checks import SettingsError

AUTO, EXPLICIT = RareClassSettings("auto"), RareClassSettings("explicit")
CRACKS = ("__bg__", "crack")
# Shares of Cityscapes' 19 classes, most frequent first.
STREET = np.array(
    [36.9, 22.8, 15.9, 7.0, 6.1, 4.0, 1.2, 1.2, 1.2, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.13, 0.1]
)  # fmt: skip


def crack_photos(count=40, *, area=480 * 320, thin=2500):
    """Photos of which all but one in four show a crack: their pixels of background and crack."""
    crack = np.array([0 if i % 4 == 3 else thin + 10 * i for i in range(count)])
    return np.stack([area - crack, crack], axis=1)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"mode": "on"}, "Unknown mode 'on'"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "low"}, "temperature"),
        ({"min_pixels": 2.5}, "min_pixels"),
        ({"min_pixels": -1}, "min_pixels"),
        ({"min_crop_ratio": -0.5}, "min_crop_ratio"),
    ],
)
def test_setting_that_cannot_work_is_refused(values, name):
    with pytest.raises(SettingsError, match=name):
        RareClassSettings(**values)


def test_unquoted_off_means_off():
    assert RareClassSettings(mode=False) == RareClassSettings()
    assert class_sampler(RareClassSettings(), crack_photos(), CRACKS) == (None, "")


@pytest.mark.parametrize(
    "shares",
    [
        [0.985, 0.015],
        [0.5, 0.5 - 1e-9, 1e-9],
        [0.9999, 0.0001],
        STREET / STREET.sum(),
        [0.95, 0.03, 0.015, 0.004, 1e-3],
    ],
)
def test_derived_probabilities_are_neither_uniform_nor_of_one_class(shares):
    shares = np.array(shares)
    drawn = class_probabilities(shares, balancing_temperature(shares))
    assert drawn.sum() == pytest.approx(1)
    assert (np.diff(drawn[np.argsort(shares)]) <= 0).all(), "the rarer, the more often"
    assert drawn.min() == pytest.approx(1 / (2 * len(shares)), rel=1e-6)
    assert 1 / len(shares) < drawn.max() <= 0.75 + 1e-6


def test_equal_classes_are_drawn_equally():
    shares = np.full(4, 0.25)
    assert balancing_temperature(shares) == math.inf
    assert class_probabilities(shares, math.inf).tolist() == [0.25] * 4


def test_published_numbers_give_the_published_probabilities():
    shares = STREET / STREET.sum()
    drawn = class_probabilities(shares, 0.01)
    expected = np.exp((1 - shares) / 0.01 - 100)
    assert drawn == pytest.approx(expected / expected.sum())
    assert drawn[:3].max() < 1e-6


def test_thin_class_keeps_the_photos_that_the_published_threshold_would_leave_out():
    pixels = crack_photos()
    sampler, said = class_sampler(AUTO, pixels, CRACKS)
    assert sampler.photos[1].tolist() == [i for i in range(40) if i % 4 != 3]
    assert sampler.photos[0].tolist() == list(range(40)), "photos without a crack are still seen, for the background"
    assert sampler.probabilities == pytest.approx([0.25, 0.75])
    assert "crack 75% (covers 1.3%; from 30 of 30 photos" in said
    assert "\n" not in said

    published, said = class_sampler(EXPLICIT, pixels, CRACKS)
    assert published.probabilities.tolist() == [1, 0]
    assert "Never for crack: no photo has enough of it." in said


def test_slivers_are_left_out_and_never_a_class():
    pixels = np.array([[1000, 100, 0, 0], [1000, 120, 3, 0], [1000, 4, 0, 0], [1000, 0, 0, 0]])
    sampler, said = class_sampler(AUTO, pixels, ("__bg__", "a", "b", "none"))
    assert [photos.tolist() for photos in sampler.photos] == [[0, 1, 2, 3], [0, 1], [1], []]
    assert sampler.probabilities[3] == 0
    assert "Never for none" in said


def test_photo_of_another_size_counts_by_its_share():
    large, small = [10_000 - 200, 200], [2500 - 50, 50]
    sampler, _ = class_sampler(AUTO, np.array([large, small, [10_000 - 12, 12]]), CRACKS)
    assert sampler.photos[1].tolist() == [0, 1]


def test_photo_of_which_nothing_counts_is_no_error():
    sampler, _ = class_sampler(AUTO, np.array([[0, 0], [90, 10]]), CRACKS)
    assert [photos.tolist() for photos in sampler.photos] == [[1], [1]]


def test_thresholds_that_leave_no_photo_are_refused_with_the_remedy():
    with pytest.raises(SettingsError, match=r"none of the 40 labelled target photos .* \(200000\).*mode: auto"):
        class_sampler(RareClassSettings("explicit", min_pixels=200_000), crack_photos(), CRACKS, "labelled target")


def test_sentence_of_many_classes_stays_short():
    pixels = np.random.default_rng(0).integers(1, 100, (10, 150))
    _, said = class_sampler(AUTO, pixels, [f"class {i}" for i in range(150)])
    assert "142 more" in said
    assert len(said) < 1200


def test_classes_and_photos_are_drawn_as_often_as_said():
    sampler, _ = class_sampler(AUTO, crack_photos(), CRACKS)
    rng = np.random.default_rng(0)
    drawn = [sampler.draw(rng) for _ in range(4000)]
    assert np.mean([label for label, _ in drawn]) == pytest.approx(0.75, abs=0.03)
    photos = np.bincount([photo for label, photo in drawn if label == 1], minlength=40)
    assert photos[3::4].max() == 0
    assert photos[photos > 0].min() > 60 and photos.max() < 145


@pytest.mark.parametrize("crop_pixels", [None, 50.0])
def test_crop_always_holds_what_it_was_drawn_for(crop_pixels):
    mask = np.zeros((400, 600), np.uint8)
    mask[380:384, 7:10] = 2
    sampler = ClassSampler(np.array([0, 0, 1.0]), (np.array([]), np.array([]), np.array([0])), crop_pixels)
    places = [sampler.place(mask, 2, (48, 48), np.random.default_rng(seed)) for seed in range(40)]
    assert all((mask[place] == 2).any() for place in places)
    assert all(mask[place].shape == (48, 48) for place in places)
    assert len({rows.start for rows, _ in places}) > 5
    assert mask[sampler.place(mask, 1, (48, 48), np.random.default_rng(0))].shape == (48, 48), "lost by resizing"


def test_crop_holds_more_of_its_class_than_by_chance():
    mask = np.zeros((256, 512), np.uint8)
    mask[:, 250:254] = 1
    mask[40:60, 480:500] = 1
    sampler = ClassSampler(np.array([0.25, 0.75]), (np.array([0]), np.array([0])))
    held = [np.mean(mask[sampler.place(mask, 1, (128, 128), np.random.default_rng(s))]) for s in range(100)]
    average = mask.mean()
    assert min(held) >= average / 2
    assert np.mean(held) > 1.5 * average
