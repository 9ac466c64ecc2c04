"""The settings card without a browser: what it posts is set in the page's state, then the route is called."""

import pytest
from fastapi.testclient import TestClient
from supervisely.app import DataJson, StateJson
from supervisely.app.fastapi import _MainServer

from common.data.transforms import AUGMENTATION_LEVELS
from common.hrda import SettingsError
from common.hrda.checks import dotted_names
from common.plain_yaml import read_yaml
from train.page.gui import missing_target
from train.page.settings import SettingsSelector
from train.settings.presets import presets
from train.settings.training import DEFAULT_YAML, TrainSettings
from train.settings.yaml_text import set_value

EDITED = "/settings_editor_edited/button_clicked_cb"
DEFAULT = DEFAULT_YAML.read_text(encoding="utf-8")


class Card:
    """The card, and the browser's part."""

    def __init__(self, selector: SettingsSelector) -> None:
        self.selector = selector
        self.server = TestClient(_MainServer().get_server())
        self.changes: list[TrainSettings] = []
        self.selector.on_change(self.changes.append)

    @property
    def text(self) -> str:
        return self.selector.get_hyperparameters()

    @property
    def problem(self) -> str:
        """What the card says under the editor."""
        return DataJson()["settings_problem"]["text"]

    def said(self, widget_id: str) -> str:
        """What the card says at a field."""
        return DataJson()[f"{widget_id}_problem"]["text"]

    @property
    def answer(self) -> str:
        """What the card says beside the button."""
        text = self.selector.validator_text
        return "" if text.is_hidden() else f"{text.status}: {text.text}"

    def shown(self, widget_id: str) -> object:
        return StateJson()[widget_id]["value"]

    def choose(self, widget_id: str, value: object) -> None:
        """What a browser does when a person changes a field."""
        StateJson()[widget_id]["value"] = value
        self.server.post(f"/{widget_id}/value_changed").raise_for_status()

    def type(self, text: str) -> None:
        """What a browser does when a person changes the text."""
        StateJson()["settings_editor"]["text"] = text
        self.server.post(EDITED).raise_for_status()
        assert self.selector.wait(5)


@pytest.fixture
def card(settings_selector: SettingsSelector) -> Card:
    settings_selector.editor.readonly = False
    settings_selector.set_hyperparameters(DEFAULT)
    settings_selector.validator_text.hide()
    return Card(settings_selector)


def only_difference(text: str, path: str) -> object:
    """The value at `path`; all else must be as in the default text, comments included."""
    value = read_yaml(text)
    for name in path.split("."):
        value = value[name]
    assert text == set_value(DEFAULT, path, value)
    return value


@pytest.mark.parametrize(
    ("widget_id", "chosen", "path", "value"),
    [
        ("form_iterations", "700", "iterations", 700),
        ("form_batch_size", "3", "batch_size", 3),
        ("form_crop_size", "256x256", "model.crop_size", [256, 256]),
        ("form_masking", True, "self_training.masked_weight", 1.0),
        ("form_lr", "6e-5", "optimizer.lr", 6e-5),
        ("form_validation_interval", "50", "validation.interval", 50),
        ("form_adaptation", False, "mode", "source-only"),
    ],
)
def test_change_in_the_form_changes_exactly_that_value_in_the_yaml(card, widget_id, chosen, path, value):
    card.choose(widget_id, chosen)
    assert only_difference(card.text, path) == value
    assert card.changes == [TrainSettings.from_yaml(card.text)]
    assert card.shown(widget_id) == chosen, "what was typed must not be spelt anew under the fingers"
    assert card.shown("preset_select") == "custom"
    assert path in DataJson()["preset_text"]["text"]


@pytest.mark.parametrize("level", ["none", "medium", "hard"])
def test_augmentation_level_is_written_into_the_yaml(card, level):
    card.choose("form_augmentation", level)
    assert TrainSettings.from_yaml(card.text).data.augmentation == AUGMENTATION_LEVELS[level]
    assert card.text.count("#") == DEFAULT.count("#")


