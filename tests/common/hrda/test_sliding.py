"""Windows, overlaps and whole images, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor
from common.hrda.predictor import IMAGENET_MEAN, IMAGENET_STD, denormalise, fit_scale, normalise
from common.hrda.sliding import sliding_logits
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


class PointwiseModel:
    """Answers each pixel by itself and adds its place in the window, so that a wrong overlap shows."""

    crop_size = (64, 64)

    def crop_logits(self, images: Tensor) -> Tensor:
        rows = torch.arange(images.shape[-2], dtype=images.dtype)[:, None].expand(images.shape[-2:])
        return torch.stack([images[:, 0], images[:, 1] * 2, images[:, 2] + rows], dim=1)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (1, 200), (200, 1), (70, 90), (96, 160), (129, 67), (128, 40)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_sliding_equals_the_average_computed_naively(size: tuple[int, int], batch_size: int) -> None:
    settings = InferenceSettings(window=(64, 64), stride=(32, 24), batch_size=batch_size)
    images = torch.randn(2, 3, *size)
    logits = sliding_logits(PointwiseModel(), images, settings)
    assert logits.shape == (2, 3, *size)

    height, width = (max(-(-s // 8) * 8, 64) for s in size)
    padded = torch.zeros(2, 3, height, width, dtype=torch.float64)
    padded[..., : size[0], : size[1]] = images
    total, count = torch.zeros_like(padded), 0
    for top in sorted({*range(0, height - 64, 32), height - 64}):
        for left in sorted({*range(0, width - 64, 24), width - 64}):
            placed = torch.zeros_like(padded)
            inside = torch.zeros(height, width, dtype=torch.float64)
            window = padded[..., top : top + 64, left : left + 64]
            placed[..., top : top + 64, left : left + 64] = PointwiseModel().crop_logits(window)
            inside[top : top + 64, left : left + 64] = 1
            total, count = total + placed, count + inside
    expected = (total / count)[..., : size[0], : size[1]]
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


def test_average_touches_only_the_pieces_places() -> None:
    boxes = window_boxes((6, 6), (4, 4), (2, 2))
    assert boxes == [Box(0, 4, 0, 4), Box(0, 4, 2, 6), Box(2, 6, 0, 4), Box(2, 6, 2, 6)]
    average = average_overlaps(((box, torch.full((1, 1, 4, 4), float(i))) for i, box in enumerate(boxes)), (6, 6))
    assert average[0, 0, 0, 0] == 0
    assert average[0, 0, 5, 5] == 3
    assert average[0, 0, 3, 3] == 1.5


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    settings = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=16)
    return Predictor(build_segmentor(settings), InferenceSettings(batch_size=3))


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


def test_input_scale_brings_labels_back_at_the_images_size(predictor: Predictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    scaled = Predictor(predictor.model, input_scale=(80, 160))
    assert scaled.predict([image])[0].shape == (90, 60)
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
