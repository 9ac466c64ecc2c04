"""What is done to a photo, step by step: read, predict, write. No step knows in which process it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.data.images import ImageError, decode_image
from common.data.reading import Patience, only_this_one
from common.hrda.files import WriteError
from serve.batch.collection import Collection as Photos
from serve.batch.collection import Item
from serve.batch.manifest import FOLDER, Record
from serve.batch.outputs import FORMATS, parts_of
from serve.batch.outputs.format import Format, OutputOptions, Part
from serve.batch.plan import Task, Wanted
from serve.batch.result import Photo, Result
from serve.batch.storage import Folder
from serve.batch.worker import Worker
from serve.errors import CLIENT_ERRORS

LARGEST_BYTES = 2**31 - 2**20
"""Pixels of one photo that travel between processes, in bytes."""


class Uploader(Protocol):
    """Puts results where the photos are. It goes to other processes; each opens what it needs."""

    @property
    def says(self) -> str:
        """What it does, in a word or two; part of what the manifest notes."""

    def put(self, item: Item, result: Result, options: OutputOptions, key: str) -> None:
        """Put a result in place, unless it is there.

        Args:
            item: the photo.
            result: of it.
            options: how it is written down.
            key: another one for another result.

        Raises:
            Exception: it cannot be put.
        """


@dataclass(frozen=True)
class Assignment:
    """What every step of a run needs to know; it goes to other processes."""

    photos: Photos
    output: Folder
    model: Path
    device: str
    runtime: str
    settings: Mapping[str, Any]
    """Of the worker, as they were given."""
    formats: tuple[str, ...]
    """Names of formats that are written."""
    options: OutputOptions
    wanted: Wanted
    needs: frozenset[str] = frozenset()
    """Fields of `Result` that must be there."""
    uploader: Uploader | None = None

    @cached_property
    def chosen(self) -> tuple[Format, ...]:
        """The formats."""
        return tuple(FORMATS[name] for name in self.formats)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "chosen"}


@dataclass(frozen=True)
class Step:
    """How far a photo has come."""

    task: Task
    content: str = ""
    """SHA-256 of its bytes."""
    photo: Photo | None = None
    result: Result | None = None
    seconds: float = 0.0
    reason: str = ""
    """Why it comes no further."""
    halt: bool = False
    """Whether the reason is one for all photos."""


def part_name(part: Part, photo: str) -> str:
    """Where a part of a photo is kept, below the folder of results."""
    return f"{FOLDER}/parts/{part.name}/{photo}"


def read(assignment: Assignment, task: Task) -> Step:
    """Fetch and decode a photo."""
    begun = perf_counter()
    try:
        content = _bytes_of(assignment.photos, task.item)
        image = decode_image(content, task.item.name)
        if image.nbytes > LARGEST_BYTES:
            raise ImageError(
                f"The image {task.item.name} has too many pixels for a batch: {image.shape[0]} × {image.shape[1]}."
            )
    except ImageError as error:
        away = _is_local(error) and not only_this_one(error)
        return Step(task, reason=f"{error} Its disk is away." if away else str(error), halt=away)
    except Exception as error:
        return Step(task, reason=_sentence(error))
    photo = Photo(task.item.name, task.name, image)
    return Step(task, hashlib.sha256(content).hexdigest(), photo, seconds=perf_counter() - begun)


def predict(assignment: Assignment, worker: Worker, steps: Sequence[Step]) -> list[Step]:
    """Predict photos that were read; the others stay as they are. One that fails costs no other its result."""
    ready = [step for step in steps if step.photo is not None]
    begun, needs = perf_counter(), assignment.needs
    try:
        found: dict[str, Result | str] = _results(worker, ready, needs)
    except Exception:
        found = {}
        for step in ready:
            try:
                found |= _results(worker, [step], needs)
            except Exception as error:
                found[step.task.item.name] = _sentence(error)
    seconds = (perf_counter() - begun) / max(len(ready), 1)
    after = []
    for step in steps:
        result = found.get(step.task.item.name)
        if isinstance(result, Result):
            step = replace(step, result=result, seconds=step.seconds + seconds)
        elif result is not None:
            step = replace(step, reason=result)
        after.append(replace(step, photo=None))
    return after


def write(assignment: Assignment, step: Step) -> tuple[Record, bool]:
    """Write a result; what became of the photo, and whether that is a reason to end the run."""
    begun, result, names = perf_counter(), step.result, []
    reason, halt = step.reason, step.halt
    if result is not None:
        try:
            names = _write_files(assignment, result)
            _upload(assignment, step, result)
        except WriteError as error:
            reason, halt = f"{error} {error.remedy.capitalize()}.", True
        except Exception as error:
            reason = _sentence(error)
    wanted, done = assignment.wanted, result is not None and not reason
    record = Record(
        photo=step.task.item.name,
        name=step.task.name,
        stamp=step.task.item.stamp,
        content=step.content,
        model=wanted.model,
        settings=wanted.settings_name,
        formats=wanted.formats if done else (),
        result=tuple(names) if done else (),
        counts=counts_of(result.labels, len(result.legend.classes)) if done else (),
        seconds=round(step.seconds + perf_counter() - begun, 4),
        reason="" if done else reason,
    )
    return record, halt


def counts_of(labels: NDArray[np.uint8], classes: int) -> tuple[int, ...]:
    """Pixels of each class in labels H×W."""
    return tuple(map(int, np.bincount(labels.ravel(), minlength=classes)))


def failed(assignment: Assignment, task: Task, reason: str) -> Record:
    """That a photo has no result."""
    wanted = assignment.wanted
    return Record(
        photo=task.item.name,
        name=task.name,
        stamp=task.item.stamp,
        content="",
        model=wanted.model,
        settings=wanted.settings_name,
        reason=reason,
    )


def _write_files(assignment: Assignment, result: Result) -> list[str]:
    output, options = assignment.output, assignment.options
    files = [
        (f"{each.name}/{name}", content) for each in assignment.chosen for name, content in each.files(result, options)
    ]
    files += [(part_name(part, result.photo), part.of(result, options)) for part in parts_of(assignment.chosen)]
    for name, content in files:
        output.write(name, content)
    return [name for name, _ in files]


def _upload(assignment: Assignment, step: Step, result: Result) -> None:
    uploader, wanted = assignment.uploader, assignment.wanted
    if uploader is not None:
        parts = (step.content, wanted.model, wanted.settings_name, uploader.says)
        uploader.put(step.task.item, result, assignment.options, hashlib.sha256("\n".join(parts).encode()).hexdigest())


def _results(worker: Worker, steps: Sequence[Step], needs: Collection[str]) -> dict[str, Result | str]:
    results = worker.results([step.photo for step in steps], needs) if steps else []
    return {step.task.item.name: result for step, result in zip(steps, results, strict=True)}


def _bytes_of(photos: Photos, item: Item) -> bytes:
    try:
        return photos.read(item)
    except ImageError as error:
        if not _is_local(error):
            # Stores elsewhere ask several times by themselves.
            raise
        return Patience().again(partial(photos.read, item), error)


def _is_local(error: ImageError) -> bool:
    return getattr(error.__cause__, "filename", None) is not None


def _sentence(error: Exception) -> str:
    if isinstance(error, CLIENT_ERRORS):
        return str(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
