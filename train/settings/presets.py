"""Settings to start from: what each changes in the default text, and which of them a text still is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.plain_yaml import read_yaml
from train.settings.training import DEFAULT_YAML, TrainSettings
from train.settings.yaml_text import set_values

DEFAULT_PRESET = "cracks"
"""Name of the preset that is the default text unchanged."""

CHOSEN_WITH_THE_MODEL = ("model.encoder", "pretrained")
"""Settings that the model card decides, whatever the preset."""

_FOLDER = Path(__file__).parents[1] / "presets"
_NAMES = ("quick_look", "cracks", "street_scenes")


@dataclass(frozen=True)
class Preset:
    """Settings to start from."""

    title: str
    """What it is called on the page."""
    description: str
    """What it is for, what it costs and what to know, for a person."""
    text: str
    """All settings as commented YAML."""
    settings: TrainSettings
    """What the text stands for."""


@cache
def presets() -> dict[str, Preset]:
    """The presets by name, in the order in which they are offered."""
    default, found = DEFAULT_YAML.read_text(encoding="utf-8"), {}
    for name in _NAMES:
        content = read_yaml((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        text = set_values(default, content["settings"])
        found[name] = Preset(content["title"], content["description"], text, TrainSettings.from_yaml(text))
    return found


def differences(settings: TrainSettings, other: TrainSettings) -> list[str]:
    """Dotted names of the values in which the two differ, but for those that are chosen with the model."""
    return [name for name in _differing(settings.to_dict(), other.to_dict()) if name not in CHOSEN_WITH_THE_MODEL]


def _differing(data: dict[str, Any], other: dict[str, Any], before: str = "") -> Iterator[str]:
    for name in data | other:
        value, others = data.get(name), other.get(name)
        if isinstance(value, dict) and isinstance(others, dict):
            yield from _differing(value, others, f"{before}{name}.")
        elif value != others:
            yield before + name
