import dataclasses
import re
from typing import Literal, get_args, get_origin

import pytest
import yaml

from common.hrda.checks import SettingsError, section_of
from train.run.learner import lr_factor
from train.settings.sections import OptimizerSettings
from train.settings.training import DEFAULT_YAML, TrainSettings


def dotted(data, path=""):
    for key, value in data.items():
        yield path + key
        if isinstance(value, dict):
            yield from dotted(value, f"{path}{key}.")


def test_yaml_file_holds_exactly_the_defaults():
    text = DEFAULT_YAML.read_text()
    defaults = TrainSettings().to_dict()
    # A part of the network's shape that comes with reference checkpoints; nobody should choose it.
    del defaults["model"]["attention_classwise"]
    assert yaml.safe_load(text) == defaults
    assert TrainSettings.from_yaml(text) == TrainSettings()


def test_every_key_of_the_yaml_file_is_explained():
    for line in DEFAULT_YAML.read_text().splitlines():
        if re.match(r"\s*\w+:", line):
            key, _, rest = line.partition(":")
            is_group = not rest.strip()
            assert is_group or re.search(r" # \S.{9,}", rest), f"{key.strip()} has no comment"


def comments() -> dict[str, str]:
    """The comment of each value in the YAML file, by its dotted name."""
    found, path = {}, []
    for line in DEFAULT_YAML.read_text().splitlines():
        if match := re.match(r"( *)(\w+):(.*)", line):
            indent, key, rest = match.groups()
            path = [*path[: len(indent) // 2], key]
            found[".".join(path)] = rest.partition(" #")[2]
    return found


def test_comments_that_list_choices_list_those_of_the_schema():
    listed = set()
    for name, comment in comments().items():
        owner = TrainSettings
        for part in name.split("."):
            info = owner.__pydantic_fields__[part]
            owner = section_of(info)
        for choice in choices(info.annotation):
            assert re.search(rf"\b{choice}\b", comment), f"{name} may be '{choice}'; its comment says:{comment}"
            listed.add(name)
    assert {"mode", "inference.preset", "compute.precision", "class_weights"} <= listed


def choices(annotation):
    """The words that a value of this type may be."""
    if get_origin(annotation) is Literal:
        return [word for part in get_args(annotation) for word in ([part] if isinstance(part, str) else choices(part))]
    return [word for part in get_args(annotation) for word in choices(part)]


@pytest.mark.parametrize("name", [name for name, comment in comments().items() if "multiple" in comment])
def test_comments_that_name_a_multiple_name_that_of_the_schema(name):
    step = int(re.search(r"multiples? of (\d+)", comments()[name])[1])
    pair = (lambda side: side) if name.startswith("data.scale") else (lambda side: [side, side])
    settings = TrainSettings().with_overrides(
        [f"{name}={pair(40 * step)}"] + ["data.scale.short_edge=16"] * ("scale" in name)
    )
    assert settings.to_dict() != TrainSettings().to_dict()
    for side in (40 * step + step // 2, 40 * step + 1):
        with pytest.raises(SettingsError, match=str(step)):
            TrainSettings().with_overrides([f"{name}={pair(side)}"])


def test_every_field_has_a_docstring_beside_it():
    import inspect

    import train.settings.training as module

    for settings in vars(module).values():
        if dataclasses.is_dataclass(settings) and settings.__module__ == module.__name__:
            source = inspect.getsource(settings)
            for field in dataclasses.fields(settings):
                assert re.search(rf'\n    {field.name}: .*\n    """', source), f"{settings.__name__}.{field.name}"


def test_settings_survive_yaml():
    settings = TrainSettings().with_overrides(
        [
            "mode=control",
            "class_weights={crack: 3}",
            "model.crop_size=[128, 256]",
            "data.scale={long_edge: null, short_edge: null}",
        ]
    )
    assert TrainSettings.from_yaml(settings.to_yaml()) == settings
    assert settings.model.crop_size == (128, 256)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("iteration=3", "did you mean 'iterations'"),
        ("optimzer.lr=3", "did you mean 'optimizer'"),
        ("optimizer.learning=3", "expected one of: head_lr_factor, layer_decay, lr"),
        ("lr=1e-3", "did you mean 'optimizer.lr'"),
        ("model.num_classes=3", "model.num_classes follows from the chosen classes. Leave it out."),
        ("model={num_classes: 3}", "model.num_classes follows from the chosen classes"),
        ("class_weights.crack=3", "'class_weights' is one value and has no 'crack'"),
        ("seed.x=1", "'seed' is one value"),
        ("mode=udda", "did you mean 'uda'"),
        ("data.unchosen_classes=ignored", "did you mean 'ignore'"),
        ("data.labelled_target_share=1.5", "labelled_target_share must be a number from 0 to 1"),
        ("data.rare_class_sampling.mode=on", "In data.rare_class_sampling: Unknown mode"),
        ("data.rare_class_sampling.min_pixel=1", "did you mean 'min_pixels'"),
        ("data.rare_class_sampling=auto", "data.rare_class_sampling must be keys with values"),
        ("data={rare_class_share: 0.5, rare_class_sampling: {mode: auto}}", "set rare_class_share to 0"),
        ("iterations=0", "iterations must be a whole number from 1 to"),
        ("iterations=many", "Received: 'many'"),
        ("seed=-1", "seed"),
        ("optimizer.lr=0", "In optimizer: lr must be a number from above 0 to 1"),
        ("optimizer.warmup_iterations=20000", "below iterations"),
        ("self_training_start=1.5", "from 0 to 1"),
        ("self_training.ignore_margins=3", "In self_training"),
        ("data.scale.long_edge=630", "In data.scale"),
        ("data.augmentation.scale=[2, 1]", "In data.augmentation"),
        ("data.scale=null", "data.scale must be keys with values"),
        ("class_weights=heavy", "'off', 'auto'"),
        ("class_weights=[1, -3]", "numbers from 0 to 1000"),
        ("class_weights=[0, 0]", "above 0 for one class at least, or nothing is learnt. Received: [0.0, 0.0]"),
        ("class_weights=[1, .inf]", "a list of numbers from 0 to 1000"),
        ("class_weights={crack: .inf}", "a list of numbers from 0 to 1000"),
        ("class_weights={}", "or names with such"),
        ("optimizer.lr=.inf", "In optimizer: lr must be a number from above 0 to 1. Received: inf"),
        ("optimizer.lr=50", "In optimizer: lr must be a number from above 0 to 1. Received: 50"),
        ("optimizer.head_lr_factor=1e9", "In optimizer: head_lr_factor must be a number from 0 to 1000"),
        ("model.crop_size=[8192, 8192]", "two positive multiples of 64 up to 4096"),
        ("model.decoder_channels=100000", "decoder_channels must be a whole number from 1 to 4096"),
        ("iterations=99999999", "iterations must be a whole number from 1 to 10000000"),
        ("validation.interval=99999999", "In validation: interval must be a whole number from 1 to 1000000"),
        ("checkpoint.interval=99999999", "In checkpoint: interval must be a whole number from 1 to 1000000"),
        ("log_interval=99999999", "log_interval must be a whole number from 1 to 1000000"),
        ("batch_size=1000000", "batch_size must be a whole number from 1 to 4096"),
        ("data.workers=5000", "In data: workers must be a whole number from 0 to 256"),
        ("data.scale.long_edge=1600000", "In data.scale"),
        ("data.scale.factor=2", "In data.scale: factor is of the photos' own size"),
        ("data.scale={long_edge: null, short_edge: null, factor: 5}", "factor must be a number from 0.1 to 4"),
        ("self_training.ignore_margins=[99999, 0, 0, 0]", "four whole numbers from 0 to 65535"),
        ("data.ignored_classes=[no]", "in quotes where they are numbers or words such as no. Received: False"),
        ("data.label_scaling=area", "Unknown label_scaling 'area': expected one of: keep_thin, nearest"),
        ("validation.max_images=0", "In validation"),
        ("checkpoint.interval=0", "In checkpoint"),
        ("checkpoint.keep=0", "In checkpoint: keep must be a whole number from 1 to 1000"),
        ("optimizer.skip_limit=0", "skip_limit"),
        ("model.encoder=mit_b9", "mit_b"),
        ("seed", "key=value"),
        ("model.crop_size=[1", "not valid YAML"),
    ],
)
def test_setting_that_cannot_work_is_refused_with_the_remedy(override, hint):
    with pytest.raises(SettingsError, match=re.escape(hint)):
        TrainSettings().with_overrides([override])


def test_numbers_as_people_write_them_are_numbers():
    settings = TrainSettings().with_overrides(["optimizer.lr=1e-3", "optimizer.weight_decay=5E-2"])
    assert (settings.optimizer.lr, settings.optimizer.weight_decay) == (1e-3, 5e-2)


def test_names_of_classes_are_the_text_that_was_written():
    """Index masks give classes such names, which YAML reads as numbers and flags."""
    settings = TrainSettings.from_yaml("class_weights: {1: 2.0, no: 3, 010: 4, ~: 1, crack: 5}")
    assert settings.class_weights == {"1": 2.0, "no": 3.0, "010": 4.0, "~": 1.0, "crack": 5.0}
    assert TrainSettings.from_yaml(settings.to_yaml()) == settings
    assert TrainSettings().with_overrides(["class_weights={1: 2, no: 3}"]).class_weights == {"1": 2.0, "no": 3.0}


def test_unquoted_off_means_off():
    assert TrainSettings.from_yaml("class_weights: off").class_weights == "off"
    assert TrainSettings.from_yaml("data: {rare_class_sampling: {mode: off}}") == TrainSettings()


def test_former_settings_are_read_where_they_had_the_value_that_all_runs_have_now():
    former = TrainSettings().to_dict()
    former["optimizer"] |= {"betas": [0.9, 0.999], "warmup_start_ratio": 1e-6}
    former["self_training"]["feature_distance_min_share"] = 0.75
    assert TrainSettings.from_yaml(yaml.safe_dump(former)) == TrainSettings()
    with pytest.raises(SettingsError, match=r"optimizer\.betas is no setting any more: every run has \[0\.9, 0\.999\]"):
        TrainSettings.from_yaml("optimizer: {betas: [0.5, 0.999]}")
    for said in ("optimizer.betas=[0.9, 0.999]", "optimizer={betas: [0.9, 0.999]}", "pretrained_dir=null"):
        assert TrainSettings().with_overrides([said]) == TrainSettings()
    for said in ("optimizer.betas=[0.5, 0.9]", "optimizer={betas: [0.5, 0.9]}"):
        with pytest.raises(SettingsError, match=r"optimizer\.betas is no setting any more"):
            TrainSettings().with_overrides([said])


def test_keys_given_for_a_section_leave_its_other_keys_as_they_were():
    settings = TrainSettings.from_yaml("data: {skip_broken: true, scale: {long_edge: 256, short_edge: 128}}")
    changed = settings.with_overrides(["data={workers: 0, scale: {short_edge: 64}}", "data.memory_cache_mb=7"])
    data = changed.data
    assert (data.workers, data.skip_broken, data.memory_cache_mb) == (0, True, 7)
    assert (data.scale.long_edge, data.scale.short_edge) == (256, 64)
    weights = TrainSettings().with_overrides(["class_weights={a: 2}", "class_weights={b: 3}"])
    assert weights.class_weights == {"b": 3.0}, "it is one value, whatever names are in it"
    with pytest.raises(SettingsError, match=r"Unknown setting 'data\.scale\.long': did you mean 'long_edge'"):
        settings.with_overrides(["data={scale: {long: 3}}"])


def test_dotted_name_in_a_file_is_told_how_to_be_written():
    with pytest.raises(SettingsError, match=re.escape("'data.scale.long_edge': write it as data: {scale: {long_edge:")):
        TrainSettings.from_yaml("data.scale.long_edge: 640")


def test_file_that_is_no_mapping_is_refused_and_an_empty_one_means_defaults():
    assert TrainSettings.from_yaml("# nothing\n") == TrainSettings()
    with pytest.raises(SettingsError, match="keys with values"):
        TrainSettings.from_yaml("- mode: uda")


def test_yaml_cannot_make_objects():
    with pytest.raises(SettingsError, match="not valid YAML"):
        TrainSettings.from_yaml("mode: !!python/object/apply:os.getcwd []")


def test_learning_rate_is_the_product_of_warm_up_and_decay():
    settings = OptimizerSettings(warmup_iterations=10, power=2.0)
    assert lr_factor(0, 100, settings) == pytest.approx(1e-6)
    assert lr_factor(5, 100, settings) == pytest.approx((1 - 0.5 * (1 - 1e-6)) * 0.95**2)
    assert lr_factor(10, 100, settings) == pytest.approx(0.9**2)
    assert lr_factor(99, 100, settings) == pytest.approx(0.01**2)
    assert lr_factor(100, 100, settings) == 0
    constant = OptimizerSettings(warmup_iterations=0, power=0.0)
    assert {lr_factor(k, 100, constant) for k in (0, 50, 99)} == {1.0}


def test_folder_of_downloads_is_not_for_settings_to_name():
    """Settings come from others too; those that former versions recorded without a folder are read on."""
    assert TrainSettings.from_yaml("pretrained_dir: null") == TrainSettings()
    with pytest.raises(SettingsError, match="owner of the machine says .* PRETRAINED_WEIGHTS_DIR .* Leave it out"):
        TrainSettings.from_yaml("pretrained_dir: /home/somebody")
    with pytest.raises(SettingsError, match="owner of the machine says"):
        TrainSettings().with_overrides(["pretrained_dir=/home/somebody"])
