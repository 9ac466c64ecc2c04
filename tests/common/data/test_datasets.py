import cv2
import numpy as np
import pytest
import torch

from common.data.datasets import MemoryCache, Recipe, TrainingBatches
from common.data.images import ImageError
from common.data.labels import skeleton_tubes
from common.data.loading import iterate
from common.data.reading import MaskLost, Patience, read_mask
from common.data.sampling import ClassSampler
from common.data.transforms import AugmentationSettings, InputScale
from common.data.validation import validation_photos
from common.hrda.pixels import IGNORE_LABEL, denormalise

PLAIN = AugmentationSettings(flip=False, photometric=0.0)
OWN = InputScale(None, None)


@pytest.fixture
def photos(tmp_path):
    """Seven 64×96 photos, photo i of grey level 30·i + 10; its mask is class 1 in the top left 24×24."""
    pairs = []
    for index in range(7):
        image, mask = tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png"
        cv2.imwrite(str(image), np.full((64, 96, 3), 30 * index + 10, np.uint8))
        labels = np.zeros((64, 96), np.uint8)
        labels[:24, :24] = 1
        cv2.imwrite(str(mask), labels)
        pairs.append((image, mask))
    return pairs


def batches(photos, *, target=True, batch_size=2, iterations=14, seed=0, more=None, **recipe):
    recipe = Recipe(**({"crop_size": (64, 64), "scale": OWN, "augmentation": AugmentationSettings()} | recipe))
    images = [image for image, _ in photos] if target else []
    given = {"batch_size": batch_size, "iterations": iterations, "seed": seed} | (more or {})
    return TrainingBatches(photos, images, recipe, **given)


def equal(first, second):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def photo_numbers(images):
    return [round((value - 10) / 30) for value in denormalise(images).amax(dim=(1, 2, 3)).tolist()]


def test_shapes_and_kinds(photos):
    batch = batches(photos)[0]
    assert batch.source_images.shape == batch.target_images.shape == (2, 3, 64, 64)
    assert batch.source_labels.shape == batch.target_valid.shape == (2, 64, 64)
    kinds = [tensor.dtype for tensor in batch[:4]]
    assert kinds == [torch.float32, torch.int64, torch.float32, torch.bool]


def test_batch_depends_on_seed_and_iteration_only(photos):
    first, second = batches(photos), batches(photos, iterations=100)
    later = [second[k] for k in (5, 3, 0)]
    assert equal(first[5], later[0])
    assert equal(first[0], later[2])
    assert not equal(first[0], first[1])
    assert not equal(first[0], batches(photos, seed=1)[0])