@pytest.mark.parametrize(
    ("path", "value", "widget_id", "shown"),
    [
        ("iterations", 700, "form_iterations", "700"),
        ("model.crop_size", [256, 512], "form_crop_size", "256x512"),
        ("optimizer.lr", 6e-5, "form_lr", "6e-5"),
        ("mode", "control", "form_adaptation", False),
        ("data.augmentation.photometric", 0.3, "form_augmentation", "custom"),
        ("data.augmentation", {"flip": False, "photometric": 0}, "form_augmentation", "none"),
    ],
)
def test_change_of_the_yaml_changes_the_form(card, path, value, widget_id, shown):
    text = set_value(DEFAULT, path, value)
    card.type(text)
    assert card.shown(widget_id) == shown
    if DataJson()[widget_id].get("items"):
        assert shown in [item["value"] for item in DataJson()[widget_id]["items"]]
    assert card.text == text, "the text is the person's: it must not be written back"
    assert card.changes == [TrainSettings.from_yaml(text)]


def test_value_that_the_browser_reports_back_changes_nothing(card):
    # Lists report values that the app has sent, perhaps when the person has typed on.
    card.type(set_value(DEFAULT, "data.augmentation.photometric", 0.3))
    typed_on = card.text.replace("flip: true", "flip: false")
    StateJson()["settings_editor"]["text"] = typed_on
    card.choose("form_augmentation", "custom")
    card.choose("form_crop_size", "512x512")
    card.choose("preset_select", "custom")
    assert card.text == typed_on


def test_text_that_is_no_yaml_is_named_and_greys_the_form_until_it_is_right(card):
    card.type("iterations: [1\n")
    assert card.problem.startswith("The settings are not valid YAML: line")
    assert card.shown("form_iterations") == "20000"
    assert DataJson()["form_iterations"]["disabled"] is True
    assert not card.selector.validate_step()
    assert card.answer.startswith("error: The settings are not valid YAML")
    with pytest.raises(SettingsError, match="not valid YAML"):
        card.selector.require_settings()
    card.type("iterations: 600\n")
    assert (card.problem, card.answer, card.shown("form_iterations")) == ("", "", "600")
    assert DataJson()["form_iterations"]["disabled"] is False


def test_value_that_cannot_work_is_named_and_can_be_corrected_in_the_form(card):
    card.type(DEFAULT.replace("batch_size: 6", "batch_size: <b>"))
    assert "batch_size must be" in card.problem
    assert "<b>" not in card.problem, "the text of a person is not HTML"
    card.choose("form_iterations", "100")
    assert "warmup_iterations" in card.problem or "batch_size" in card.problem
    card.choose("form_iterations", "1000")
    card.choose("form_batch_size", "2")
    assert card.problem == ""
    assert card.changes[-1].batch_size == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [("2.5", "Iterations must be a whole number of 1 or more"), ("99999999", "from 1 to 10000000")],
)
def test_field_is_checked_as_one_types_and_the_yaml_waits_until_it_is_left(card, typed, said):
    def press(text: str) -> None:
        StateJson()["form_iterations"]["value"] = text
        card.server.post("/form_iterations_typed/button_clicked_cb").raise_for_status()
        assert card.selector.form.wait(5)

    press(typed)
    assert said in card.said("form_iterations")
    assert "The YAML keeps 20000." in card.said("form_iterations")
    press("700")
    assert card.said("form_iterations") == ""
    assert card.text == DEFAULT
    card.choose("form_iterations", "700")
    assert only_difference(card.text, "iterations") == 700


def test_every_setting_is_explained_with_its_bounds_beside_the_form():
    html = DataJson()["settings_help"]["text"]
    for name in dotted_names(TrainSettings):
        assert f"<code>{name}</code>" in html
    assert "a whole number from 1 to 10000000. Default: 20000." in html
    for word in ("uda", "MIC", "RCS"):
        assert f"<b>{word}</b>" in DataJson()["settings_words"]["text"]


FIELDS = {
    "form_iterations": ("Iterations must be a whole number of 1 or more", ["", "2.5", "0", "-1", "abc", "1e3", "nan"]),
    "form_batch_size": ("Batch size must be a whole number of 1 or more", ["", "1.5", "-2"]),
    "form_validation_interval": ("Validation interval must be a whole number of 1 or more", ["0", "<b>often</b>"]),
    "form_lr": ("The learning rate must be a number above 0", ["", "1e-", "fast", "0", "-1", "nan", "inf"]),
}


