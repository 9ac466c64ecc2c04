"""What a format of outputs is: files of each photo, files of the whole collection, or both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO

from pydantic import Field

from common.hrda.checks import Expected, PlainSettings, schema
from serve.batch.result import Legend, Result

File = tuple[str, bytes]
"""Name below the format's folder, parted by '/', and content."""
Create = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens a file to write by its name below the format's folder; it is there, whole, when the block has ended."""

IMAGE, CONFIDENCES, PROBABILITIES = "image", "confidences", "probabilities"
"""What a format may need of a result besides its labels: names of fields of `Result`."""


@schema
class OutputOptions(PlainSettings):
    """What a user may say about outputs, whatever the format."""

    tolerance: Annotated[float, Field(ge=0, le=100), Expected("pixels from 0 to 100")] = 0.5
    """How far the polygons of geojson, yolo and coco may run beside the border that was predicted, in pixels."""
    mm_per_pixel: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | None, Expected("millimetres above 0 that a pixel shows, or null")
    ] = None
    """Scale of the photos for csv and parquet; null: that of a georeferenced photo, and of others none."""
    background: bool = True
    """Whether the background is an object too in supervisely."""
    confidence: bool = False
    """Whether the objects in supervisely carry their mean probability."""


@dataclass(frozen=True)
class Part:
    """What the whole collection's files need of one photo. It is kept until the end, so that a run that was
    interrupted ends with the same files. Formats may share it."""

    name: str
    """Of the part; no other part has it."""
    of: Callable[[Result, OutputOptions], bytes]
    """Makes it."""


@dataclass(frozen=True)
class Merge:
    """How the whole collection's files are made."""

    write: Callable[[Iterable[bytes], Legend, OutputOptions, Create], None]
    """Writes them. The parts come in the order of the photos' paths, and may be gone through several times."""
    part: Part | None = None
    """What it needs of each photo; without it no parts come."""


@dataclass(frozen=True)
class Format:
    """One way to write results down."""

    name: str
    """What a user calls it, and the folder that its files lie in."""
    says: str
    """What it is, in a few words."""
    files: Callable[[Result, OutputOptions], list[File]] = field(default=lambda result, options: [])
    """The files of one photo."""
    merge: Merge | None = None
    """The files of the whole collection."""
    needs: frozenset[str] = frozenset()
    """Fields of `Result` that must be there."""
    packages: tuple[str, ...] = ()
    """Modules to import that plain `serve` does without."""


def json_bytes(data: Any) -> bytes:
    """`data` as JSON text, the same for the same data."""
    return json.dumps(data, allow_nan=False).encode()
