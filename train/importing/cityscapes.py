"""Cityscapes: photos `leftImg8bit`, and JSON files of polygons `gtFine` or `gtCoarse`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import supervisely as sly
from supervisely.convert.image.cityscapes import cityscapes_helper

from common.data.folders import ImageRecord, ProjectError
from train.importing.source import ClassOf, Key, Legend, Shape, colour, dataset_of, photos_below

_PHOTO = "_leftImg8bit"
_LABELS = ("_gtFine_polygons.json", "_gtCoarse_polygons.json")


class CityscapesSource:
    """Photos with polygons.

    Args:
        photos: files whose name ends in `_leftImg8bit`.
        labels: JSON files by the beginning of their photo's name.
        folder: that was named.
    """

    what, geometry, settled_by = "Cityscapes", sly.Polygon, ()

    def __init__(self, photos: Collection[Path], labels: dict[str, Path], folder: Path) -> None:
        self.records = tuple(
            ImageRecord(_dataset(path, folder), path.name, path, labels.get(path.stem.removesuffix(_PHOTO)))
            for path in photos
        )

    def present(self, record: ImageRecord, size: tuple[int, int]) -> Collection[Key]:
        """Names of the photo's labels; see `Source`."""
        try:
            content = json.loads(record.annotation_path.read_bytes())
            stated = (content["imgHeight"], content["imgWidth"])
            names = [str(one["label"]) for one in content["objects"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise _unreadable(record) from error
        if stated != size:
            raise ProjectError(
                f"The photo {record.image_path} is {size[0]} pixels high and {size[1]} wide, "
                f"{record.annotation_path} is for another size. Give the photos that were annotated."
            )
        for _ in self.shapes(record, size, names):
            pass
        return names

    def legend(self, keys: Collection[Key]) -> Legend:
        """The labels' own names, in Cityscapes' order and colours; see `Source`."""
        own = cityscapes_helper.CITYSCAPES_CLASSES_TO_COLORS_MAP
        found = [name for name in dict.fromkeys([*own, *sorted(keys)]) if name in keys]
        classes = (ClassOf(name, own.get(name, colour(place))) for place, name in enumerate(found))
        return Legend(tuple(classes), {name: name for name in found})

    def shapes(self, record: ImageRecord, size: tuple[int, int], wanted: Collection[Key]) -> Iterator[Shape]:
        """The polygons, as the SDK's converter reads them; see `Source`."""
        meta = sly.ProjectMeta([sly.ObjClass(name, sly.Polygon) for name in dict.fromkeys(wanted)])
        try:
            path = str(record.annotation_path)
            found = cityscapes_helper.create_ann_from_file(sly.Annotation(size), path, meta, {})
        except Exception as error:  # the SDK raises whatever its parsers meet
            raise _unreadable(record) from error
        return ((label.obj_class.name, label.geometry) for label in found.labels)


def find_cityscapes(folder: Path) -> CityscapesSource | None:
    """The photos and polygons of a Cityscapes folder; None where it is none."""
    labels = {}
    for ending in reversed(_LABELS):
        labels |= {path.name.removesuffix(ending): path for path in sorted(folder.rglob(f"*{ending}"))}
    photos = [path for path in photos_below(folder) if path.stem.endswith(_PHOTO)] if labels else []
    return CityscapesSource(photos, labels, folder) if photos else None


def _dataset(path: Path, folder: Path) -> str:
    parts = path.parent.relative_to(folder).parts
    return dataset_of(part for part in parts if part != _PHOTO.removeprefix("_"))


def _unreadable(record: ImageRecord) -> ProjectError:
    return ProjectError(
        f"Cannot read the labels {record.annotation_path}: it is damaged or not Cityscapes' JSON. Download it again."
    )
