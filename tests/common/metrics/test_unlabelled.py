"""Measures without labels: formulas written out, and which of two networks they prefer."""

import numpy as np
import pytest
from scipy.stats import entropy

from common.metrics.unlabelled import (
    UnlabelledMetrics,
    certainty,
    density,
    expected_threshold,
    mixture,
)


def answers(sure: float, seed: int = 0, pixels: int = 600, share: float = 0.2) -> np.ndarray:
    """P×2 probabilities: a share of the pixels is a crack, each answered with about that certainty."""
    rng = np.random.default_rng(seed)
    is_crack = rng.random(pixels) < share
    crack = np.where(is_crack, sure, 1 - sure) + rng.uniform(-0.01, 0.01, pixels)
    return np.stack([1 - crack, crack], axis=1)


def test_certainty_is_the_share_of_the_classes_entropy_that_answers_explain():
    p = answers(0.9)
    of_classes = entropy(p.mean(axis=0))
    assert certainty(p) == pytest.approx((of_classes - entropy(p, axis=1).mean()) / of_classes)
    assert certainty(answers(0.95)) > certainty(p) > certainty(answers(0.6))
    same = np.tile([0.99, 0.01], (100, 1))
    assert certainty(same) == pytest.approx(0, abs=1e-9), "sure of the same everywhere is worth nothing"
    assert certainty(np.tile([1.0, 0.0], (100, 1))) == 0
    assert certainty(np.eye(2)) == pytest.approx(1)
    thin = answers(0.985, share=0.02)
    assert certainty(answers(0.985)) > certainty(thin) > 0.3, "a rare class does not make it small"


def test_density_is_the_published_formula_whatever_rows_are_computed_at_once(monkeypatch):
    p = answers(0.8, pixels=300)
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similar = unit @ unit.T / 0.05
    shares = np.exp(similar)
    np.fill_diagonal(shares, 0)
    shares /= shares.sum(axis=1, keepdims=True)
    expected = entropy(shares, axis=1).mean() / np.log(299)
    assert density(p) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr("common.metrics.unlabelled._ROWS_AT_ONCE", 7)
    assert density(p) == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


def test_mixture_counts_where_photos_agree_and_where_they_differ():
    first, second = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8)
    found, total = mixture(first, second, np.array([[0, 1, 1, 1]], np.uint8))
    assert (found.tolist(), total.tolist()) == ([2, 1], [2, 2])


def test_as_many_pixels_reach_the_threshold_as_are_expected():
    probabilities = np.random.default_rng(0).beta(0.3, 2, 20_000)
    threshold = expected_threshold(probabilities)
    assert (probabilities >= threshold).mean() == pytest.approx(probabilities.mean(), abs=1e-3)
    true = np.random.default_rng(1).random(20_000) < probabilities
    assert (probabilities >= threshold).mean() == pytest.approx(true.mean(), abs=0.01)
    assert expected_threshold(np.zeros(10)) == 0.01
    assert expected_threshold(np.ones(10)) == 0.99


def test_networks_are_looked_at_in_the_same_pixels():
    rng = np.random.default_rng(1)
    photos = [rng.random((40, 60)).astype(np.float32) for _ in range(3)]
    first, second = UnlabelledMetrics(["__bg__", "crack"]), UnlabelledMetrics(["__bg__", "crack"])
    for photo in photos:
        first.update([1 - photo, photo])
        second.update(iter([1 - photo, photo]))
    assert first.pixels.shape == (6000, 2)
    assert np.array_equal(first.pixels, second.pixels)
    assert (
        first.compute()
        == second.compute()
        == {
            "certainty": certainty(first.pixels),
            "best_threshold/crack": expected_threshold(first.pixels[:, 1]),
        }
    )
