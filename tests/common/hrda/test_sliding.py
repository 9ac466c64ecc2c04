"""Windows, overlaps and whole images, against plain loops in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_sliding import plain_sliding_logits
from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor
from common.hrda.network.heads import HRDAHead
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.pixels import IMAGENET_MEAN, IMAGENET_STD, denormalise, fit_scale, normalise
from common.hrda.prediction.labelling import LabelRule
from common.hrda.prediction.predictor import MirroredNetwork
from common.hrda.sliding import TensorPixels, WindowTally, count_windows, crop_weights, sliding_logits, sweep
from common.hrda.windows import Box, average_overlaps, window_boxes, window_starts


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 100, 128, 129, 640])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (64, 24), (128, 64)])
def test_windows_cover_every_pixel_and_stay_inside(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    covered = np.zeros(length, bool)
    for start in starts:
        assert start >= 0
        assert start + window <= max(length, window)
        covered[start : start + window] = True
    assert covered.all()
    assert starts == sorted(set(starts))


class PlacedNetwork:
    """Answers each cell by itself and adds its place in the window, so that a wrong overlap or place shows."""

    crop_size = (64, 64)
    num_classes = 3

    def __init__(self) -> None:
        self.windows = 0

    def context_images(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 2)

    def detail_logits(self, images: Tensor) -> Tensor:
        self.windows += len(images)
        cells = F.avg_pool2d(images, 4)
        rows = torch.arange(cells.shape[-2], dtype=cells.dtype)[:, None].expand(cells.shape[-2:])
        return torch.stack([cells[:, 0], cells[:, 1] * 2, cells[:, 2] + rows], dim=1)

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.detail_logits(images)
        return logits, torch.sigmoid(logits[:, 1:2])

    def fuse(self, context: Tensor, attention: Tensor, detail: Tensor) -> Tensor:
        return HRDAHead.fuse(context, attention, detail)


SIZES = [(64, 64), (1, 1), (1, 200), (200, 1), (70, 90), (96, 160), (160, 96), (129, 67), (128, 40), (257, 131)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [(64, 64), (128, 64)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_distinct_windows_equal_the_plain_two_level_sliding(
    size: tuple[int, int], window: tuple[int, int], batch_size: int
) -> None:
    settings = InferenceSettings(window=window, stride=(32, 24), batch_size=batch_size)
    images = torch.randn(2, 3, *size)
    logits = sliding_logits(PlacedNetwork(), images, settings)
    assert logits.shape == (2, 3, *size)
    plain = plain_sliding_logits(PlacedNetwork(), images, settings)
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (1, 90), (100, 170), (170, 100), (130, 128)])
def test_a_real_network_gives_the_plain_two_level_logits(
    segmentor: HRDASegmentor, predictor: Predictor, size: tuple[int, int]
) -> None:
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        plain = plain_sliding_logits(segmentor, images, predictor.settings)
    assert float((predictor.logits(images) - plain).abs().max()) <= 1e-4


class SureNetwork(PlacedNetwork):
    """Its context is sure of the first class where the first channel is high, and of nothing elsewhere."""

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, attention = super().context_logits(images)
        return torch.cat([20 * logits[:, :1], torch.zeros_like(logits[:, 1:])], dim=1), attention


def half_sure(size: tuple[int, int]) -> Tensor:
    """An image of whose left half the context is sure."""
    image = 0.01 * torch.randn(1, 3, *size)
    image[:, 0, :, : size[1] // 2] += 1
    return image


def plain_leaving_out(network: PlacedNetwork, image: Tensor, settings: InferenceSettings) -> Tensor:
    """A row of crops after the other: what none of its contexts is unsure of is not computed, and the context stands
    for it where no other window lies."""
    settings, size = settings.complete(network.crop_size), tuple(image.shape[-2:])
    half = tuple(side // 2 for side in network.crop_size)
    step = tuple(side // 2 for side in half) if settings.detail_overlap else half
    details: dict[Box, Tensor] = {}
    total, count = torch.zeros(1, 3, *size), torch.zeros(size)
    boxes = window_boxes(size, settings.window, settings.stride)
    for top in sorted({box.top for box in boxes}):
        row = [box for box in boxes if box.top == top]
        contexts = {crop: network.context_logits(network.context_images(crop.crop(image))) for crop in row}
        for crop, (context, _) in contexts.items():
            for box in window_boxes(settings.window, half, step):
                sure = box.scaled_down(8).crop(context.softmax(1)).amin((-2, -1)).max() >= settings.trust_context
                if not sure:
                    place = box.moved(crop.top, crop.left)
                    details[place] = network.detail_logits(place.crop(image))
        for crop, (context, attention) in contexts.items():
            detail = F.interpolate(context, [side // 4 for side in settings.window], mode="bilinear")
            pieces, times = torch.zeros_like(detail), torch.zeros(detail.shape[-2:])
            for box in window_boxes(settings.window, half, step):
                found = details.get(box.moved(crop.top, crop.left))
                if found is not None:
                    box.scaled_down(4).crop(pieces).add_(found)
                    box.scaled_down(4).crop(times).add_(1)
            detail = torch.where(times > 0, pieces / times, detail)
            fused = F.interpolate(network.fuse(context, attention, detail), settings.window, mode="bilinear")
            weights = crop_weights(settings.window, settings.blending)
            crop.crop(total).add_(fused * weights)
            crop.crop(count).add_(weights)
    return total / count


@pytest.mark.parametrize("preset", ["exact", "balanced", "fast"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (200, 264)])
def test_high_resolution_is_left_out_where_the_context_is_sure(preset: str, size: tuple[int, int]) -> None:
    settings = InferenceSettings(preset=preset, trust_context=0.9)
    image, network, tally, rows = half_sure(size), SureNetwork(), WindowTally(), []
    sweep(network, [(TensorPixels(image[0]), lambda _, logits: rows.append(logits))], settings, tally=tally)
    torch.testing.assert_close(torch.cat(rows, dim=1), plain_leaving_out(SureNetwork(), image, settings)[0])
    assert tally.computed == network.windows
    assert tally.computed + tally.left_out == count_windows(size, network.crop_size, settings)
    assert size == (64, 64) or 0 < tally.share_left_out < 1


@pytest.mark.parametrize("preset", ["exact", "balanced", "fast"])
def test_nothing_is_left_out_where_the_context_is_unsure_or_not_trusted(preset: str) -> None:
    """And then every preset is its plain windows."""
    image = half_sure((96, 160))
    for network, trust in ((PlacedNetwork(), 0.999), (SureNetwork(), 1.0)):
        settings = InferenceSettings(preset=preset, trust_context=trust)
        predictor = Predictor(network, settings)
        plain = plain_sliding_logits(network, image, settings)
        torch.testing.assert_close(predictor.logits(image), plain, atol=1e-5, rtol=0)
        predictor.predict([np.zeros((96, 160, 3), np.uint8)])
        assert predictor.tally.computed > 0 == predictor.tally.left_out


def test_each_distinct_window_is_computed_once() -> None:
    ours, plain = PlacedNetwork(), PlacedNetwork()
    images = torch.randn(1, 3, 128, 256)
    sliding_logits(ours, images, InferenceSettings())
    plain_sliding_logits(plain, images, InferenceSettings())
    crops = 3 * 7
    # Distinct windows of side 32 at stride 16, against nine in each crop.
    assert ours.windows == crops + 7 * 15
    assert plain.windows == crops + 9 * crops


def test_without_overlap_windows_lie_side_by_side() -> None:
    network = PlacedNetwork()
    sliding_logits(network, torch.randn(1, 3, 128, 256), InferenceSettings(stride=(64, 64), detail_overlap=False))
    assert network.windows == 2 * 4 + 4 * 8


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (130, 257), (300, 90)])
@pytest.mark.parametrize(
    "settings",
    [
        InferenceSettings(), InferenceSettings(stride=(8, 24)), InferenceSettings(preset="fast"),
        InferenceSettings(window=(128, 64), detail_overlap=False), InferenceSettings(flip=True),
    ],
)  # fmt: skip
def test_windows_are_counted_before_any_is_computed(size: tuple[int, int], settings: InferenceSettings) -> None:
    network = PlacedNetwork()
    sliding_logits(MirroredNetwork(network) if settings.flip else network, torch.randn(1, 3, *size), settings)
    assert count_windows(size, network.crop_size, settings) == network.windows


def test_windows_of_an_endless_image_are_counted_without_a_list_of_them() -> None:
    """A PNG of a few kilobytes can be one row of 128 million pixels."""
    tracemalloc.start()
    count = count_windows((1, 128_000_000), (64, 64), InferenceSettings(stride=(8, 8)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 15_999_000 and peak < 10**6


def test_it_is_asked_before_each_batch_of_windows_whether_to_go_on() -> None:
    network = PlacedNetwork()

    def ask() -> None:
        if network.windows >= 10:
            raise TimeoutError

    images = [(TensorPixels(torch.randn(3, 200, 300)), lambda _, logits: None)] * 3
    with pytest.raises(TimeoutError):
        sweep(network, images, InferenceSettings(batch_size=3), ask)
    assert network.windows == 12
    network.windows = 0
    photo = np.zeros((200, 300, 3), np.uint8)
    predictor = Predictor(network, InferenceSettings(batch_size=3, scales=(0.5, 2.0)), before_batch=ask)
    for predict in (
        predictor.predict,
        predictor.probabilities,
        lambda images: predictor.predict_with_probabilities(*images),
    ):
        network.windows = 0
        with pytest.raises(TimeoutError):
            predict([photo])
        assert 10 <= network.windows <= 12


def test_images_of_different_sizes_share_batches_and_keep_their_own_answers() -> None:
    sizes = [(70, 200), (64, 64), (130, 50)]
    images = [torch.randn(1, 3, *size) for size in sizes]
    rows = [[] for _ in images]
    photos = (
        (TensorPixels(image[0]), lambda _, x, into=into: into.append(x))
        for image, into in zip(images, rows, strict=True)
    )
    sweep(PlacedNetwork(), photos, InferenceSettings(batch_size=64))
    for image, parts in zip(images, rows, strict=True):
        together = torch.cat(parts, dim=1)
        torch.testing.assert_close(together, sliding_logits(PlacedNetwork(), image, InferenceSettings())[0])


def test_rows_come_in_order_as_soon_as_they_are_done() -> None:
    came = []
    sweep(
        PlacedNetwork(),
        [(TensorPixels(torch.randn(3, 200, 70)), lambda top, logits: came.append((top, logits.shape[1])))],
        InferenceSettings(),
    )
    assert came == [(0, 32), (32, 32), (64, 32), (96, 32), (128, 8), (136, 64)]


def test_gaussian_blending_trusts_the_middle_of_a_crop() -> None:
    weights = crop_weights((64, 128), "gaussian")
    assert weights.shape == (64, 128)
    assert weights[32, 64] > 0.99
    assert 0 < weights[0, 0] < 0.01
    torch.testing.assert_close(weights, weights.flip(0, 1))
    images = torch.randn(1, 3, 96, 160)
    blended = sliding_logits(PlacedNetwork(), images, InferenceSettings(blending="gaussian"))
    uniform = sliding_logits(PlacedNetwork(), images, InferenceSettings())
    # The upper left corner belongs to one crop alone, whatever its weight.
    torch.testing.assert_close(blended[..., :32, :32], uniform[..., :32, :32])
    assert not torch.allclose(blended, uniform, atol=1e-3)


def test_average_touches_only_the_pieces_places() -> None:
    boxes = window_boxes((6, 6), (4, 4), (2, 2))
    assert boxes == [Box(0, 4, 0, 4), Box(0, 4, 2, 6), Box(2, 6, 0, 4), Box(2, 6, 2, 6)]
    average = average_overlaps(((box, torch.full((1, 1, 4, 4), float(i))) for i, box in enumerate(boxes)), (6, 6))
    assert average[0, 0, 0, 0] == 0
    assert average[0, 0, 5, 5] == 3
    assert average[0, 0, 3, 3] == 1.5


@pytest.fixture(scope="module")
def segmentor() -> HRDASegmentor:
    torch.manual_seed(0)
    settings = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=16)
    return build_segmentor(settings)


@pytest.fixture(scope="module")
def predictor(segmentor: HRDASegmentor) -> Predictor:
    return Predictor(segmentor, InferenceSettings(batch_size=3))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (70, 50), (64, 64), (100, 75)])
def test_images_of_any_size_are_predicted_at_their_size(predictor: Predictor, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    [labels], [probabilities] = predictor.predict([image]), predictor.probabilities([image])
    assert labels.shape == size
    assert labels.dtype == np.uint8
    assert probabilities.shape == (3, *size)
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_batches_of_windows_do_not_change_the_answer(predictor: Predictor) -> None:
    x = torch.randn(1, 3, 100, 130)
    one = Predictor(predictor.model, InferenceSettings(batch_size=1)).logits(x)
    torch.testing.assert_close(predictor.logits(x), one, atol=1e-5, rtol=1e-5)


def test_mirrored_windows_make_the_answer_of_a_mirrored_photo_the_mirrored_answer(predictor: Predictor) -> None:
    # Sides on which the windows lie symmetrically.
    x = torch.randn(1, 3, 96, 128)
    mirrored = Predictor(predictor.model, InferenceSettings(flip=True))
    torch.testing.assert_close(mirrored.logits(x), mirrored.logits(x.flip(-1)).flip(-1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predictor.logits(x), predictor.logits(x.flip(-1)).flip(-1), atol=1e-3)


def test_several_scales_average_the_probabilities(predictor: Predictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    double = Predictor(predictor.model, InferenceSettings(scales=(1.0, 1.0)))
    np.testing.assert_allclose(double.probabilities([image])[0], predictor.probabilities([image])[0], atol=1e-6)
    several = Predictor(predictor.model, InferenceSettings(scales=(0.5, 1.0, 1.5)))
    [probabilities] = several.probabilities([image], np.float16)
    assert probabilities.dtype == np.float16
    [found] = several.segment([image], confidence=True)
    np.testing.assert_array_equal(found.labels, several.probabilities([image])[0].argmax(0))
    assert all(mean is None or 0 < mean <= 1 for mean in found.confidences)


def test_confidence_and_thresholds_follow_the_probabilities(predictor: Predictor) -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    [probabilities] = predictor.probabilities([image])
    [found] = predictor.segment([image], LabelRule(thresholds={1: 0.3, 2: 0.99}), confidence=True)
    np.testing.assert_array_equal(found.labels == 1, probabilities[1] >= 0.3)
    for index, mean in enumerate(found.confidences):
        inside = found.labels == index
        assert (mean is None) == (not inside.any())
        if mean is not None:
            assert abs(mean - probabilities[index][inside].mean()) < 1e-3


def test_input_scale_brings_labels_back_at_the_images_size(predictor: Predictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    scaled = Predictor(predictor.model, input_scale=(80, 160))
    assert scaled.predict([image])[0].shape == (90, 60)
    doubled = Predictor(predictor.model, input_scale=2.0)
    assert doubled.work((90, 60)).pixels == 180 * 120
    assert doubled.predict([image])[0].shape == (90, 60)
    assert fit_scale((90, 60), 80, 160) == (120, 80)
    assert fit_scale((480, 320), 512, 640) == (640, 427)


def test_wrong_images_are_named(predictor: Predictor) -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="H×W×3 uint8 RGB array. Received: shape"):
            predictor.predict([wrong])


def test_normalisation_uses_imagenets_statistics() -> None:
    images = torch.tensor(IMAGENET_MEAN)[None, :, None, None] + torch.tensor(IMAGENET_STD)[None, :, None, None]
    torch.testing.assert_close(normalise(images), torch.ones_like(images))
    torch.testing.assert_close(denormalise(normalise(images)), images)
