"""COCO: photos, and JSON files with the areas of objects in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycocotools.mask
import supervisely as sly
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from common.data.choice import is_called_background
from common.data.folders import ImageRecord, ProjectError
from train.importing.source import ROOT_DATASET, ClassOf, Key, Legend, Shape, colour, dataset_of, photos_below

FOLDERS = ("", "annotations", "coco")
"""Folders, below the one that is named, whose JSON files may be COCO's."""
_MOST_FILES = 64
_ROOT_NAMES = ("_annotations.coco", "annotations", "coco", "instances", "labels", "result")
_PREFIX = "instances_"


class _RLE(TypedDict):
    size: tuple[int, int]
    counts: str | list[int]


class _Image(TypedDict):
    id: int
    file_name: str
    height: int
    width: int


class _Annotated(TypedDict):
    image_id: int
    category_id: int


class _Object(_Annotated, total=False):
    segmentation: _RLE | list[list[float]] | None


class _Category(TypedDict):
    id: int
    name: str


class _File(TypedDict):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


_FILE = TypeAdapter(_File)


@dataclass(frozen=True)
class _Labels:
    """The labels of one photo."""

    size: tuple[int, int]
    """Height and width that the file states."""
    objects: list[_Object]
    names: dict[int, str]
    """Of the file's categories."""


