"""The handful of settings that people change, as fields of a form."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from markupsafe import Markup
from supervisely.app import DataJson, StateJson
from supervisely.app.widgets import Button, Container, Field, Input, Select, Switch, Text, Widget

from common.data.transforms import AUGMENTATION_LEVELS, AugmentationSettings, augmentation_level
from common.hrda import SettingsError
from common.hrda.checks import received
from train.page.latest import LatestOnly
from train.page.live import put
from train.settings.training import TrainSettings

_PAUSE_S = 0.3
"""Who types is left alone for so long before what is typed is checked."""
CUSTOM = "custom"
"""Stands for values that no item of a list has."""

_CROP_SIDES = (128, 192, 256, 320, 384, 512, 640, 768, 896, 1024)
_MODES = {
    "uda": "Mode uda: a teacher labels the target photos, and the student learns from mixtures of them and the source.",
    "source-only": "Learns from the source alone: the baseline to compare with.",
    "control": "The YAML says control: adapts to nothing, but sees the source as strongly augmented as if it did.",
    "supervised": "The YAML says supervised: learns from the labels of the target, as an upper bound.",
}


@dataclass
class FormField:
    """A widget and the values of the settings that it stands for."""

    widget: Widget
    shown: Callable[[TrainSettings], Any]
    """What the widget shows for these settings."""
    written: Callable[[Any], dict[str, Any]]
    """The values, by their dotted names, that what is shown stands for; SettingsError if there are none."""

    def __post_init__(self) -> None:
        self.problem = ""
        """Why what the widget shows stands for nothing; said beside it. Id: the widget's with `_problem`."""
        self._beside = Text("", "error", font_size=13, widget_id=f"{self.widget.widget_id}_problem")

    @property
    def value(self) -> Any:
        """What the widget shows at present."""
        return StateJson()[self.widget.widget_id]["value"]

    def say(self, problem: str) -> None:
        """Say beside the widget why what it shows stands for nothing; nothing if all is well."""
        if problem != self.problem:
            self.problem = problem
            self._beside.set(escape(problem, quote=False), "error")

    def row(self, title: str, description: str, *others: Widget) -> Field:
        """The widget with its title and what is said of it."""
        return Field(Container([self.widget, *others, self._beside], gap=2), title, description)

    def means(self, value: Any) -> bool:
        """Whether what the widget shows stands for the same as `value`, perhaps spelt differently."""
        try:
            return self.value == value or self.written(self.value) == self.written(value)
        except SettingsError:
            return False


