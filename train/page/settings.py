"""The settings card: presets and a form over the full YAML, which always say the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import supervisely.nn.training.gui.hyperparameters_selector as card_module
from markupsafe import Markup
from supervisely.app.widgets import Button, Card, Container, Editor, Field, Select, Text
from supervisely.nn.training.gui.hyperparameters_selector import HyperparametersSelector

from common.hrda import SettingsError
from common.plain_yaml import read_yaml
from common.replacing import replaced
from common.web.guide import LINK
from train.page.latest import LatestOnly
from train.page.live import forget_error, put, send
from train.page.samples import SampleSource, SamplesView
from train.page.settings_form import CUSTOM, FormField, SettingsForm
from train.page.settings_help import explained, words
from train.settings.presets import DEFAULT_PRESET, differences, presets
from train.settings.training import TrainSettings
from train.settings.yaml_text import get_values, set_value, set_values

_PAUSE_S = 0.3
"""Who types is left alone for so long before the form follows."""
_NAMED = 4
_NETWORK = (
    "The network is the one of the model card, whatever <code>model.encoder</code> in the YAML says; presets leave "
    "what it starts from, <code>pretrained</code>, as it is. The form changes the YAML and follows it."
)


class ReportingEditor(Editor):
    """An editor that tells the app of changes while a person types, which the SDK's does not."""

    def __init__(self, text: str, on_edit: Callable[[], None], **options: Any) -> None:
        """Make the widget.

        Args:
            text: shown first.
            on_edit: called after a change, and when the editor is left.
            options: as the SDK's `Editor` takes them.
        """
        super().__init__(text, **options)
        # Never drawn: a button is the SDK's way to a route of one's own.
        self._edited = Button("", show_loading=False, widget_id=f"{self.widget_id}_edited")
        self._edited.click(on_edit)

    def to_html(self) -> Markup:
        """The SDK's editor, whose events are posted to the app."""
        post = f"post('{self._edited.get_route_path(Button.Routes.CLICK)}')"
        html = str(super().to_html())
        # Leaving is an event of the browser itself: it comes even if the editor had another name for its own.
        html = html.replace("<div", f'<div @focusout="{post}"', 1)
        return Markup(html.replace("<sly-editor", f'<sly-editor @input="{post}"', 1))


