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
    crop_place_around,
    crop_place_holding,
    straighten,
)
from common.hrda.checks import SettingsError


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
    assert InputScale(None, None).scale is None


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((37, 53), 2.0, (74, 106)),
        ((320, 480), 1.5, (480, 720)),
        ((480, 320), 0.5, (240, 160)),
        ((3, 900), 0.1, (1, 90)),
    ],
)
def test_factor_is_of_each_photos_own_size(size, factor, expected):
    scale = InputScale(None, None, factor)
    assert scale.size(*size) == expected
    assert scale.resize(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


@pytest.mark.parametrize("edges", [(640, 512), (None, 512), (640, None)])
def test_factor_beside_edges_is_refused(edges):
    with pytest.raises(SettingsError, match="set long_edge and short_edge to null, or factor to 1"):
        InputScale(*edges, factor=2.0)


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


def test_crop_that_must_hold_a_corner_finds_what_a_single_draw_would_miss():
    wanted = np.zeros((200, 200), bool)
    wanted[:60, :60] = True
    found = [wanted[crop_place_holding(wanted, (40, 40), np.random.default_rng(s), needed=16)].any() for s in range(50)]
    by_chance = [wanted[crop_place(wanted.shape, (40, 40), np.random.default_rng(s))].any() for s in range(50)]
    assert np.mean(by_chance) < 0.4
    assert np.mean(found) > 0.8


def test_crop_of_a_photo_without_what_it_must_hold_is_any():
    place = crop_place_holding(np.zeros((50, 50), bool), (40, 40), np.random.default_rng(0), needed=1)
    assert np.zeros((50, 50))[place].shape == (40, 40)


def test_crops_around_a_pixel_are_all_that_hold_it_and_none_else():
    rng = np.random.default_rng(0)
    for pixel, tops, lefts in (((0, 29), {0}, set(range(17, 21))), ((12, 14), set(range(5, 11)), set(range(2, 15)))):
        places = [crop_place_around(pixel, (18, 33), (8, 13), rng) for _ in range(800)]
        assert {rows.start for rows, _ in places} == tops
        assert {columns.start for _, columns in places} == lefts
    rows, columns = crop_place_around((3, 3), (5, 33), (8, 13), rng)
    assert (rows.start, np.zeros((5, 33))[rows, columns].shape) == (0, (5, 13)), "a short axis is taken whole"


@pytest.mark.parametrize("channels", [(), (3,)])
def test_mirrored_and_turned_views_are_straightened_to_the_same_pixels(channels):
    whole = np.random.default_rng(0).integers(0, 256, (9, 14, *channels), dtype=np.uint8)
    for part in (whole, whole[2:7, 3:11], whole[:1], whole[:, 4:5]):
        for turns in range(4):
            for axes in ((), (0,), (1,), (0, 1)):
                view = np.flip(np.rot90(part, turns), axes)
                straight = straighten(view)
                assert straight.flags["C_CONTIGUOUS"]
                assert np.array_equal(straight, view)


def test_one_map_of_colour_is_brightness_then_contrast_then_saturation():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    for seed in range(5):
        brightness, contrast, saturation = 1 + np.random.default_rng(seed).uniform(-0.4, 0.4, size=3)
        pixels = image * brightness
        pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
        grey = (pixels @ [0.299, 0.587, 0.114])[..., None]
        expected = np.clip(np.rint((pixels - grey) * saturation + grey), 0, 255)
        changed = augment_colour(image[:, ::-1], 0.4, np.random.default_rng(seed))[:, ::-1]
        assert changed.dtype == np.uint8
        assert np.abs(changed - expected).max() <= 1
        assert np.mean(changed != expected) < 1e-3, "but for halves that rounding may take either way"


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
