"""Which photos are suggested for labelling."""

import numpy as np
import pytest
from PIL import Image

from common.data.folders import ImageRecord
from common.hrda import ModelSettings, Predictor, build_segmentor
from train.__main__ import main
from train.run.suggestions import look_at, spread_out, suggest


def test_the_most_uncertain_comes_first_and_its_double_last():
    uncertainty = np.array([0.5, 0.9, 0.9, 0.4, 0.3])
    features = np.array([[0.0, 0], [5, 5], [5, 5], [0.1, 0], [9, 0]])
    order = spread_out(uncertainty, features, None, 5)
    assert [index for index, _ in order] == [1, 0, 4, 3, 2]
    assert order[0][1] is None and order[-1][1] == 0
    assert [index for index, _ in spread_out(uncertainty, features, None, 2)] == [1, 0]


def test_what_is_like_a_labelled_photo_is_not_suggested_first():
    uncertainty, features = np.array([0.9, 0.5, 0.5]), np.array([[0.0, 0], [4, 0], [9, 0]])
    order = spread_out(uncertainty, features, np.array([[0.0, 0.0]]), 3)
    assert [index for index, _ in order] == [2, 1, 0]
    assert all(distance is not None for _, distance in order)


def test_certain_photos_are_not_suggested_however_different():
    order = spread_out(np.array([0.0, 0.2]), np.array([[99.0, 0], [0, 1]]), np.array([[0.0, 0]]), 1)
    assert order[0][0] == 1


@pytest.fixture(scope="module")
def predictor():
    model = ModelSettings(encoder="mit_b0", crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    return Predictor(build_segmentor(model))


def test_a_photo_is_as_uncertain_as_its_pixels_are_on_average(predictor):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    [probabilities] = predictor.probabilities([image])
    expected = -(probabilities * np.log(probabilities)).sum(axis=0).mean()
    assert look_at(image, predictor).uncertainty == pytest.approx(expected, rel=1e-4)


def test_equal_photos_are_suggested_once_before_others(predictor, tmp_path):
    rng, records = np.random.default_rng(1), []
    pixels = [rng.integers(0, 256, (64, 64, 3), np.uint8), np.full((64, 64, 3), 90, np.uint8)]
    for name, image in (("a", pixels[0]), ("b", pixels[0]), ("c", pixels[1])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        records.append(ImageRecord("road", f"{name}.png", tmp_path / f"{name}.png", None))
    seen = []
    found = suggest(records, [], predictor, 3, lambda *counts: seen.append(counts))
    assert sorted({found[0].photo, found[1].photo}) in (["road/a.png", "road/c.png"], ["road/b.png", "road/c.png"])
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--run", "nowhere"], "nowhere has no checkpoint of a run"), (["--run", "."], "Give the folder of a run")],
)
def test_mistake_is_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["suggest", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and sentence in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("count", ["0", "-3", "many", "1.5"])
def test_count_is_a_number_of_photos(count, capsys):
    with pytest.raises(SystemExit):
        main(["suggest", "--run", "x", "--count", count])
    assert "whole number of 1 or more" in capsys.readouterr().err
