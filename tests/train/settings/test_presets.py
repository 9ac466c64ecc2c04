import pytest

from train.settings.presets import DEFAULT_PRESET, differences, presets
from train.settings.training import DEFAULT_YAML, TrainSettings


@pytest.mark.parametrize("name", presets())
def test_preset_can_be_trained_with_and_keeps_every_comment(name):
    preset = presets()[name]
    assert preset.settings.iterations > preset.settings.optimizer.warmup_iterations
    assert preset.text.count("#") == DEFAULT_YAML.read_text(encoding="utf-8").count("#")
    assert preset.description.strip().endswith(".") and "\n" not in preset.description.strip()


def test_default_preset_is_the_default_text_itself():
    assert presets()[DEFAULT_PRESET].text == DEFAULT_YAML.read_text(encoding="utf-8")


def test_presets_can_be_told_apart():
    every = [preset.settings for preset in presets().values()]
    assert all(differences(one, other) for one in every for other in every if one is not other)
    assert len({preset.title for preset in presets().values()}) == len(every)


def test_street_scenes_are_the_published_values():
    settings = presets()["street_scenes"].settings
    assert (settings.iterations, settings.batch_size, settings.model.crop_size) == (40000, 2, (1024, 1024))
    assert (settings.optimizer.lr, settings.optimizer.weight_decay, settings.optimizer.warmup_iterations) == (
        6e-5,
        0.01,
        1500,
    )
    assert (settings.self_training.alpha, settings.self_training.feature_distance_weight) == (0.999, 0.005)
    assert settings.self_training.pseudo_label_rule == "published"
    assert settings.model.encoder == "mit_b5"
    assert not settings.model.fine_branch
    assert (settings.thin.skeleton_weight, settings.thin.border_px) == (0, 0)


@pytest.mark.parametrize("name", ["cracks", "quick_look"])
def test_presets_for_thin_objects_take_a_rule_that_does_not_starve_them(name):
    assert presets()[name].settings.self_training.pseudo_label_rule == "class_balanced"


def test_difference_names_the_value_and_not_the_encoder_which_the_model_card_chooses():
    changed = TrainSettings().with_overrides(["optimizer.lr=1e-3", "model.encoder=mit_b0", "class_weights={crack: 3}"])
    assert differences(changed, TrainSettings()) == ["class_weights", "optimizer.lr"]
