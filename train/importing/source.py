"""What a folder in another format was found to be."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import supervisely as sly

from common.data.folders import ImageRecord
from common.data.images import IMAGE_SUFFIXES

ROOT_DATASET = "ds0"
"""Dataset of the photos that lie in no subfolder."""
RGB = tuple[int, int, int]
Key = Hashable
"""What a format knows a class by: an index, a colour, a name."""
Shape = tuple[Key, sly.Bitmap | sly.Polygon]
"""A label, and what its class is known by."""


@dataclass(frozen=True)
class ClassOf:
    """A class of the project that is made."""

    name: str
    colour: RGB


@dataclass(frozen=True)
class Legend:
    """What the keys of a format mean."""

    classes: tuple[ClassOf, ...]
    """Those that have labels, in the project's order."""
    names: Mapping[Key, str]
    """The class of each key; what is not here does not become a label."""


class Source(Protocol):
    """Photos with labels in some format."""

    what: str
    """The format, as a sentence names it."""
    records: tuple[ImageRecord, ...]
    """The photos; `annotation_path` is the file that their labels are read from, None without labels."""
    geometry: type[sly.Bitmap] | type[sly.Polygon]
    """Of the labels."""
    settled_by: tuple[Path, ...]
    """Other files that decide what the labels mean."""

    def present(self, record: ImageRecord, size: tuple[int, int]) -> Collection[Key]:
        """The classes in a photo's labels, which are read and checked.

        Args:
            record: a photo with labels.
            size: its height and width in pixels, turned by its EXIF tag.

        Raises:
            ProjectError: the labels cannot be used; it names them.
        """

    def legend(self, keys: Collection[Key]) -> Legend:
        """What the keys of all photos mean.

        Raises:
            ProjectError: a key that means nothing.
        """

    def shapes(self, record: ImageRecord, size: tuple[int, int], wanted: Collection[Key]) -> Iterable[Shape]:
        """A photo's labels of the keys in `wanted`, in the order in which they are drawn."""


def colour(place: int) -> RGB:
    """A colour for the class at a place, from 0: neighbours differ much."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(place * 0.618034 % 1, 0.85, 0.95))


def photos_below(folder: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """The photos in a folder and its subfolders, in order; what lies in `without` or is hidden is passed over."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path not in without:
                yield from photos_below(path, without)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def dataset_of(parts: Iterable[str]) -> str:
    """The dataset of photos in the subfolders `parts` of each other."""
    return "/".join(parts) or ROOT_DATASET