class CocoSource:
    """Photos with labels of COCO's JSON files.

    Args:
        folder: the photos lie in it.
        files: the JSON files; each makes a dataset, named after it.

    Raises:
        ProjectError: a file cannot be read, or names photos that are not there or no areas.
    """

    what, geometry = "COCO", sly.Bitmap

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.settled_by = tuple(files)
        self._labels: dict[Path, dict[str, _Labels]] = {}
        found = _Photos(folder)
        records: list[ImageRecord] = []
        for path in files:
            dataset = dataset_name(path, folder) if len(files) > 1 else ROOT_DATASET
            records += self._read(path, dataset, found)
        self.records = tuple(records)

    def present(self, record: ImageRecord, size: tuple[int, int]) -> Collection[Key]:
        """Names of the categories with an area in the photo; see `Source`."""
        labels = self._of(record)
        if labels.size != size:
            raise ProjectError(
                f"{record.annotation_path} says that {record.name} is {labels.size[0]} pixels high and "
                f"{labels.size[1]} wide; {record.image_path} is {size[0]} and {size[1]}. Give the photos that were "
                "annotated."
            )
        return {key for key, _ in self.shapes(record, size, set(labels.names.values()))}

    def legend(self, keys: Collection[Key]) -> Legend:
        """The categories that have areas, in the order of the files; see `Source`."""
        names = dict.fromkeys(
            name for photos in self._labels.values() for labels in photos.values() for name in labels.names.values()
        )
        found = [name for name in names if name in keys and not is_called_background(name)]
        classes = (ClassOf(name, colour(place)) for place, name in enumerate(found))
        return Legend(tuple(classes), {name: name for name in found})

    def shapes(self, record: ImageRecord, size: tuple[int, int], wanted: Collection[Key]) -> Iterator[Shape]:
        """A bitmap for each object with an area, as pycocotools draws it; see `Source`."""
        labels = self._of(record)
        for number, one in enumerate(labels.objects, 1):
            name = labels.names.get(one["category_id"])
            if name not in wanted:
                continue
            try:
                mask = _drawn(one.get("segmentation"), size)
            except (ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
                raise ProjectError(
                    f"Object {number} of {record.name} in {record.annotation_path} has a segmentation that cannot be "
                    "drawn. Expected polygons or RLE of the photo's size: correct or delete it."
                ) from error
            if mask is not None and mask.any():
                yield name, sly.Bitmap(mask)

    def _of(self, record: ImageRecord) -> _Labels:
        return self._labels[record.annotation_path][record.key]

    def _read(self, path: Path, dataset: str, found: _Photos) -> Iterator[ImageRecord]:
        content = _content(path)
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects: dict[int, list[_Object]] = defaultdict(list)
        for one in content["annotations"]:
            objects[one["image_id"]].append(one)
        if objects and not any(one.get("segmentation") for one in content["annotations"]):
            raise ProjectError(
                f"{path} has boxes alone, no area (segmentation) of any object: there is nothing to learn from for "
                "every pixel. Give one with segmentations."
            )
        for image in content["images"]:
            photo = found.of(image["file_name"], path)
            # Subfolders that the file itself names are datasets, as two photos in them may have one name.
            below = _parts(image["file_name"])[:-1]
            parts = below if below == list(photo.parent.parts[len(photo.parent.parts) - len(below) :]) else []
            place = "/".join([*([] if dataset == ROOT_DATASET and parts else [dataset]), *parts])
            record = ImageRecord(place, photo.name, photo, path)
            kept = self._labels.setdefault(path, {})
            if record.key in kept:
                raise ProjectError(f"{path} has two photos called {photo.name}. Rename one of them.")
            kept[record.key] = _Labels((image["height"], image["width"]), objects[image["id"]], names)
            yield record


class _Photos:
    """The photos in a folder, found by what COCO calls them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in photos_below(folder):
            self._by_name[path.name].append(path)

    def of(self, name: str, file: Path) -> Path:
        """The photo that `file` calls `name`.

        Raises:
            ProjectError: there is none, or it may be several.
        """
        parts = _parts(name)
        candidates = self._by_name.get(parts[-1] if parts else "", [])
        exact = [place.joinpath(*parts) for place in (file.parent, self._folder)]
        if parts and (there := [path for path in exact if path in candidates]):
            return there[0]
        # Whose path ends as the name does; of those what lies nearest to the file.
        ending = [path for path in candidates if path.parts[-len(parts) :] == tuple(parts)] or candidates
        beside = [path for path in ending if file.parent in path.parents and len(ending) > 1] or ending
        split = [path for path in beside if file.stem.removeprefix(_PREFIX) in path.parts and len(beside) > 1] or beside
        if len(split) == 1:
            return split[0]
        wrong = "is not there" if not split else f"may be any of {len(split)}, such as {split[0]} and {split[1]}"
        raise ProjectError(
            f"The photo {name!r:.80} of {file} {wrong}. Put the photos of one file in a folder of its own."
        )


def _parts(name: str) -> list[str]:
    """The folders and the file of what COCO calls a photo."""
    return [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..")]


def find_files(folder: Path) -> list[Path]:
    """The JSON files in a folder that are COCO's, those of the splits in its subfolders included."""
    places = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    places += sorted(each for each in folder.iterdir() if each.is_dir() and each not in places)
    files = [path for place in places for path in sorted(place.glob("*.json"))[:_MOST_FILES] if path.is_file()]
    return [path for path in dict.fromkeys(files) if _is_coco(path)]


def dataset_name(path: Path, folder: Path) -> str:
    """The dataset of one of several files: `train2017` for instances_train2017.json, else the folder it lies in."""
    name = path.stem.removeprefix(_PREFIX)
    if name.lower() in _ROOT_NAMES:
        return dataset_of(part for part in path.parent.relative_to(folder).parts if part not in FOLDERS)
    return name


def _is_coco(path: Path) -> bool:
    """Whether a JSON file has the keys of COCO's; of one that is damaged it is said only where it is asked for."""
    try:
        with path.open("rb") as file:
            start = file.read(2**16)
            file.seek(max(path.stat().st_size - 2**16, 0))
            ends = start + file.read()
    except OSError:
        return False
    return start.lstrip()[:1] == b"{" and sum(f'"{key}"'.encode() in ends for key in _File.__annotations__) >= 2


def _content(path: Path) -> _File:
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise ProjectError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"][:3]))[:80]
        raise ProjectError(
            f"{path} is not COCO's JSON: {place or 'its beginning'} is not what it must be ({first['msg'][:80]})."
        ) from None


def _drawn(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """An area as H×W bool; None where there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != size:
        raise ValueError("its size is another than the photo's")
    if isinstance(segmentation, list):
        polygons = [one for one in segmentation if len(one) >= 6]
        runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, *size)) if polygons else None
    elif isinstance(segmentation["counts"], str):
        runs = {"size": list(segmentation["size"]), "counts": segmentation["counts"].encode()}
    else:
        runs = pycocotools.mask.frPyObjects(dict(segmentation), *size)
    return None if runs is None else pycocotools.mask.decode(runs).astype(bool)
