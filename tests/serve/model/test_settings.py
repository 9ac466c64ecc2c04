"""Settings of a request: read strictly, told apart from what the SDK sends along."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from common.hrda.checks import SettingsError
from common.hrda.settings import BALANCED_TRUST
from serve.model.settings import SDK_SETTINGS, ServeSettings, read_settings, without_client_arguments, without_foreign

SHIPPED = Path(__file__).parents[3] / "serve" / "inference_settings.yaml"


def test_shipped_file_states_every_setting_with_its_default_and_a_comment():
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    assert read_settings(yaml.safe_load("\n".join(lines))) == ServeSettings()
    assert set(yaml.safe_load("\n".join(lines))) == {field.name for field in fields(ServeSettings)}
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[number - 1].startswith("#"), f"{line} is not explained"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"window": 128}, {"window": (128, 128)}),
        ({"window": [128, 192], "stride": [64, 96]}, {"window": (128, 192), "stride": (64, 96)}),
        ({"window": "[128, 192]", "batch_size": "2"}, {"window": (128, 192), "batch_size": 2}),
        ({"window": None, "stride": "null"}, {}),
        ({"input_scale": "original"}, {"input_scale": "original"}),
        ({"preset": "fast", "detail_overlap": True}, {"preset": "fast", "detail_overlap": True}),
        (
            {"thresholds": "{crack: 0.35}", "scales": "[0.5, 1.0]"},
            {"thresholds": {"crack": 0.35}, "scales": (0.5, 1.0)},
        ),
        ({"precision": "bfloat16", "background": "false"}, {"precision": "bfloat16", "background": False}),
        ({"inference_mode": "full_image", "classes": ["crack"], "rectangle": {}}, {}),
        ({"conf": 0.4}, {"thresholds": 0.4}),
        ({"conf": "0.4", "thresholds": {"crack": 0.3}}, {"thresholds": {"crack": 0.3}}),
        ({"conf": None, "thresholds": "best"}, {}),
        ({"thresholds": 0.5}, {"thresholds": 0.5}),
    ],
)
def test_values_are_read_in_every_form_that_clients_send(given, read):
    assert read_settings(given) == ServeSettings(**read)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windw": 128}, "did you mean 'window'"),
        ({"zzz": 1}, "expected one of: background, batch_size, blending, "),
        ({"window": 100}, "multiples of 64.*Received: "),
        ({"window": "[128"}, "window cannot be read"),
        ({"stride": [64]}, "two positive multiples of 8"),
        ({"batch_size": 0}, "positive whole number"),
        ({"batch_size": True}, "positive whole number"),
        ({"input_scale": "orginal"}, "did you mean 'original'"),
        ({"preset": "quick"}, "expected one of: balanced, exact, fast"),
        ({"precision": "bf16"}, "did you mean 'bfloat16'"),
        ({"blending": "gauss"}, "did you mean 'gaussian'"),
        ({"detail_overlap": 1}, "true, false or null"),
        ({"scales": []}, "1 to 8 numbers"),
        ({"scales": [100]}, "from 0.1 to 4"),
        ({"long_side": 0}, "a whole number from 16, or null"),
        ({"min_component": -1}, "0 or more"),
        ({"thresholds": {"crack": 3}}, "probabilities from 0 to 1 by class name"),
        ({"thresholds": "bst"}, "best, probabilities from 0 to 1 by class name.*or one for all classes.*'bst'"),
        ({"thresholds": 1.3}, "or one for all classes"),
        ({"conf": 1.3}, "conf must be a probability from 0 to 1. Received: 1.3"),
        ({"conf": True}, "conf must be a probability"),
        ({"conf": "high"}, "conf must be a probability"),
        ({"conf": float("nan")}, "conf must be a probability"),
        ({"confidence": "often"}, "true or false"),
        ({"flip": "yes"}, "flip must be true or false. Received: .yes."),
        ([1], "names and values"),
    ],
)
def test_bad_settings_are_refused_with_the_remedy(given, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(given)


def test_windows_are_complete_and_leave_no_pixel_out():
    windows = ServeSettings(batch_size=2).complete((128, 192))
    assert (windows.window, windows.stride, windows.batch_size) == ((128, 192), (64, 96), 2)
    with pytest.raises(SettingsError, match="stride must be at most the window"):
        ServeSettings(stride=(128, 128)).complete((64, 64))


def test_preset_decides_only_what_is_left_open():
    fast = ServeSettings(preset="fast").complete((128, 192))
    assert (fast.stride, fast.detail_overlap) == ((128, 192), False)
    exact = ServeSettings().complete((128, 192))
    assert (exact.stride, exact.detail_overlap) == ((64, 96), True)
    assert exact.trust_context == fast.trust_context == 1
    assert exact.blending == fast.blending == "uniform"
    balanced = ServeSettings(preset="balanced").complete((128, 192))
    assert (balanced.stride, balanced.detail_overlap) == ((64, 96), False)
    assert (balanced.trust_context, balanced.blending) == (BALANCED_TRUST, "gaussian")
    mixed = ServeSettings(preset="fast", stride=(64, 64), trust_context=0.8).complete((128, 192))
    assert (mixed.stride, mixed.detail_overlap, mixed.trust_context) == ((64, 64), False, 0.8)
    assert ServeSettings(preset="balanced", trust_context=1).complete((128, 192)).trust_context == 1


def test_a_threshold_for_a_class_that_is_not_there_is_refused():
    rule = ServeSettings(thresholds={"stain": 0.2}, min_component=9).rule(("__bg__", "crack", "stain"))
    assert (rule.thresholds, rule.min_component) == ({2: 0.2}, 9)
    for name in ("cracks", "__bg__"):
        with pytest.raises(SettingsError, match=f"thresholds names '{name}'"):
            ServeSettings(thresholds={name: 0.2}).rule(("__bg__", "crack", "stain"))


@pytest.mark.parametrize(
    ("given", "thresholds"),
    [
        ("best", {1: 0.3}),
        ({}, {}),
        (0.5, {1: 0.5, 2: 0.5}),
        ({"stain": 0.2}, {2: 0.2}),
    ],
)
def test_thresholds_are_the_best_unless_told_otherwise(given, thresholds):
    """What was measured for a class that the model does not have, as a foreign file may say, does not count."""
    best = {"crack": 0.3, "moss": 0.9, "__bg__": 0.4}
    assert ServeSettings(thresholds=given).rule(("__bg__", "crack", "stain"), best).thresholds == thresholds


def test_what_belongs_to_other_models_is_told_apart():
    ours = {"stride": 64, "rectangle": None, "conf": 0.4, "thresholds": "best", "classes": "all"}
    assert without_foreign(ours, ("__bg__", "crack")) == (ours, [])
    given = {"confidence_threshold": 0.5, "classes": ["crack", "dog"], "thresholds": {"dog": 0.1, "crack": 0.2}}
    kept, passed_over = without_foreign(given, ("__bg__", "crack"))
    assert kept == {"classes": ["crack"], "thresholds": {"crack": 0.2}}
    assert passed_over == ["setting 'confidence_threshold'", "class 'dog'", "threshold of 'dog'"]


def test_arguments_of_predict_are_not_taken_for_ours():
    video = {"stride": 2, "step": 2, "batch_size": 16, "conf": 0.4}
    assert without_client_arguments(video, {"batch_size": 16}) == {"step": 2, "conf": 0.4}
    ours = {"stride": [64, 64], "batch_size": 2, "window": None}
    assert without_client_arguments(ours, {}) == ours


def test_every_argument_of_the_sdks_predict_is_known():
    """ModelAPI.predict sends all of them as settings: a new one in the SDK would be refused as a mistake."""
    from supervisely.nn.model.model_api import ModelAPI
    from supervisely.nn.model.prediction_session import PredictionSession

    methods = [ModelAPI.predict] + [
        getattr(PredictionSession, name)
        for name in ("_predict_images_ids", "_predict_videos", "_predict_projects", "_predict_datasets")
    ]
    sources = {"self", "kwargs", "input", "images", "videos", "image_id", "video_id", "dataset_id", "project_id"}
    plain = {"tracker_settings", "tracking_config"}  # not text or numbers: never sent as settings
    names = {name for method in methods for name in inspect.signature(method).parameters} - sources - plain
    ours = {field.name for field in fields(ServeSettings)}
    assert names - SDK_SETTINGS - ours == set()
