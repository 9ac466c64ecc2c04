"""What a run has to do: which photos have a result already, which do not, and why not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.hrda.checks import received
from serve.batch.collection import Item
from serve.batch.manifest import Manifest, Record
from serve.batch.result import result_names
from serve.batch.storage import safe_name

NEW, FAILED, CHANGED, MODEL, SETTINGS, FORMATS, GONE = (
    "without a result",
    "failed before",
    "changed since they were predicted",
    "predicted by another model",
    "predicted with other settings",
    "without one of the formats",
    "whose result is gone",
)
"""Why photos are predicted, in the middle of a sentence."""


@dataclass(frozen=True)
class Wanted:
    """With what photos are to be predicted, and what is to be written."""

    model: str
    """SHA-256 of the model's file."""
    model_name: str
    settings: Mapping[str, Any]
    """Plain data."""
    formats: tuple[str, ...]

    @property
    def description(self) -> dict[str, Any]:
        """What is kept of it beside the results."""
        return {"model": self.model, "model_name": self.model_name, "settings": dict(self.settings)}

    @property
    def settings_name(self) -> str:
        """Another one for other settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A photo to predict."""

    item: Item
    name: str
    """What files of its results are called, without their suffix."""
    alone: bool = False
    """Whether it is predicted by itself, since it may have ended a process."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    tasks: Sequence[Task]
    done: Sequence[Record]
    """Photos that have their result."""
    why: Mapping[str, int]
    """How many photos are predicted, by reason."""
    changes: Sequence[str]
    """What is another than before, in sentences."""


def plan(items: Sequence[Item], manifest: Manifest, wanted: Wanted, present: Collection[str]) -> Plan:
    """What is to be done for `items`.

    Args:
        items: all photos.
        manifest: what was done before.
        wanted: with what.
        present: names of the files that the folder of results holds.
    """
    # A photo keeps the name of its result when another one with that name comes: only the new one is told apart.
    names = result_names([item.name for item in items])
    tasks, done, why, changed = [], [], Counter(), Counter()
    for item in items:
        record = manifest.records.get(item.name)
        reason = NEW if record is None else _reason(record, item, wanted, present)
        if reason is None:
            done.append(record)
            continue
        why[reason] += 1
        if reason in (MODEL, SETTINGS):
            changed[record.model, record.settings] += 1
        # A name that leads out of the folder is nobody's that this app wrote.
        is_own = record is not None and record.name == safe_name(record.name)
        name = record.name if is_own else names[item.name]
        tasks.append(Task(item, name, alone=reason == FAILED))
    changes = [_change(manifest.description(*key), wanted, count) for key, count in changed.items()]
    return Plan(tasks, done, dict(why), changes)


def _reason(record: Record, item: Item, wanted: Wanted, present: Collection[str]) -> str | None:
    """Why the photo is predicted again; None where it is not."""
    if not record.is_done:
        return FAILED
    if record.stamp != item.stamp:
        return CHANGED
    if record.model != wanted.model:
        return MODEL
    if record.settings != wanted.settings_name:
        return SETTINGS
    if not record.is_mosaic and not set(wanted.formats) <= set(record.formats):
        return FORMATS
    return None if all(name in present for name in record.result) else GONE


def _change(before: Mapping[str, Any], wanted: Wanted, count: int) -> str:
    photos = "1 photo" if count == 1 else f"{count} photos"
    old, new = before.get("settings"), dict(wanted.settings)
    if not isinstance(old, dict):
        return f"{photos} were predicted with a model or settings that are not known any more."
    differences = [
        f"{name} was {received(old.get(name))} and is {received(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if before.get("model") != wanted.model:
        differences.insert(0, f"the model was {received(before.get('model_name'))} and is {wanted.model_name}")
    return f"Of {photos} the results are of before a change: {'; '.join(differences)}."
