"""The thresholds that a run measured, through every door: HTTP, the SDK's clients, command line, worker and page."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import supervisely as sly
import yaml
from supervisely.app import DataJson
from supervisely.nn.inference import Session
from supervisely.nn.model.model_api import ModelAPI

from common.web.guide import LINK
from serve.__main__ import main
from tests.serve.conftest import CLASSES, serving, write_checkpoint
from tests.serve.requests_of_clients import deploy, encoded, expected, post, to_mask, upload

BEST = {"crack": 0.3}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A checkpoint as a run writes it: the names of its figures are those of `train.run.validation`."""
    metrics = {"student/best_threshold/crack": 0.3, "student/best_threshold/stain": float("nan")}
    return write_checkpoint(tmp_path_factory.mktemp("models") / "measured.pth", metrics=metrics)


@pytest.fixture(scope="module")
def app(measured, no_instance) -> Iterator[SimpleNamespace]:
    with serving(measured) as running:
        yield running


@pytest.fixture(scope="module")
def masks(app, image) -> SimpleNamespace:
    """What is right: at the best thresholds, and as the most probable class."""
    best, plain = (expected(app, image, thresholds=chosen) for chosen in (BEST, {}))
    assert (best != plain).any(), "thresholds that change nothing prove nothing"
    return SimpleNamespace(best=best, plain=plain)


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({}, "best"),
        ({"stride": [32, 32]}, "best"),
        ({"thresholds": "best"}, "best"),
        ({"thresholds": BEST}, "best"),
        ({"thresholds": {}}, "plain"),
        ({"thresholds": "{}"}, "plain"),
    ],
)
def test_requests_that_do_not_say_thresholds_get_the_best(app, image, masks, settings, right):
    answer = upload(app, encoded(image), {"settings": settings})
    np.testing.assert_array_equal(to_mask(answer.json()["annotation"]), getattr(masks, right))


def test_clients_of_the_sdk_get_them_and_can_switch_them_off(app, image, photo, masks):
    session = Session(sly.Api("http://127.0.0.1:9", "no token"), session_url=app.url)
    assert session.get_session_info()["thresholds"] == "crack 0.3"
    assert session.get_default_inference_settings()["thresholds"] == BEST
    np.testing.assert_array_equal(to_mask(session.inference_image_path(str(photo)).to_json()), masks.best)
    session.update_inference_settings(thresholds={})
    np.testing.assert_array_equal(to_mask(session.inference_image_path(str(photo)).to_json()), masks.plain)


def test_conf_of_the_sdk_is_one_threshold_for_all_classes(app, image, photo):
    model = ModelAPI(url=app.url)
    for conf in (0.25, 0.9):
        [prediction] = model.predict(input=str(photo), conf=conf, show_progress=False)
        right = expected(app, image, thresholds={"crack": conf, "stain": conf})
        np.testing.assert_array_equal(to_mask(prediction.annotation.to_json()), right)
    whole = {"conf": 0.9, "confidence": True, "background": True}
    answer = upload(app, encoded(image), {"settings": whole}).json()["annotation"]
    assert all(label["tags"] for label in answer["objects"]), "the SDK takes conf for our setting 'confidence'"


def test_text_that_a_labelling_tool_edits_is_filled_in_and_predicts_the_same(app, image, masks):
    text = post(app, "get_custom_inference_settings").json()["settings"]
    assert "\nthresholds: {crack: 0.3} # best in validation" in text
    answer = upload(app, encoded(image), {"settings": yaml.safe_load(text)})
    np.testing.assert_array_equal(to_mask(answer.json()["annotation"]), masks.best)


def test_text_is_that_of_the_model_whatever_its_classes_are_called(app, measured, make_checkpoint, image):
    names = ("__bg__", "crack, fine: \n# \x7f", "Riß 🙂")
    metrics = {f"student/best_threshold/{name}": 0.38 for name in (*names, "joint")}
    other = make_checkpoint("other.pth", classes=names, metrics=metrics)
    try:
        assert deploy(app, other).status_code == 200
        text = post(app, "get_custom_inference_settings").json()["settings"]
        assert yaml.safe_load(text)["thresholds"] == dict.fromkeys(names[1:], 0.38)
        assert upload(app, encoded(image), {"settings": yaml.safe_load(text)}).status_code == 200
        assert upload(app, encoded(image)).status_code == 200
    finally:
        assert deploy(app, measured).status_code == 200


def test_model_without_measured_thresholds_has_the_shipped_text(running):
    shipped = Path(running.server.INFERENCE_SETTINGS).read_text(encoding="utf-8")
    assert post(running, "get_custom_inference_settings").json()["settings"] == shipped
    assert post(running, "get_session_info").json()["thresholds"] == "the most probable class"


@pytest.mark.parametrize(("words", "right"), [([], "best"), (["--settings", "thresholds={}"], "plain")])
def test_command_line_says_and_uses_them(measured, photo, masks, tmp_path, capsys, words, right):
    where = ["--model", str(measured), "--device", "cpu", "--output", str(tmp_path)]
    assert main(["predict", str(photo), *where, *words]) == 0
    annotation = json.loads((tmp_path / "photo.png.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(to_mask(annotation), getattr(masks, right))
    said = "Thresholds that were best in the model's validation: crack 0.3." in capsys.readouterr().out
    assert said is (right == "best")


def test_page_says_them_and_switches_them_off(page, measured, checkpoint, image, masks):
    def predicted() -> np.ndarray:
        return to_mask(page.inference(image).to_json(), list(CLASSES))

    page._load_model_headless(model_files={"checkpoint": str(measured)}, device="cpu")
    card = page.thresholds_card
    assert card.text.text == "Best in this model's validation, and used: crack 0.3."
    np.testing.assert_array_equal(predicted(), masks.best)
    card.choose(False)
    assert card.text.text.startswith("The most probable class counts, as at 0.5.")
    assert page.get_info()["thresholds"] == "the most probable class"
    np.testing.assert_array_equal(predicted(), masks.plain)
    page._load_model_headless(model_files={"checkpoint": str(measured)}, device="cpu")
    assert not page.uses_best, "a model that wakes up stays as it was chosen"
    page._load_model_headless(model_files={"checkpoint": str(checkpoint)}, device="cpu")
    assert card.text.text.startswith("The training of this model measured no thresholds")
    page._load_model_headless(model_files={"checkpoint": str(measured)}, device="cpu")
    assert page.uses_best, "another model starts with its best thresholds"


def test_page_leads_to_the_guide_above_all_cards(page):
    shown = [widget for widget in DataJson().values() if isinstance(widget, dict)]
    assert "Select Model" in [widget.get("title") for widget in shown]
    assert [widget.get("text") for widget in shown].count(LINK) == 3, "on the card of the model, and on both of ours"
