"""Wrong settings are refused when they are made, each message with its remedy."""

from __future__ import annotations

import json

import pytest

from common.hrda import InferenceSettings, ModelSettings, SelfTrainingSettings, SettingsError


@pytest.mark.parametrize("settings", [ModelSettings(), InferenceSettings(window=(128, 64)), SelfTrainingSettings()])
def test_settings_survive_json(settings) -> None:
    plain = json.loads(json.dumps(settings.to_dict()))
    assert type(settings).from_dict(plain) == settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelSettings(encoder="mit_b6"), "Unknown encoder 'mit_b6': did you mean 'mit_b"),
        (lambda: ModelSettings(num_classes=1), "num_classes must be a whole number from 2"),
        (lambda: ModelSettings(crop_size=(500, 512)), "crop_size must be two positive multiples of 64"),
        (lambda: ModelSettings(crop_size=512), "crop_size must be two"),
        (lambda: ModelSettings(decoder_channels=0), "decoder_channels must be a whole number from 1 to 4096"),
        (lambda: ModelSettings(drop_path=1.0), "drop_path must be a number from 0 to below 1"),
        (lambda: ModelSettings(detail_loss_weight=2), "detail_loss_weight must be a number from 0 to 1"),
        (lambda: ModelSettings(attention_classwise="yes"), "attention_classwise must be true or false"),
        (lambda: ModelSettings.from_dict({"encodr": "mit_b0"}), "'encodr' of ModelSettings: did you mean 'encoder'"),
        (lambda: InferenceSettings(stride=(100, 100)), "stride must be two positive multiples of 8"),
        (lambda: InferenceSettings(window=(64, 64), stride=(128, 64)), "pixels would be left out"),
        (lambda: InferenceSettings(batch_size=0), "batch_size must be a positive"),
        (lambda: InferenceSettings.from_dict([1]), "InferenceSettings needs keys and values"),
        (lambda: SelfTrainingSettings(alpha=1.5), "alpha must be a number from 0 to 1"),
        (lambda: SelfTrainingSettings(pseudo_label_rule="perclass"), "did you mean 'per_class'"),
        (lambda: SelfTrainingSettings(pseudo_label_views=3), "pseudo_label_views must be 1, 2 or 4"),
        (lambda: SelfTrainingSettings(pseudo_label_views=True), "pseudo_label_views must be 1, 2 or 4"),
        (lambda: SelfTrainingSettings(pseudo_label_scales=(1.0, 0.2)), "pseudo_label_scales must be 1 to 8 numbers"),
        (lambda: SelfTrainingSettings(pseudo_label_scales=1.0), "pseudo_label_scales must be 1 to 8 numbers"),
        (lambda: SelfTrainingSettings(mixing="clas"), "did you mean 'class'"),
        (lambda: SelfTrainingSettings(jitter_strength=0.9), "jitter_strength must be a number from 0 to 0.5"),
        (lambda: SelfTrainingSettings(feature_distance_weight=0.1), "at least the name of one class"),
        (
            lambda: SelfTrainingSettings(feature_distance_classes=(7, 8)),
            "must be names of classes, such as",
        ),
        (lambda: SelfTrainingSettings(masked_weight=-1), "masked_weight must be a number from 0 to 100"),
        (lambda: SelfTrainingSettings(mask_ratio=1.5), "mask_ratio must be a number from 0 to 1"),
        (lambda: SelfTrainingSettings(mask_block_size=0), "null for a sixteenth of the crop"),
        (lambda: SelfTrainingSettings(balance_source=2), "balance_source must be a number from 0 to 1"),
        (lambda: SelfTrainingSettings(alpha_start=0.999, alpha_ramp_iterations=9), "at most alpha \\(0.99\\)"),
        (lambda: SelfTrainingSettings(alpha_start=0.9), "above 0 when alpha_start is given"),
        (lambda: SelfTrainingSettings(ignore_margins=(1, 2)), "ignore_margins must be four whole numbers"),
    ],
)
def test_wrong_values_are_refused_with_the_remedy(make, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()
