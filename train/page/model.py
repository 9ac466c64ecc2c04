"""The card of the model: the networks with the memory that they take, and what else a training can start from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import supervisely.nn.training.gui.model_selector as card_module
from supervisely import Api
from supervisely.app import DataJson
from supervisely.app.widgets import Button, Card, Container, PretrainedModelsSelector, RadioTabs, Text, Widget
from supervisely.nn.training.gui.model_selector import ModelSelector
from supervisely.nn.utils import ModelSource

from common.hrda import SettingsError
from common.hrda.catalogue import DEFAULT, DEFAULT_ON_CPU, ENCODERS, is_non_commercial
from common.replacing import replaced
from common.web.guide import LINK
from train.page.encoder_weights import EncoderWeightsChoice, describe_weights
from train.page.latest import LatestOnly
from train.page.live import forget_error, put, send
from train.page.memory_plan import best_card, describe_need, fits, gib, memory_of
from train.page.pace import PaceEstimate
from train.page.start_weights import StartWeightsSelector
from train.settings.training import TrainSettings

SIZE, LICENCE, MEMORY, PACE = "Parameters (M)", "Licence of the weights", "Memory", "An iteration"
"""Names of columns."""
_UNKNOWN, _NOT_INSTALLED = "…", "not installed"
_WORKING = "Working out the memory…"
_GUIDANCE = (
    "As a rule, more parameters make a network more accurate and slower. Estimate measures how long an iteration of "
    f"the chosen one takes here. The default is {DEFAULT}, and {DEFAULT_ON_CPU} on a machine without a graphics card."
)


def first_choice() -> str:
    """The network that is chosen at first: one that this machine can train."""
    return DEFAULT_ON_CPU if best_card() is None else DEFAULT


class HRDAModelSelector(ModelSelector):
    """The model card. Ids: `model_tabs`, `model_table`, `model_memory`, `encoder_weights`, `custom_tabs`,
    `former_checkpoint`, `models_refresh`, `model_next`.

    Args:
        api: of the instance.
        framework: under which experiments are filed.
        models: the networks, as `models.json` lists them.
        app_options: of the SDK. Without a `default_model`, what is chosen at first is what this machine can train.
    """

    description = "Choose the network, or what to go on from"

    def __init__(self, api: Api, framework: str, models: list[dict[str, Any]], app_options: dict[str, Any]) -> None:
        self.memory_text = Text("", widget_id="model_memory")
        self.weights = EncoderWeightsChoice()
        self._settings = TrainSettings()
        self._asks_servers = True
        self._compares = False
        self._figures: dict[str, str] = {}
        self._paces: dict[str, str] = {}
        self.pace = PaceEstimate(lambda: _with(self._settings, self._chosen_network()), self._show_pace)
        self._estimating = LatestOnly(self._estimate, "memory")
        parts = {
            "PretrainedModelsSelector": partial(PretrainedModelsSelector, widget_id="model_table"),
            "ExperimentSelector": partial(StartWeightsSelector, framework=framework),
            "RadioTabs": self._tabs,
            "Button": partial(Button, widget_id="model_next"),
            "Card": partial(Card, content_top_right=Text(LINK)),
        }
        with replaced(card_module, **parts):
            super().__init__(api, framework, models, app_options)
        if "default_model" not in app_options.get("model_selector", {}):
            self.pretrained_models_table.set_by_model_name(first_choice())
        self.pretrained_models_table.model_changed(lambda row: self._chosen())
        custom = self.experiment_selector
        for changed in (
            self.model_source_tabs.value_changed,
            custom.tabs.value_changed,
            custom.former_select.value_changed,
            custom.selection_changed,
        ):
            changed(lambda _: forget_error(self.validator_text))
        self._show_weights()
        self._show_figures()

    def show_settings(self, settings: TrainSettings, classes: int | None = None) -> None:
        """Show what the settings start from, and work out in the background what each network takes with them.

        Args:
            settings: all but their encoder, which is chosen here.
            classes: number of classes, background included; None: two.
        """
        count, before = classes or settings.model.num_classes, self._settings.pretrained
        self._settings = replace(settings, model=replace(settings.model, num_classes=count))
        self._show_weights()
        says_before = self.get_model_source() == ModelSource.PRETRAINED and not self.validator_text.is_hidden()
        if says_before and settings.pretrained != before:
            with self.not_asking():
                self.validate_step()
        self._figures, self._paces = {}, {}
        self.pace.forget()
        self._show_figures()
        self.memory_text.set(_WORKING, "info")
        self._estimating.order()

    def show_network(self) -> None:
        """Say what the chosen network starts from and takes."""
        self._show_weights()
        self.show_need()

    def show_need(self) -> None:
        """Say what the chosen network takes, and whether that fits."""
        chosen = self._chosen_network()
        if self._figures.get(chosen) == _NOT_INSTALLED:
            self.memory_text.set(f"What {chosen} is built of is not installed: see requirements.txt.", "warning")
        elif chosen in self._figures:
            self.memory_text.set(*describe_need(_with(self._settings, chosen), best_card()))
        else:
            self.memory_text.set(_WORKING, "info")
            self._estimating.order()

    @property
    def widgets_to_disable(self) -> list:
        """What cannot be changed once the step is done."""
        return [*super().widgets_to_disable, *self.weights.widgets]

    def compare_networks(self, wanted: bool) -> None:
        """Work out what all networks take while somebody may choose among them, and only what the chosen one does
        otherwise: all of them take most of a minute of a processor."""
        self._compares = wanted
        if wanted:
            self._estimating.order()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the memory is worked out; False if that took more than `timeout` seconds."""
        return self._estimating.wait(timeout)

    def choose(self, model: dict[str, Any]) -> None:
        """Choose what an app state's `model` asks for, as far as the SDK does not."""
        if "checkpoint_path" in model:
            self.set_model_source(ModelSource.CUSTOM)
            self.experiment_selector.choose_former(model["checkpoint_path"])
        else:
            self.experiment_selector.choose_experiments()

    def to_state(self) -> dict[str, Any]:
        """What the app state's `model` says of a checkpoint of the former app; empty if none is chosen."""
        former = self.experiment_selector.former
        if self.get_model_source() != ModelSource.CUSTOM or former is None:
            return {}
        return {"source": ModelSource.CUSTOM, "checkpoint_path": former.path}

    @contextmanager
    def not_asking(self) -> Iterator[None]:
        """Within the block no server is asked for weights: a script's choices are carried out at once, and it is the
        training that tells it what cannot be had."""
        before, self._asks_servers = self._asks_servers, False
        try:
            yield
        finally:
            self._asks_servers = before

    def validate_step(self) -> bool:
        """Check that something is chosen, and say what."""
        if self.get_model_source() == ModelSource.PRETRAINED:
            if self._asks_servers:
                self._answer("Looking for the weights…", "info")
            encoder = self.get_model_name()
            start, kind = describe_weights(self._settings, encoder, ask=self._asks_servers)
            sentence = f"Model: {encoder}, {start}"
        elif self.experiment_selector.get_selected_experiment_info() is None:
            sentence, kind = "Choose an experiment, or a checkpoint of the former app.", "error"
        else:
            sentence, kind = f"Start from {self.experiment_selector.get_selected_checkpoint_path()}.", "success"
        self._answer(sentence, kind)
        return kind != "error"

    def _answer(self, sentence: str, kind: str) -> None:
        self.validator_text.set(escape(sentence, quote=False), kind)
        self.validator_text.show()

    def _tabs(self, titles: list[str], descriptions: list[str], contents: list[Widget]) -> RadioTabs:
        table, custom = contents
        guidance = Text(_GUIDANCE, font_size=13, widget_id="model_guidance")
        return RadioTabs(
            titles=titles,
            descriptions=["A new network", "Go on from what was trained before"],
            contents=[
                Container([table, guidance, self.memory_text, self.pace.container, self.weights.container]),
                custom.content,
            ],
            widget_id="model_tabs",
        )

    def _chosen(self) -> None:
        forget_error(self.validator_text)
        self.show_network()

    def _chosen_network(self) -> str:
        return self.pretrained_models_table.get_selected_row()["meta"]["model_name"]

    def _show_weights(self) -> None:
        row = self.pretrained_models_table.get_selected_row()
        self.weights.show(self._settings, row["meta"]["model_name"], float(row["Encoder parameters (M)"]))

    def _estimate(self, superseded: Callable[[], bool]) -> None:
        settings, card, figures = self._settings, best_card(), {}
        names, chosen = [model["meta"]["model_name"] for model in self.models], self._chosen_network()
        # The chosen one first: it is what a person waits for.
        for name in sorted(names, key=lambda name: name != chosen):
            wanted = _with(settings, name)
            try:
                fit = "" if card is None else ", fits" if fits(wanted, card) else ", does not fit"
                figures[name] = gib(memory_of(wanted)) + fit
            except SettingsError:
                # Its library is not installed, which the training says with the remedy.
                figures[name] = _NOT_INSTALLED
            if superseded():
                return
            self._figures = dict(figures)
            self._show_figures()
            if name == chosen:
                self.show_need()
            if not self._compares:
                return

    def _show_pace(self, network: str, pace: str) -> None:
        self._paces[network] = pace
        self._show_figures()

    def _show_figures(self) -> None:
        # Only what is shown, in columns that fit: the widget's own rows are what experiments say of their model.
        table = copy.deepcopy(DataJson()[self.pretrained_models_table.widget_id]["tableData"])
        for row in (row for kinds in table.values() for rows in kinds.values() for row in rows):
            whole = dict(row)
            name = whole["meta"]["model_name"]
            row.clear()
            row |= {"Model": whole["Model"], SIZE: whole[SIZE], LICENCE: short_licence(name)}
            row |= {MEMORY: self._figures.get(name, _UNKNOWN), PACE: self._paces.get(name, ""), "meta": whole["meta"]}
        put(self.pretrained_models_table, tableData=table)
        send()


def short_licence(encoder: str) -> str:
    """The licence of an encoder's published weights in a word or two."""
    licence = ENCODERS[encoder].weights_licence
    return "non-commercial" if is_non_commercial(licence) else licence.partition(" (")[0]


def _with(settings: TrainSettings, encoder: str) -> TrainSettings:
    return replace(settings, model=replace(settings.model, encoder=encoder))
