import numpy as np
import pytest

from common.data.transforms import (
    AUGMENTATION_LEVELS,
    AugmentationSettings,
    InputScale,
    augment_colour,
    augment_geometry,
    augmentation_level,
    crop_place,
    crop_place_with_foreground,
    pad_to,
    resize_mask,
)
from common.hrda.settings import IGNORE_LABEL, SettingsError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),  # the shorter side decides
        ((480, 640), (480, 640)),  # the longer side decides
        ((960, 1280), (480, 640)),
        ((1280, 960), (640, 480)),  # upright photos get the same area
        ((100, 400), (160, 640)),
        ((256, 256), (512, 512)),  # small photos are enlarged
    ],
)
def test_scale_fits_both_edges_and_keeps_the_aspect_ratio(size, expected):
    assert InputScale(long_edge=640, short_edge=512).size(*size) == expected


def test_own_resolution_leaves_the_photo_alone():
    image = np.zeros((37, 53, 3), np.uint8)
    assert InputScale(None, None).resize(image) is image
    assert InputScale(None, None).edges is None


@pytest.mark.parametrize(
    "edges", [(640, None), (None, 512), (630, 512), (512, 640), (0, 0), (640.0, 512), (True, True)]
)
def test_scale_that_cannot_work_is_refused(edges):
    with pytest.raises(SettingsError, match="multiples of 16"):
        InputScale(*edges)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"flip": 1}, "flip"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": 1.0}, "scale"),
        ({"photometric": 1.5}, "photo"),
    ],
)
def test_augmentation_that_cannot_work_is_refused(values, name):
    with pytest.raises(SettingsError, match=name):
        AugmentationSettings(**values)


def test_image_and_mask_stay_together_through_all_geometry():
    settings = AugmentationSettings(flip=True, rotate=True, scale=(0.5, 2.0))
    mask = np.zeros((40, 60), np.uint8)
    mask[5:25, 10:22] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    shapes = set()
    for seed in range(20):
        changed, changed_mask = augment_geometry(image, mask, settings, np.random.default_rng(seed))
        assert changed.shape[:2] == changed_mask.shape
        assert set(np.unique(changed_mask)) <= {0, 1}
        # Bilinear and nearest resizing may differ along the border of the region only.
        assert np.mean((changed[..., 0] > 127) != (changed_mask == 1)) < 0.03
        shapes.add(changed_mask.shape[0] > changed_mask.shape[1])
    assert shapes == {True, False}


def test_flip_alone_mirrors_about_half_of_the_images():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    mask = np.arange(4, dtype=np.uint8).reshape(2, 2)
    flipped = [
        augment_geometry(image, mask, AugmentationSettings(), np.random.default_rng(s))[1][0, 0] for s in range(200)
    ]
    assert 80 < sum(value == 1 for value in flipped) < 120


def test_mask_resize_never_blends_indices():
    mask = np.array([[0, 200], [3, IGNORE_LABEL]], np.uint8)
    assert set(np.unique(resize_mask(mask, (9, 11)))) == {0, 3, 200, IGNORE_LABEL}


def test_colour_stays_in_its_range_and_off_means_untouched():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert augment_colour(image, 0, np.random.default_rng(0)) is image
    for seed in range(10):
        changed = augment_colour(image, 0.2, np.random.default_rng(seed))
        assert changed.dtype == np.uint8
        assert 0 < np.abs(changed.astype(int) - image).mean() < 50


def test_crops_reach_every_border_and_take_short_axes_whole():
    rng = np.random.default_rng(0)
    places = [crop_place((12, 8), (10, 16), rng) for _ in range(100)]
    assert {rows.start for rows, _ in places} == {0, 1, 2}
    assert all(np.zeros((12, 8))[place].shape == (10, 8) for place in places)


def test_crop_with_foreground_finds_a_corner_that_a_single_draw_would_miss():
    mask = np.zeros((200, 200), np.uint8)
    mask[:60, :60] = 1
    mask[60:, 60:] = IGNORE_LABEL  # ignored pixels are no foreground
    found = [
        bool((mask[crop_place_with_foreground(mask, (40, 40), np.random.default_rng(s), min_share=0.01)] == 1).any())
        for s in range(50)
    ]
    by_chance = [bool((mask[crop_place(mask.shape, (40, 40), np.random.default_rng(s))] == 1).any()) for s in range(50)]
    assert np.mean(by_chance) < 0.4
    assert np.mean(found) > 0.8


def test_crop_with_foreground_copes_with_a_photo_without_any():
    place = crop_place_with_foreground(np.zeros((50, 50), np.uint8), (40, 40), np.random.default_rng(0), min_share=0.01)
    assert np.zeros((50, 50))[place].shape == (40, 40)


def test_padding_goes_to_bottom_and_right():
    padded = pad_to(np.ones((2, 3, 3), np.float32), (4, 4), 0.0)
    assert padded.shape == (4, 4, 3)
    assert padded[:2, :3].min() == 1
    assert padded[2:].max() == padded[:, 3:].max() == 0


def test_levels_of_augmentation_differ_more_from_level_to_level():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    sizes, changes = [], []
    for level in AUGMENTATION_LEVELS.values():
        drawn = [augment_geometry(image, mask, level, rng)[0] for _ in range(20)]
        sizes.append(len({one.shape for one in drawn}))
        coloured = [augment_colour(image, level.photometric, rng).astype(int) for _ in range(20)]
        changes.append(np.mean([np.abs(one - image).mean() for one in coloured]))
    assert sizes[:2] == [1, 1] and sizes[3] > sizes[2] > 1
    assert changes[0] == 0 and all(np.diff(changes) > 0)


def test_level_is_told_by_exact_values_and_the_default_is_light():
    assert augmentation_level(AugmentationSettings()) == "light"
    assert [augmentation_level(level) for level in AUGMENTATION_LEVELS.values()] == list(AUGMENTATION_LEVELS)
    assert augmentation_level(AugmentationSettings.from_dict({"flip": False, "photometric": 0})) == "none"
    assert augmentation_level(AugmentationSettings(photometric=0.11)) is None
