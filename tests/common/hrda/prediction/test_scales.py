"""Probabilities averaged over scales: those of whole maps, of which none is held."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from common.hrda import InferenceSettings, Predictor
from common.hrda.pixels import resize_image
from common.hrda.prediction.scales import average, scaled_sizes
from tests.common.hrda.test_sliding import PlacedNetwork


@pytest.mark.parametrize("size", [(90, 70), (1, 40), (333, 120), (64, 64)])
@pytest.mark.parametrize("scales", [(0.5, 1.0, 1.5), (4.0,), (0.1,), (1.0, 0.3, 2.7), (2.0, 2.0, 0.5)])
def test_average_is_that_of_whole_maps(size: tuple[int, int], scales: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    plain = np.zeros((3, *size), np.float32)
    for scale in scales:
        scaled = resize_image(image, tuple(max(round(side * scale), 1) for side in size))
        [maps] = Predictor(PlacedNetwork()).probabilities([scaled])
        plain += np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in maps])
    [found] = Predictor(PlacedNetwork(), InferenceSettings(scales=scales)).probabilities([image])
    np.testing.assert_allclose(found, plain / len(scales), atol=2e-5)


def test_no_scale_runs_ahead_of_the_others() -> None:
    """So that of each only few rows are held, however large the photo is."""
    size, step = (4000, 8), 50
    sizes = scaled_sizes(size, (0.25, 1.0, 2.0))
    came = dict.fromkeys(sizes, 0)

    def rows(own: tuple[int, int]) -> Iterator[Tensor]:
        for done in range(0, own[0], step):
            came[own] = done + step
            spread = [rows / height * size[0] for (height, _), rows in came.items()]
            assert max(spread) - min(spread) <= 4 * step + 8, "rows of the photo that are held"
            yield torch.zeros(2, step, own[1])

    handed: list[tuple[int, int]] = []
    passes = [(own, weight, rows(own)) for own, weight in sizes.items()]
    average(size, passes, lambda top, logits: handed.append((top, logits.shape[1])))
    counts = [count for _, count in handed]
    assert sum(counts) == size[0] and max(counts) <= 256
    assert [top for top, _ in handed] == [sum(counts[:n]) for n in range(len(counts))]


def test_scale_that_is_named_twice_is_computed_once() -> None:
    once, twice = PlacedNetwork(), PlacedNetwork()
    image = np.zeros((100, 100, 3), np.uint8)
    Predictor(once, InferenceSettings(scales=(2.0,))).predict([image])
    Predictor(twice, InferenceSettings(scales=(2.0,) * 8)).predict([image])
    assert once.windows == twice.windows > 0
