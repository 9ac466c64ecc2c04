"""Formats of outputs: what other tools read.

Example:
    >>> formats = chosen_formats("masks,coco")
    >>> [result] = worker.results([Photo("a.jpg", "a", image)], needs_of(formats))
    >>> for format in formats:
    ...     for name, content in format.files(result, options): ...  # format.name / name
    >>> kept = [part.of(result, options) for part in parts_of(formats)]  # of each photo
    >>> for format in formats:
    ...     if format.merge: format.merge.write(parts, result.legend, options, create)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from common.hrda.checks import SettingsError, closest, received
from serve.batch.outputs import coco, geojson, images, pascal, supervisely, tables, yolo
from serve.batch.outputs.format import Format, Part
from serve.errors import RequestError

DEFAULT = "supervisely"
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            images.MASKS,
            supervisely.SUPERVISELY,
            coco.COCO,
            coco.COCO_POLYGONS,
            yolo.YOLO,
            pascal.PASCAL,
            geojson.GEOJSON,
            images.OVERLAY,
            images.PROBABILITIES,
            tables.CSV,
            tables.PARQUET,
        )
    }
)
"""All of them by name."""


def chosen_formats(text: str) -> tuple[Format, ...]:
    """The formats of a list with commas between, such as 'masks,coco', each once and in that order.

    Raises:
        SettingsError: there is no such format.
        RequestError: a package that one needs is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise SettingsError(f"format must name at least one of {', '.join(FORMATS)}. Received: {received(text)}.")
    for name in names:
        if name not in FORMATS:
            raise SettingsError(f"Unknown format {received(name)}: {closest(name, FORMATS)}")
    chosen = tuple(FORMATS[name] for name in dict.fromkeys(names))
    for each in chosen:
        missing = [package for package in each.packages if find_spec(package) is None]
        if missing:
            raise RequestError(
                f"The format {each.name} needs {' and '.join(missing)}, which this Python does not have. "
                "Install what it takes: pip install -r requirements-batch.txt"
            )
    return chosen


def needs_of(formats: Iterable[Format]) -> frozenset[str]:
    """Fields of `Result` that `formats` need besides the labels."""
    return frozenset().union(*(each.needs for each in formats))


def parts_of(formats: Iterable[Format]) -> tuple[Part, ...]:
    """What must be kept of each photo for the whole collection's files, each part once."""
    return tuple(dict.fromkeys(each.merge.part for each in formats if each.merge and each.merge.part))