def test_workers_and_the_start_of_a_resumed_run_change_nothing(photos):
    here = list(iterate(batches(photos, iterations=5), 0, 0))
    workers = list(iterate(batches(photos, iterations=5), 2, 2))
    assert len(here) == 5
    assert len(workers) == 3
    assert all(equal(a, b) for a, b in zip(here[2:], workers, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_tubes_are_those_of_the_cropped_labels_wherever_they_are_made(photos, workers):
    scaled = AugmentationSettings(rotate=True, scale=(0.5, 2.0))
    for batch in iterate(batches(photos, iterations=3, augmentation=scaled, tubes=True), 0, workers):
        expected = np.stack([skeleton_tubes(labels) for labels in batch.source_labels.numpy().astype(np.uint8)])
        assert np.array_equal(batch.source_tubes.numpy(), expected > 0)
        assert batch.source_tubes.any() and batch.source_tubes.dtype == torch.bool
    assert batches(photos)[0].source_tubes is None


def test_a_fifth_of_the_bytes_travel_from_worker_to_training(photos):
    packed, batch = batches(photos).packed(0), batches(photos)[0]
    travelling = sum(tensor.nbytes for crops in packed for tensor in crops[:2])
    assert travelling < sum(tensor.nbytes for tensor in batch[:5]) / 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("samples_by_class", [False, True])
def test_another_photo_is_drawn_for_a_lost_one_wherever_batches_are_drawn(photos, workers, samples_by_class):
    sampler = ClassSampler(np.array([0.5, 0.5]), (np.arange(7), np.array([2]))) if samples_by_class else None
    more = {"skip_broken": True, "sampler": sampler}
    whole = batches(photos, target=False, batch_size=1, augmentation=PLAIN, more=more)
    before = [photo_numbers(whole[k].source_images)[0] for k in range(14)]
    photos[2][0].unlink()
    lossy = batches(photos, target=False, batch_size=1, augmentation=PLAIN, more=more)
    said = []
    drawn = iterate(lossy, 0, workers, patience=Patience(said.append, lambda _: None))
    after = [photo_numbers(batch.source_images)[0] for batch in drawn]
    assert 2 in before and 2 not in after
    assert [old if old != 2 else new for old, new in zip(before, after, strict=True)] == after, (
        "the others are the same"
    )
    assert list(lossy.lost) == [photos[2][0]]
    assert said == []


def test_memory_is_filled_without_what_is_lost_and_says_when_nothing_is_left(photos):
    lossy = batches(photos, target=False, more={"skip_broken": True, "cache": MemoryCache(2**30)})
    photos[0][0].unlink()
    lossy.fill_cache(patience=Patience(pause=lambda _: None))
    assert list(lossy.lost) == [photos[0][0]]
    lossy.lost.update({image: "gone" for image, _ in photos})
    with pytest.raises(ImageError, match=r"None of the photos to draw from can be read any more. The last one: gone"):
        lossy.packed(0)


def test_lost_mask_and_photo_that_may_not_be_left_out_end_the_batches(photos):
    at_once = Patience(pause=lambda _: None)
    for skips, index, part, kind in ((False, 0, 0, ImageError), (True, 1, 1, MaskLost)):
        lossy = batches(photos[index : index + 1], target=False, more={"skip_broken": skips})
        photos[index][part].unlink()
        with pytest.raises(kind, match=str(photos[index][part])):
            next(iterate(lossy, 0, 0, patience=at_once))


def test_training_without_a_target_passes_through_workers(photos):
    [batch] = iterate(batches(photos, target=False, iterations=1), 0, 1)
    assert batch.target_images is None
    assert batch.target_valid is None


def test_every_photo_comes_once_a_pass_and_domains_are_not_in_step(photos):
    data = batches(photos, batch_size=1, iterations=14, augmentation=PLAIN)
    source = [photo_numbers(data[k].source_images)[0] for k in range(14)]
    target = [photo_numbers(data[k].target_images)[0] for k in range(14)]
    for order in (source, target):
        assert sorted(order[:7]) == sorted(order[7:]) == list(range(7))
        assert order[:7] != order[7:]
    assert source != target


def test_memory_changes_no_pixel_and_keeps_to_its_limit(photos):
    one_photo = 64 * 96 * 3
    cache = MemoryCache(2 * one_photo)
    with_cache, without = batches(photos, more={"cache": cache}), batches(photos)
    with_cache.fill_cache()
    assert cache.full
    for k in range(4):
        assert equal(with_cache[k], without[k])
        assert equal(with_cache[k], without[k])


def test_memory_spares_decoding(photos):
    given = {"margins": (8, 0, 0, 24)}
    before = batches(photos, **given)[0]
    data = batches(photos, more={"cache": MemoryCache(2**30)}, **given)
    seen = []
    data.fill_cache(lambda done, of: seen.append((done, of)))
    assert seen[-1] == (14, 14)
    for path in [path for pair in photos for path in pair]:
        path.unlink()
    assert equal(before, data[0])


def test_photo_smaller_than_the_crop_is_filled_with_nothing_that_counts(photos):
    batch = batches(photos, crop_size=(128, 64))[0]
    assert (batch.source_images[:, :, 64:] == 0).all()
    assert (batch.source_labels[:, 64:] == IGNORE_LABEL).all()
    assert (batch.source_labels[:, :64] != IGNORE_LABEL).all()
    assert (batch.target_images[:, :, 64:] == 0).all()
    assert not batch.target_valid[:, 64:].any()
    assert batch.target_valid[:, :64].all()


def test_margins_are_taken_from_the_photo_and_not_from_the_crop(photos):
    data = batches(photos, crop_size=(64, 128), margins=(8, 0, 0, 24), augmentation=PLAIN)
    valid = data[0].target_valid
    expected = torch.zeros(64, 128, dtype=torch.bool)
    expected[8:, :72] = True
    assert all(torch.equal(v, expected) for v in valid)
    half = batches(photos, scale=InputScale(48, 32), crop_size=(64, 64), margins=(8, 0, 0, 24), augmentation=PLAIN)
    assert half[0].target_valid[0].sum() == (32 - 4) * (48 - 12)


@pytest.mark.parametrize("margins", [(50, 24, 0, 0), (0, 0, 0, 96), (90, 90, 0, 0), (0, 0, 200, 10)])
def test_of_a_photo_smaller_than_its_margins_nothing_counts(photos, margins):
    assert not batches(photos, crop_size=(64, 128), margins=margins)[0].target_valid.any()


def test_labels_follow_the_image_through_scaling_and_flips(tmp_path):
    mask = np.zeros((50, 90), np.uint8)
    mask[10:30, 20:60] = 1
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(mask[..., None] * 255, 3, axis=2))
    cv2.imwrite(str(tmp_path / "a_mask.png"), mask)
    augmentation = AugmentationSettings(flip=True, rotate=True, scale=(0.7, 1.4), photometric=0.0)
    pair = [(tmp_path / "a.png", tmp_path / "a_mask.png")]
    data = batches(pair, scale=InputScale(128, 64), augmentation=augmentation, batch_size=8)
    images, labels = data[0].source_images, data[0].source_labels
    counted = labels != IGNORE_LABEL
    bright = denormalise(images)[:, 0] > 127
    assert (bright == (labels == 1))[counted].float().mean() > 0.97


def test_required_share_of_crops_holds_foreground(photos):
    def share(**recipe):
        data = batches(photos, crop_size=(16, 16), batch_size=100, iterations=1, **recipe)
        return (data[0].source_labels == 1).flatten(1).any(dim=1).float().mean()

    assert share() < 0.35
    assert share(rare_class_share=1.0) > 0.6


def counted(data, iterations):
    """How often each photo is seen in the labelled crops."""
    return np.bincount([number for k in range(iterations) for number in photo_numbers(data[k].source_images)])


def test_labelled_target_photos_have_their_share_of_the_labelled_crops_and_come_once_a_pass(photos):
    source, part = photos[:4], photos[4:]
    data = batches(source, iterations=12, batch_size=4, augmentation=PLAIN, more={"labelled_target": part})
    assert counted(data, 12).tolist() == [9, 9, 9, 9, 4, 4, 4], "a quarter of 48, in four passes"
    first = photo_numbers(data[0].source_images)
    assert [number >= 4 for number in first] == [False, False, False, True], "in each batch of four"
    assert set(photo_numbers(data[0].target_images)) <= set(range(4))
    off = batches(source, augmentation=PLAIN, labelled_target_share=0.0, more={"labelled_target": part})
    assert all(equal(off[k], batches(source, augmentation=PLAIN)[k]) for k in range(4))


def test_photos_are_drawn_by_class_as_a_function_of_seed_and_place(photos):
    sampler = ClassSampler(np.array([0.25, 0.75]), (np.arange(7), np.array([2, 5])))
    recipe = {"crop_size": (16, 16), "augmentation": PLAIN, "more": {"sampler": sampler, "cache": MemoryCache(2**30)}}
    data = batches(photos, batch_size=100, iterations=3, **recipe)
    seen = counted(data, 1)
    assert seen[[2, 5]].min() > 25 and seen.min() > 0
    by_class = data[0].source_labels[[n in (2, 5) for n in photo_numbers(data[0].source_images)]]
    assert (by_class == 1).flatten(1).any(dim=1).float().mean() > 0.85
    assert equal(data[2], batches(photos, batch_size=100, iterations=9, **recipe)[2])
    assert not equal(data[0], batches(photos, batch_size=100, seed=1, **recipe)[0])
    rare = ClassSampler(np.array([0.0, 1.0]), (np.array([], int), np.array([1])))
    both = {"sampler": sampler, "labelled_target": photos, "labelled_target_sampler": rare}
    assert photo_numbers(batches(photos, batch_size=4, augmentation=PLAIN, more=both)[0].source_images)[3] == 1


def test_processes_that_share_a_batch_draw_it_together(photos):
    given = {"batch_size": 6, "labelled_target": photos[:3]}
    whole = batches(photos, tubes=True, more=given)[3]
    parts = [batches(photos, tubes=True, more=given | {"part": part})[3] for part in (range(2), range(2, 6))]
    assert equal(whole, [torch.cat(tensors) for tensors in zip(*parts, strict=True)])


def test_training_without_labelled_photos_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        batches([])


def test_unreadable_mask_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_mask(tmp_path / "broken.png")


def test_limited_validation_spreads_over_the_photos(photos):
    assert [photo.name for photo in validation_photos(photos)] == [f"{i}.png" for i in range(7)]
    assert [photo.name for photo in validation_photos(photos, 3)] == ["0.png", "3.png", "6.png"]
    assert len(list(validation_photos(photos, 99))) == 7
    first = next(iter(validation_photos(photos)))
    assert first.image.shape == (64, 96, 3)
    assert first.truth.shape == (64, 96)
