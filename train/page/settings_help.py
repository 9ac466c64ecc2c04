"""All settings explained: what the YAML's comments say in short, whole and beside the form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from html import escape
from typing import Any

from pydantic.fields import FieldInfo

from common.hrda.checks import expected, section_of
from train.settings.training import TrainSettings

WORDS = {
    "uda": "unsupervised domain adaptation. A teacher labels the target photos, and the student learns from source "
    "photos and from mixtures of both. Mode <code>source-only</code> leaves the target out.",
    "MIC": "masked image consistency (<code>self_training.masked_weight</code>). The student also predicts what hidden "
    "blocks of target photos show, as far as the teacher sees it in the whole photo. An iteration takes longer.",
    "RCS": "rare class sampling (<code>data.rare_class_sampling</code>). Photos and crops with rare classes are drawn "
    "more often. It helps with several classes of which some are rare.",
}
"""Sentences on the abbreviations that the page uses."""


def words() -> str:
    """The abbreviations, each in a sentence or two, as HTML."""
    return "<br>".join(f"<b>{name}</b>: {text}" for name, text in WORDS.items())


def explained() -> str:
    """Every setting with what it means, what it may be and its default, as HTML that can be folded."""
    rows = "".join(
        f'<tr><td style="padding: 4px 12px 4px 0; vertical-align: top"><code>{name}</code></td>'
        f'<td style="padding: 4px 0; overflow-wrap: anywhere">{escape(" ".join((info.description or "").split()))} '
        f"<i>{escape(f'{expected(info)}. Default: {_shown(default)}.')}</i></td></tr>"
        for name, info, default in _settings(TrainSettings, TrainSettings())
    )
    return (
        "<details><summary style='cursor: pointer'>All settings explained</summary>"
        f'<div style="max-height: 520px; overflow-y: auto"><table>{rows}</table></div></details>'
    )


def _settings(cls: type, defaults: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, info in cls.__pydantic_fields__.items():
        inner, default = section_of(info), getattr(defaults, name)
        if inner is None:
            yield f"{prefix}{name}", info, default
        else:
            yield from _settings(inner, default, f"{prefix}{name}.")


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value) or value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
