"""Which TIFF files are orthomosaics, and what may be said of their samples. Needs neither rasterio nor a pixel."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Annotated

from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydantic import Field

from common.hrda.checks import Expected, FromList, PlainSettings, require, schema

LARGEST_PHOTO = 100_000_000
"""Pixels up to which a TIFF can be predicted as a photo."""
SUFFIXES = frozenset({".tif", ".tiff"})
_WIDTH, _HEIGHT = 256, 257
_BESIDE = (".tfw", ".tifw", ".tiffw", ".wld")
"""Suffixes of files that give a TIFF its place."""
_PLACED = (33550, 33922, 34264, 34735)
"""Tags of GeoTIFF: size of a pixel, tie points, transformation, coordinate reference system."""


@schema
class RasterOptions(PlainSettings):
    """How the samples of a TIFF become RGB pixels."""

    bands: Annotated[
        Annotated[tuple[Annotated[int, Field(ge=1)], ...], FromList] | None,
        Expected("the numbers of one band or of three, such as 1,2,3, or null"),
    ] = None
    """Bands that are red, green and blue, or the one that is grey; null: those that the file says, else the first."""
    range: Annotated[
        Annotated[tuple[float, float], FromList] | None, Expected("the samples that become 0 and 255, or null")
    ] = None
    """Samples that become 0 and 255. null: 8-bit samples stay as they are, others are scaled between percentiles."""

    def __post_init__(self) -> None:
        require(self.bands is None or len(self.bands) in (1, 3), "bands", "one number or three", self.bands)
        require(self.range is None or self.range[0] < self.range[1], "range", "the lower sample first", self.range)


def raster_options(bands: str | None, samples: str | None) -> RasterOptions | None:
    """The options of a command line, lists of numbers with commas between; None where there are none.

    Raises:
        SettingsError: they are no such numbers.
    """
    given = {name: text for name, text in (("bands", bands), ("range", samples)) if text is not None}
    if not given:
        return None
    return RasterOptions.from_dict({name: _numbers(name, text) for name, text in given.items()})


def _numbers(name: str, text: str) -> list[int | float] | str:
    try:
        return [int(word) if name == "bands" else float(word) for word in text.split(",")]
    except ValueError:
        return text


def is_tiff(name: str) -> bool:
    """Whether a file is a TIFF by its name."""
    return name.lower().endswith(tuple(SUFFIXES))


def is_orthomosaic(path: Path) -> bool:
    """Whether a file is a TIFF that is georeferenced or larger than photos are.

    What cannot be read is none; whoever reads it as a photo says why.
    """
    is_placed, pixels = _header(path)
    return is_placed or pixels > LARGEST_PHOTO


def is_larger_than_photos(path: Path) -> bool:
    """Whether a file is a TIFF of more than `LARGEST_PHOTO` pixels; what cannot be read is none."""
    return _header(path)[1] > LARGEST_PHOTO


def _header(path: Path) -> tuple[bool, int]:
    """Whether a TIFF is georeferenced, and how many pixels it has; (False, 0) of what is none."""
    if not is_tiff(path.name):
        return False, 0
    try:
        with path.open("rb") as file:
            header = file.read(8)
            # The kind for files above four gigabytes.
            header += file.read(8) if header[2:3] == b"\x2b" or header[3:4] == b"\x2b" else b""
            directory = ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
        is_placed = any(tag in directory for tag in _PLACED) or any(path.with_suffix(s).is_file() for s in _BESIDE)
        return is_placed, int(directory[_WIDTH] * directory[_HEIGHT])
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error, OverflowError):
        return False, 0
