"""What is done to a photo, step by step: read, predict, write. No step knows in which process it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.data.images import ImageError, decode_image
from common.data.reading import Patience, only_this_one
from common.hrda.files import WriteError, sum_of
from serve.batch.collection import Collection as Photos
from serve.batch.collection import Item, unreadable
from serve.batch.manifest import FOLDER, MOSAICS, Record
from serve.batch.outputs import FORMATS, parts_of
from serve.batch.outputs.format import Format, OutputOptions, Part
from serve.batch.photos import has_samples, read_photo
from serve.batch.plan import Task, Wanted
from serve.batch.result import Photo, Result
from serve.batch.storage import FileAt, Folder
from serve.batch.tiff import RasterOptions, is_larger_than_photos, is_tiff
from serve.errors import CLIENT_ERRORS

if TYPE_CHECKING:
    # Brings torch, which reading and writing do without.
    from serve.batch.worker import Worker

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
    raster: RasterOptions | None = None
    """How samples of TIFF files become pixels, where the command says it."""

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
    mosaic: FileAt | None = None
    """In place of a photo: a file that is too large to be one."""
    result: Result | None = None
    written: tuple[str, ...] = ()
    """Of a mosaic: files of its results, below the folder of results."""
    counts: tuple[int, ...] = ()
    """Of a mosaic: pixels of each class."""
    seconds: float = 0.0
    reason: str = ""
    """Why it comes no further."""
    halt: bool = False
    """Whether the reason is one for all photos."""


def part_name(part: Part, photo: str) -> str:
    """Where a part of a photo is kept, below the folder of results."""
    return f"{FOLDER}/parts/{part.name}/{photo}"


def read(assignment: Assignment, task: Task) -> Step:
    """Fetch and decode a photo; a mosaic is read where it is predicted."""
    begun = perf_counter()
    try:
        step = _of_tiff(assignment, task) or _of_bytes(assignment, task)
        if step.photo is not None and step.photo.image.nbytes > LARGEST_BYTES:
            height, width, _ = step.photo.image.shape
            raise ImageError(f"The image {task.item.name} has too many pixels for a batch: {height} × {width}.")
    except ImageError as error:
        file = assignment.photos.file_of(task.item)
        away = (_is_local(error) and not only_this_one(error)) or (file is not None and file.folder.is_away())
        return Step(task, reason=f"{error} Its disk is away." if away else str(error), halt=away)
    except Exception as error:
        return Step(task, reason=_sentence(error))
    return replace(step, seconds=perf_counter() - begun)


def _of_bytes(assignment: Assignment, task: Task) -> Step:
    return _decoded(task, _bytes_of(assignment.photos, task.item))


def _decoded(task: Task, content: bytes) -> Step:
    photo = Photo(task.item.name, task.name, decode_image(content, task.item.name))
    return Step(task, hashlib.sha256(content).hexdigest(), photo)


def _of_tiff(assignment: Assignment, task: Task) -> Step | None:
    """A mosaic, or a photo with its place; None of what is neither."""
    file = assignment.photos.file_of(task.item) if is_tiff(task.item.name) else None
    if file is None:
        return None
    try:
        with file.local() as path:
            if is_larger_than_photos(path):
                return Step(task, mosaic=file)
            if not has_samples(path, assignment.raster):
                # What was copied is not fetched again.
                return None if file.folder.is_local else _decoded(task, path.read_bytes())
            photo = read_photo(path, task.item.name, task.name, assignment.raster)
            return Step(task, sum_of(path), photo)
    except OSError as error:
        raise unreadable(file, error) from error


def predict(assignment: Assignment, worker: Worker, steps: Sequence[Step]) -> list[Step]:
    """Predict photos that were read, and mosaics; the others stay as they are. One that fails costs no other its
    result."""
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
        after.append(_mosaic(assignment, worker, step) if step.mosaic else replace(step, photo=None))
    return after


def _mosaic(assignment: Assignment, worker: Worker, step: Step) -> Step:
    """Predict a mosaic from its file into its files, row by row: neither fits into memory."""
    from serve.batch.local import predicts_mosaics

    begun = perf_counter()
    above, _, name = step.task.name.rpartition("/")
    place = MOSAICS if not above else f"{MOSAICS}/{above}"
    try:
        predict = predicts_mosaics(worker)
        with step.mosaic.local() as path, assignment.output.below(place).filled() as folder:
            found = predict(
                worker,
                path,
                folder,
                assignment.raster,
                say=lambda text: None,
                name=name,
                tolerance=assignment.options.tolerance,
            )
            content = sum_of(path)
    except WriteError as error:
        return replace(step, reason=f"{error} {error.remedy.capitalize()}.", halt=not error.is_of_its_name)
    except Exception as error:
        return replace(step, reason=_sentence(error))
    return replace(
        step,
        content=content,
        written=tuple(f"{place}/{file.name}" for file in found.files),
        counts=found.counts,
        seconds=step.seconds + perf_counter() - begun,
    )


def write(assignment: Assignment, step: Step) -> tuple[Record, bool]:
    """Write a result; what became of the photo, and whether that is a reason to end the run."""
    begun, result, names, counts = perf_counter(), step.result, list(step.written), step.counts
    reason, halt = step.reason, step.halt
    if result is not None:
        try:
            names = _write_files(assignment, result)
            _upload(assignment, step, result)
            counts = counts_of(result.labels, len(result.legend.classes))
        except WriteError as error:
            reason, halt = f"{error} {error.remedy.capitalize()}.", not error.is_of_its_name
        except Exception as error:
            reason = _sentence(error)
    wanted, done = assignment.wanted, not reason
    record = Record(
        photo=step.task.item.name,
        name=step.task.name,
        stamp=step.task.item.stamp,
        content=step.content,
        model=wanted.model,
        settings=wanted.settings_name,
        formats=wanted.formats if done else (),
        result=tuple(names) if done else (),
        counts=counts if done else (),
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