class ReportingInput(Input):
    """A field of text that tells the app of every key, besides the change that the SDK's reports when it is left."""

    def __init__(self, widget_id: str) -> None:
        super().__init__(size="small", widget_id=widget_id)
        # Never drawn: a button is the SDK's way to a route of one's own.
        self._typed = Button("", show_loading=False, widget_id=f"{widget_id}_typed")

    def on_key(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every key."""
        self._typed.click(callback)

    def to_html(self) -> Markup:
        """The SDK's field, whose keys are posted to the app."""
        post = f"post('{self._typed.get_route_path(Button.Routes.CLICK)}')"
        return Markup(str(super().to_html()).replace("<el-input", f'<el-input @input="{post}"', 1))


class OpenSelect(Select):
    """A list in which a value appears while it is chosen, though it is none of the usual ones."""

    def __init__(self, labels: Mapping[Any, str], label: Callable[[Any], str], **options: Any) -> None:
        """Make the widget.

        Args:
            labels: the usual values and what they are called.
            label: what another value is called.
            options: as the SDK's `Select` takes them.
        """
        self._usual, self._label = dict(labels), label
        super().__init__([Select.Item(value, name) for value, name in self._usual.items()], **options)

    def offer(self, value: Any) -> None:
        """Have `value` in the list; the value that is chosen stays."""
        labels = self._usual if value in self._usual else self._usual | {value: self._label(value)}
        items = [Select.Item(value, name).to_json() for value, name in labels.items()]
        if items != DataJson()[self.widget_id]["items"]:
            # The SDK's own way chooses the first item, which the browser would report as a change.
            put(self, items=items)


class SettingsForm:
    """The form: shows settings and tells which values a person changes."""

    def __init__(self, settings: TrainSettings) -> None:
        """Make the widgets.

        Args:
            settings: shown first.
        """
        sizes = {f"{side}x{side}": f"{side} × {side}" for side in _CROP_SIDES}
        levels = {name: _level_label(name, level) for name, level in AUGMENTATION_LEVELS.items()}
        self._mode = Text(_MODES[settings.mode], font_size=13, widget_id="form_mode")
        crop_size = OpenSelect(sizes, _size_label, size="small", width_percent=100, widget_id="form_crop_size")
        adaptation = Switch(settings.mode == "uda", widget_id="form_adaptation")
        masking = Switch(settings.self_training.masked_weight > 0, widget_id="form_masking")
        augmentation = OpenSelect(
            levels, lambda _: "As in the YAML", size="small", width_percent=100, widget_id="form_augmentation"
        )
        # Plain text: a field for numbers drops what is none, and nobody hears of it.
        rows = {
            ("Iterations", "Steps of the whole run"): FormField(
                _entry("form_iterations"),
                lambda s: str(s.iterations),
                lambda v: _bounded("iterations", _whole("Iterations", v)),
            ),
            ("Batch size", "Crops of each domain in a step; more need more memory"): FormField(
                _entry("form_batch_size"),
                lambda s: str(s.batch_size),
                lambda v: _bounded("batch_size", _whole("Batch size", v)),
            ),
            ("Crop size", "Pixels that the network sees at once; more need more memory"): FormField(
                crop_size, lambda s: "{}x{}".format(*s.model.crop_size), _crop_values
            ),
            ("Learning rate", "Of the encoder, such as 1e-4"): FormField(
                _entry("form_lr"), lambda s: _short(s.optimizer.lr), _lr_values
            ),
            ("Validation interval", "Iterations between measurements"): FormField(
                _entry("form_validation_interval"),
                lambda s: str(s.validation.interval),
                lambda v: _bounded("validation.interval", _whole("Validation interval", v)),
            ),
            ("Adaptation", "Learn from the target photos too"): FormField(
                adaptation, lambda s: s.mode == "uda", lambda v: {"mode": "uda" if v else "source-only"}
            ),
            (
                "Masked images (MIC)",
                "Hides blocks of target photos, for the student to predict",
            ): FormField(
                masking,
                lambda s: s.self_training.masked_weight > 0,
                lambda v: {"self_training.masked_weight": 1.0 if v else 0.0},
            ),
            ("Augmentation", "How much the training photos are varied"): FormField(
                augmentation, lambda s: augmentation_level(s.data.augmentation) or CUSTOM, _augmentation_values
            ),
        }
        self._fields = list(rows.values())
        self._settings = settings
        self._missing: Callable[[TrainSettings], str | None] = lambda _: None
        self._shown = {field.widget.widget_id: field.value for field in self._fields}
        self._can_be_changed = True
        self._checks: list[LatestOnly] = []
        under = {adaptation: [self._mode]}
        self.container = Container(
            [field.row(*texts, *under.get(field.widget, [])) for texts, field in rows.items()], gap=12
        )
        self.show(settings)

    @property
    def widgets(self) -> list[Widget]:
        """What a person can change."""
        return [field.widget for field in self._fields]

    @property
    def problem(self) -> str:
        """Why a field stands for nothing at present; empty if all do."""
        return next((field.problem for field in self._fields if field.problem), "")

    def on_change(self, callback: Callable[[FormField], None]) -> None:
        """Call `callback` with a field when a person has changed it to what stands for something."""
        for field in self._fields:
            field.widget.value_changed(lambda _, field=field: self._changed(field, callback))
            if isinstance(field.widget, ReportingInput):
                check = LatestOnly(partial(self._check, field), f"check of {field.widget.widget_id}")
                field.widget.on_key(check.order)
                self._checks.append(check)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until what was typed is checked."""
        return all(check.wait(timeout) for check in self._checks)

    def use_missing(self, missing: Callable[[TrainSettings], str | None]) -> None:
        """Have `missing` say what settings lack, which is then said beside the switch for adaptation."""
        self._missing = missing

    def show(self, settings: TrainSettings, *, anew: bool = False) -> None:
        """Show settings; what stands for the same already is left as it was typed.

        Args:
            settings: to show.
            anew: also in fields that stand for nothing at present; else those are left to whoever typed there, unless
                the settings have another value for them than before.
        """
        for field in self._fields:
            value, widget = field.shown(settings), field.widget
            if isinstance(widget, OpenSelect):
                widget.offer(value)
            if field.problem and not anew and value == field.shown(self._settings):
                continue
            field.say("")
            if not field.means(value):
                StateJson()[widget.widget_id]["value"] = value
            self._shown[widget.widget_id] = field.value
        self._settings = settings
        self.show_mode()
        StateJson().send_changes()
        DataJson().send_changes()

    def show_mode(self) -> None:
        """Say what the mode means, or what it lacks."""
        missing = self._missing(self._settings)
        said = (
            escape(missing, quote=False) if missing else _MODES[self._settings.mode],
            "error" if missing else "text",
        )
        if said != (self._mode.text, self._mode.status):
            self._mode.set(*said)

    def allow_changes(self, allowed: bool) -> None:
        """Let the fields be changed, or grey them."""
        if allowed != self._can_be_changed:
            self._can_be_changed = allowed
            for widget in self.widgets:
                widget.enable() if allowed else widget.disable()

    def _changed(self, field: FormField, callback: Callable[[FormField], None]) -> None:
        # Browsers also report values that were not chosen there but sent to them.
        if field.value == self._shown[field.widget.widget_id]:
            return
        self._shown[field.widget.widget_id] = field.value
        field.say(self._problem_of(field))
        if not field.problem:
            callback(field)

    def _check(self, field: FormField, superseded: Callable[[], bool]) -> None:
        """Say, a moment after the last key, what is wrong with what is typed so far; nothing else changes yet."""
        time.sleep(_PAUSE_S)
        if not superseded():
            field.say(self._problem_of(field))

    def _problem_of(self, field: FormField) -> str:
        """Why what a field shows stands for nothing; empty if all is well."""
        try:
            field.written(field.value)
        except SettingsError as error:
            return f"{error} The YAML keeps {field.shown(self._settings)}."
        return ""


def _entry(widget_id: str) -> ReportingInput:
    return ReportingInput(widget_id)


def _whole(name: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise SettingsError(f"{name} must be a whole number of 1 or more. Received: {received(value)}.")
    return number


def _lr_values(value: Any) -> dict[str, float]:
    try:
        lr = float(value)
    except (TypeError, ValueError):
        lr = 0.0
    if not 0 < lr < float("inf"):
        raise SettingsError(f"The learning rate must be a number above 0, such as 1e-4. Received: {received(value)}.")
    return _bounded("optimizer.lr", lr)


def _bounded(path: str, value: float) -> dict[str, Any]:
    """A value by its name, where the settings' own bounds allow it."""
    # Without warm-up, which has a bound of its own with the iterations.
    TrainSettings().with_overrides(["optimizer.warmup_iterations=0", f"{path}={value!r}"])
    return {path: value}


def _crop_values(value: Any) -> dict[str, list[int]]:
    sides = re.fullmatch(r"(\d+)x(\d+)", str(value))
    if sides is None:
        raise SettingsError(f"Choose a crop size from the list. Received: {received(value)}.")
    return {"model.crop_size": [int(side) for side in sides.groups()]}


def _augmentation_values(value: Any) -> dict[str, Any]:
    if value == CUSTOM:
        return {}
    if value not in AUGMENTATION_LEVELS:
        raise SettingsError(f"Choose an augmentation from the list. Received: {received(value)}.")
    level = AUGMENTATION_LEVELS[value].to_dict()
    return {f"data.augmentation.{name}": setting for name, setting in level.items()}


def _short(number: float) -> str:
    return re.sub(r"e([-+])0+", r"e\1", f"{number:.12g}")


def _size_label(value: str) -> str:
    height, width = value.split("x")
    return f"{height} × {width} (height × width)" if height != width else f"{height} × {width}"


def _level_label(name: str, level: AugmentationSettings) -> str:
    changes = []
    if level.flip:
        changes.append("mirrored")
    if level.rotate:
        changes.append("turned")
    if level.scale != (1.0, 1.0):
        changes.append(f"size × {level.scale[0]:g} to {level.scale[1]:g}")
    if level.photometric:
        changes.append(f"colours ± {100 * level.photometric:g}%")
    return f"{name.capitalize()}: {', '.join(changes) or 'photos as they are'}"