@pytest.mark.parametrize(("widget_id", "typed"), [(name, one) for name, (_, typed) in FIELDS.items() for one in typed])
def test_what_is_no_number_is_said_at_its_field_and_holds_the_step_up_until_it_is_mended(card, widget_id, typed):
    shown = card.shown(widget_id)
    card.choose(widget_id, typed)
    assert (card.text, card.shown(widget_id)) == (DEFAULT, typed), "it is the person's to mend"
    said = card.said(widget_id)
    assert said.startswith(FIELDS[widget_id][0])
    assert said.endswith(f"The YAML keeps {shown}.")
    assert "<b>" not in said
    assert not card.selector.validate_step()
    assert card.answer == f"error: {said}"
    card.choose("form_masking", True)
    assert card.said(widget_id) == said, "a change elsewhere mends nothing"
    card.choose(widget_id, shown)
    assert (card.said(widget_id), card.answer) == ("", "")
    assert card.selector.validate_step()


def test_yaml_that_gives_a_wrong_field_another_value_mends_it(card):
    card.choose("form_iterations", "abc")
    card.choose("form_batch_size", "abc")
    card.type(DEFAULT.replace("iterations: 20000", "iterations: 30000"))
    assert (card.shown("form_iterations"), card.said("form_iterations")) == ("30000", "")
    assert (card.shown("form_batch_size"), bool(card.said("form_batch_size"))) == ("abc", True)
    card.choose("preset_select", "quick_look")
    assert (card.shown("form_batch_size"), card.said("form_batch_size")) == ("2", "")


def test_adaptation_without_target_is_said_at_its_switch_and_holds_the_step_up(card):
    chosen = []
    card.selector.use_target(lambda settings: missing_target(settings, bool(chosen)))
    try:
        missing = "Mode 'uda' needs target photos, and no target project is chosen"
        assert DataJson()["form_mode"]["text"].startswith(missing)
        assert not card.selector.validate_step()
        assert card.answer.startswith(f"error: {missing}")
        card.choose("form_adaptation", False)
        assert (DataJson()["form_mode"]["text"].startswith("Learns from the source alone"), card.answer) == (True, "")
        assert card.selector.validate_step()
        card.choose("form_adaptation", True)
        assert not card.selector.validate_step()
        chosen.append("a target")
        card.selector.show_target()
        assert DataJson()["form_mode"]["text"].startswith("Mode uda: a teacher labels the target photos")
        assert card.answer == ""
        assert card.selector.validate_step()
    finally:
        card.selector.use_target(lambda settings: None)


@pytest.mark.parametrize("name", presets())
def test_preset_replaces_the_text_and_is_recognised_again(card, name):
    card.selector.set_hyperparameters("iterations: 7\noptimizer: {warmup_iterations: 1}\n")
    assert card.shown("preset_select") == "custom"
    card.choose("preset_select", name)
    assert card.text == presets()[name].text
    assert card.shown("form_iterations") == str(presets()[name].settings.iterations)
    card.choose("form_batch_size", "17")
    assert presets()[name].title in DataJson()["preset_text"]["text"]
    card.choose("form_batch_size", str(presets()[name].settings.batch_size))
    assert card.shown("preset_select") == name


def test_app_state_updates_the_form(card):
    card.selector.set_hyperparameters("iterations: 700\nmode: source-only\n")
    assert (card.shown("form_iterations"), card.shown("form_adaptation")) == ("700", False)
    assert card.selector.settings.mode == "source-only"
    assert card.selector.validate_step() and "700 iterations" in card.answer


def test_editor_reports_typing_and_leaving(card):
    html = card.selector.editor.to_html()
    for event in ("@input", "@focusout"):
        assert f"{event}=\"post('{EDITED}')\"" in html
    assert html.index("@focusout") < html.index("<sly-editor") < html.index("@input")


def test_locked_card_stays_locked_when_the_text_changes(card):
    card.selector.form.allow_changes(True)
    card.selector.editor.readonly = True
    for widget in card.selector.widgets_to_disable:
        widget.disable()
    card.type("iterations: 600\n")
    assert DataJson()["form_iterations"]["disabled"] is True
    for widget in card.selector.widgets_to_disable:
        widget.enable()


def test_preset_leaves_what_the_model_card_decides(card):
    card.selector.set_value("pretrained", "imagenet")
    assert only_difference(card.text, "pretrained") == "imagenet"
    assert card.changes[-1].pretrained == "imagenet"
    assert card.shown("preset_select") == "cracks", "it is no deviation from the preset"
    card.choose("preset_select", "quick_look")
    assert card.text == set_value(presets()["quick_look"].text, "pretrained", "imagenet")
    assert card.shown("preset_select") == "quick_look"