class SettingsSelector(HyperparametersSelector):
    """The settings card. The YAML decides: the form shows it, and changes single values of it."""

    description = "Choose a preset and change what matters; everything is in the YAML"

    def __init__(self, hyperparameters: str, app_options: dict[str, Any]) -> None:
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[TrainSettings], None]] = []
        self._settings = TrainSettings.from_yaml(hyperparameters)
        self._base = DEFAULT_PRESET
        self._missing: Callable[[TrainSettings], str | None] = lambda _: None
        self._typing = LatestOnly(self._follow, "settings")
        parts = {
            "Editor": lambda text, **options: ReportingEditor(
                text,
                self._typing.order,
                height_lines=46,
                language_mode="yaml",
                restore_default_button=False,
                widget_id="settings_editor",
            ),
            "Button": partial(Button, widget_id="settings_next"),
        }
        with replaced(card_module, **parts):
            super().__init__(hyperparameters, app_options)
        self.run_speedtest_checkbox.hide()
        self.form = SettingsForm(self._settings)
        self.samples = SamplesView(self.require_settings)
        self._preset_select, self._preset_text = self._preset_widgets()
        self.form.on_change(self._form_changed)
        self._preset_select.value_changed(self._preset_chosen)
        self._problem = Text("", "error", widget_id="settings_problem")
        self._arrange()
        self._show_preset(self._settings)
        send()

    @property
    def widgets_to_disable(self) -> list:
        """What cannot be changed once the step is done."""
        return [self._preset_select, *self.form.widgets, *super().widgets_to_disable]

    @property
    def settings(self) -> TrainSettings:
        """The last settings that were valid."""
        return self._settings

    def on_change(self, callback: Callable[[TrainSettings], None]) -> None:
        """Call `callback` with the settings after each change that leaves them valid."""
        self._callbacks.append(callback)

    def use_source(self, source: Callable[[], SampleSource]) -> None:
        """Draw samples from what `source` gives at each click; it may raise ValueError with a sentence."""
        self.samples.use_source(source)

    def use_target(self, missing: Callable[[TrainSettings], str | None]) -> None:
        """Have `missing` say whether settings need target photos that are not chosen."""
        self._missing = missing
        self.form.use_missing(missing)
        self.show_target()

    def show_target(self) -> None:
        """Say it anew: what is chosen as target may have changed."""
        self.form.show_mode()
        forget_error(self.validator_text)

    def set_hyperparameters(self, hyperparameters: str) -> None:
        """Replace the YAML, as app states and experiments do; the form follows."""
        with self._lock:
            self.editor.set_text(hyperparameters)
            self._read(anew=True, finds_preset=True)

    def set_value(self, path: str, value: Any) -> None:
        """Change one value of the YAML; the form follows.

        Raises:
            SettingsError: the YAML cannot be changed.
        """
        with self._lock:
            self.editor.set_text(set_value(self.get_hyperparameters(), path, value))
            self._read()

    def require_settings(self) -> TrainSettings:
        """The settings as the page has them now; form and sentence follow.

        Raises:
            SettingsError: the YAML cannot be trained with.
        """
        with self._lock:
            try:
                settings = TrainSettings.from_yaml(self.get_hyperparameters())
            finally:
                self._read()
            return settings

    def toggle_mb_speedtest(self, is_checked: bool) -> None:
        """Nothing: the SDK's speed test would predict 300 batches, which tells little for sliding windows."""

    def set_export_tensorrt_checkbox_value(self, value: bool) -> None:
        """Nothing: there is no such checkbox, and the SDK calls this all the same."""

    def validate_step(self) -> bool:
        """Check the YAML and say beside the button what is wrong."""
        try:
            settings = self.require_settings()
        except SettingsError as error:
            self._answer(str(error), "error")
            return False
        wrong = self.form.problem or self._missing(settings)
        if wrong:
            self._answer(wrong, "error")
            return False
        height, width = settings.model.crop_size
        self._answer(
            f"Mode {settings.mode}, {settings.iterations} iterations, batch {settings.batch_size}, "
            f"crops of {height} × {width}.",
            "success",
        )
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the form has followed what was typed."""
        return self._typing.wait(timeout)

    # ------------------------------------------------------------------------------------------- what a person does
    def _follow(self, superseded: Callable[[], bool]) -> None:
        time.sleep(_PAUSE_S)
        if not superseded():
            with self._lock:
                self._read()

    def _form_changed(self, field: FormField) -> None:
        with self._lock:
            text = self.get_hyperparameters()
            try:
                wanted = field.written(field.value)
                present = get_values(text, wanted)
                changes = {path: value for path, value in wanted.items() if present.get(path) != value}
                if changes:
                    self.editor.set_text(set_values(text, changes))
            except SettingsError as error:
                self._say(str(error))
                return
            self._read()

    def _preset_chosen(self, name: str) -> None:
        with self._lock:
            # Browsers also report what was not chosen there but sent to them.
            if name in presets() and name != self._preset:
                self._base = name
                # Like the network, what it starts from is chosen on the model card.
                self.editor.set_text(set_value(presets()[name].text, "pretrained", self._settings.pretrained))
                self._read(anew=True)

    # --------------------------------------------------------------------------------------------- what is shown
    def _read(self, *, anew: bool = False, finds_preset: bool = False) -> None:
        """Have form, preset and sentence follow the YAML.

        Args:
            anew: the YAML was replaced: what was typed into the form counts no more.
            finds_preset: say what was changed from the preset that is nearest.
        """
        text = self.get_hyperparameters()
        try:
            read_yaml(text)
        except SettingsError as error:
            self._allow_form(False)
            self._say(str(error))
            return
        self._allow_form(True)
        try:
            settings = TrainSettings.from_yaml(text)
        except SettingsError as error:
            self._say(str(error))
            return
        if finds_preset:
            self._base = min(presets(), key=lambda name: len(differences(settings, presets()[name].settings)))
        self._say("")
        forget_error(self.validator_text)
        self._show_preset(settings)
        self.form.show(settings, anew=anew)
        if settings != self._settings:
            self._settings = settings
            self.samples.outdate()
            for callback in self._callbacks:
                callback(settings)

    def _allow_form(self, allowed: bool) -> None:
        if not self.editor.readonly:
            self.form.allow_changes(allowed)

    def _say(self, problem: str) -> None:
        """Say under the editor, where a person types, what is wrong; nothing if all is well."""
        put(self._problem, text=escape(problem, quote=False))
        send()

    def _answer(self, sentence: str, kind: str) -> None:
        """Say beside the button how the step stands."""
        self.validator_text.set(escape(sentence, quote=False), kind)
        self.validator_text.show()

    def _show_preset(self, settings: TrainSettings) -> None:
        same = [name for name, preset in presets().items() if not differences(settings, preset.settings)]
        self._preset = same[0] if same else CUSTOM
        self._base = same[0] if same else self._base
        base = presets()[self._base]
        if same:
            sentence = base.description
        else:
            names = differences(settings, base.settings)
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            sentence = f"Changed from “{base.title}”: {', '.join(names[:_NAMED])}{more}."
        put(self._preset_text, text=escape(sentence, quote=False))
        self._preset_select.set_value(self._preset)

    # ------------------------------------------------------------------------------------------------ the layout
    def _preset_widgets(self) -> tuple[Select, Text]:
        items = [Select.Item(name, preset.title) for name, preset in presets().items()]
        items.append(Select.Item(CUSTOM, "Changed", disabled=True))
        select = Select(items, size="small", width_percent=100, widget_id="preset_select")
        return select, Text("", "info", widget_id="preset_text")

    def _arrange(self) -> None:
        # Without a width of their own, the columns would be as wide as the longest line of the YAML.
        narrow = {"style": "width: 100%; min-width: 0", "widgets_style": "min-width: 0"}
        form = Container(
            [
                Field(Container([self._preset_select, self._preset_text], gap=4), "Preset", "Replaces all settings"),
                self.form.container,
            ],
            gap=12,
            **narrow,
        )
        # Beside the end of the form, which is longer than the editor.
        below = [
            Text(_NETWORK, "info", font_size=13, widget_id="network_text"),
            Text(words(), "text", font_size=13, widget_id="settings_words"),
        ]
        columns = Container(
            [form, Container([self.editor, self._problem, *below], **narrow)],
            "horizontal",
            gap=24,
            fractions=["2", "3"],
            overflow=None,
            widgets_style="min-width: 0",
        )
        help_text = Text(explained(), "text", font_size=13, widget_id="settings_help")
        samples = Field(self.samples.container, "Augmented samples", "Four crops of source photos with their labels")
        benchmark = Field(
            self.run_model_benchmark_checkbox,
            "Model benchmark",
            "After the training, measure the best checkpoint on all validation photos and write a report with pictures",
        )
        replaced_by_ours = (self.editor, self.model_benchmark_field)
        rest = [widget for widget in self.display_widgets if widget not in replaced_by_ours]
        self.model_benchmark_field = benchmark
        self.display_widgets = [columns, help_text, samples, benchmark, *rest]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            content_top_right=Text(LINK),
            lock_message=self.lock_message,
            collapsable=self.app_options.get("collapsable", False),
        )
        self.card.lock()
