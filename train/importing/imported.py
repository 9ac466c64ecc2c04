"""From a folder in another format to a project in Supervisely's format: once, and then it is there."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import supervisely as sly

from common.data.choice import IGNORED
from common.data.folders import META, ImageRecord, ProjectError, for_each_image, is_of_project, split_spec
from common.data.images import read_image
from common.data.mask_cache import MaskCache
from common.data.reading import Patience
from common.hrda.files import WriteError
from train.importing.cityscapes import find_cityscapes
from train.importing.coco import CocoSource, find_files
from train.importing.masks import MaskSource
from train.importing.names import Names, listed, names_beside, pascal_names
from train.importing.pairs import Pair, find_pairs, matched
from train.importing.source import Key, Legend, Source, dataset_of, photos_below

_VERSION = 1
"""Part of every cached project's name: raise it when the same files are to be imported differently."""
UNLABELLED = "unlabelled"
"""Dataset of the photos without labels, in that of those with labels."""
_PASCAL = ("jpegimages", "segmentationclass")
_SPLITS = ("train", "val", "test")
Say = Callable[[str], None]
SizeOf = Callable[[Path], tuple[int, int]]


@dataclass(frozen=True)
class Reading:
    """How photos and labels are read."""

    say: Say
    """Gets sentences about what is found and how far the work is."""
    skip_broken: bool = False
    """Whether to go on without photos whose labels cannot be used."""
    patience: Patience | None = None
    """With which what cannot be read is read again."""


def imported(
    spec: str, cache_dir: Path, reading: Reading, *, names: Sequence[str] | None = None, labelled: bool = True
) -> str:
    """`DIR` or `DIR:DATASET` of a project, for what may be in another format.

    Args:
        spec: of a project, which is returned as it is, or of a folder in a format that `find_source` knows.
        cache_dir: keeps the project; its photos are links to those of the folder.
        reading: how photos and labels are read.
        names: of the classes in the order of the values, for masks beside which no file names them.
        labelled: whether labels are wanted; else only the photos are taken.

    Raises:
        ProjectError: there is no such folder, or its labels cannot be used.
    """
    folder, wanted = split_spec(spec)
    source = None if is_of_project(folder) else find_source(folder, fallback=names)
    if source is None:
        return spec
    records = (
        source.records if labelled else [ImageRecord(r.dataset, r.name, r.image_path, None) for r in source.records]
    )
    key = _fingerprint(source, records, names)
    target = Path(cache_dir) / "imported" / f"{folder.resolve().name}-{key}"
    if (target / META).is_file():
        reading.say(f"{folder}: {source.what}; it was imported before, as {target}.")
    else:
        with MaskCache(cache_dir) as cache:
            write_project(source, records, target, reading, size_of=cache.image_size, link=True)
    return str(target) if wanted is None else f"{target}:{wanted}"


def find_source(
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    fallback: Sequence[str] | None = None,
    masks: Path | None = None,
    coco: Path | None = None,
) -> Source | None:
    """The photos and labels in a folder, whatever their format; None where it holds no photo.

    Args:
        folder: Cityscapes, COCO, Pascal VOC, photos beside masks, or photos alone.
        names: of the classes of masks, in the order of their values, whatever a file beside them says.
        fallback: the same, for masks beside which no file says it.
        masks: folder of the masks, where they lie elsewhere.
        coco: COCO's JSON file, where it lies elsewhere.

    Raises:
        ProjectError: the labels cannot be used.
    """
    given, fallen_back = (None if each is None else listed(each, "--classes") for each in (names, fallback))
    if coco is not None:
        return CocoSource(folder, [coco])
    if masks is not None:
        return _of_masks([Pair(folder, masks)], given, fallen_back)
    cityscapes = find_cityscapes(folder)
    if cityscapes is not None:
        return cityscapes
    files = find_files(folder)
    if files:
        return CocoSource(folder, files)
    pairs = find_pairs(folder)
    if pairs:
        return _of_masks(pairs, given, fallen_back)
    _refuse_boxes(folder)
    photos = [
        ImageRecord(dataset_of(path.parent.relative_to(folder).parts), path.name, path, None)
        for path in photos_below(folder)
    ]
    return MaskSource("photos without labels", photos, Names()) if photos else None


def _of_masks(pairs: Sequence[Pair], given: Names | None, fallback: Names | None) -> MaskSource:
    first = pairs[0]
    is_pascal = (first.photos.name.lower(), first.masks.name.lower()) == _PASCAL
    records = [record for pair in pairs for record in matched(pair)]
    if is_pascal:
        records = [_of_split(record, _splits(first.photos.parent)) for record in records]
        return MaskSource("Pascal VOC", records, given or pascal_names(first.photos.parent))
    beside = names_beside([folder for pair in pairs for folder in (pair.masks, pair.masks.parent, pair.photos.parent)])
    return MaskSource("photos beside masks", records, given or (beside if beside.origin else fallback or beside))


def _splits(folder: Path) -> dict[str, str]:
    """The split of each photo that Pascal VOC's lists for segmentation name."""
    found: dict[str, str] = {}
    for split in _SPLITS:
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if path.is_file():
            found |= dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").split(), split)
    return found


def _of_split(record: ImageRecord, splits: dict[str, str]) -> ImageRecord:
    dataset = splits.get(Path(record.name).stem, "unlisted") if splits else record.dataset
    return ImageRecord(dataset, record.name, record.image_path, record.annotation_path)


def _refuse_boxes(folder: Path) -> None:
    """Refuse a Pascal VOC whose labels are boxes: as photos alone it would seem to have no labels."""
    boxes = folder / "Annotations"
    if boxes.is_dir() and next(boxes.glob("*.xml"), None):
        raise ProjectError(
            f"{folder} has Pascal VOC's boxes (Annotations) and no masks (SegmentationClass): there is nothing to "
            "learn from for every pixel. Give one with SegmentationClass, or the folder of its photos alone."
        )


def _fingerprint(source: Source, records: Sequence[ImageRecord], names: Sequence[str] | None) -> str:
    """Equal for the same files, unchanged, and the same names."""
    digest = hashlib.sha256(f"import {_VERSION}".encode())
    paths = [path for record in records for path in (record.image_path, record.annotation_path) if path is not None]
    for path in dict.fromkeys([*paths, *source.settled_by]):
        stat = path.stat()
        digest.update(json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns]).encode())
    digest.update(json.dumps([source.what, list(names or []), [record.key for record in records]]).encode())
    return digest.hexdigest()[:12]


def write_project(
    source: Source,
    records: Sequence[ImageRecord],
    target: Path,
    reading: Reading,
    *,
    size_of: SizeOf = lambda path: read_image(path).shape[:2],
    link: bool = False,
) -> None:
    """Write photos and their labels as a project, which is there whole or not at all.

    Args:
        source: reads the labels.
        records: its photos; those without `annotation_path` get no annotation, and a dataset of their own.
        target: folder of the project, which is not there yet.
        reading: how photos and labels are read.
        size_of: height and width of a photo, turned by its EXIF tag.
        link: whether the project gets links to the photos in place of copies.

    Raises:
        ProjectError: photos or labels cannot be used; it names them.
        WriteError: the project cannot be written.
    """
    look = partial(_look, source=source, size_of=size_of)
    rules = (reading.skip_broken, reading.say, reading.patience)
    looked, _ = for_each_image(records, look, f"Labels ({source.what})", *rules)
    seen = dict(looked)
    legend = source.legend({key for _, keys in seen.values() for key in keys})
    meta = sly.ProjectMeta([sly.ObjClass(c.name, source.geometry, list(c.colour)) for c in legend.classes])
    labelled = {record.dataset for record in seen if record.annotation_path}
    half = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        write = partial(
            _write, source=source, legend=legend, meta=meta, folder=half, link=link, sizes=seen, labelled=labelled
        )
        for_each_image(list(seen), write, "Importing", *rules)
        (half / META).write_text(json.dumps(meta.to_json()), encoding="utf-8")
        half.rename(target)
    except OSError as error:
        # Another process may have imported the same meanwhile.
        if not (target / META).is_file():
            raise WriteError(target, error) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    reading.say(_summary(source, list(seen), legend, target))


def _look(record: ImageRecord, source: Source, size_of: SizeOf) -> tuple[tuple[int, int], frozenset[Key]]:
    size = size_of(record.image_path)
    return size, frozenset(source.present(record, size) if record.annotation_path else ())


def _write(
    record: ImageRecord,
    source: Source,
    legend: Legend,
    meta: sly.ProjectMeta,
    folder: Path,
    link: bool,
    sizes: dict[ImageRecord, tuple[tuple[int, int], frozenset[Key]]],
    labelled: Collection[str],
) -> None:
    if record.annotation_path is None and record.dataset in labelled:
        # The SDK's upload gives annotations to the wrong photos where some of a dataset have none.
        record = replace(record, dataset=f"{record.dataset}/{UNLABELLED}")
    dataset = folder / Path(*"/datasets/".join(record.dataset.split("/")).split("/"))
    photo = dataset / "img" / record.name
    photo.parent.mkdir(parents=True, exist_ok=True)
    if link:
        photo.symlink_to(record.image_path.resolve())
    else:
        shutil.copyfile(record.image_path, photo)
    if record.annotation_path is None:
        return
    size, _ = sizes[record]
    shapes = source.shapes(record, size, legend.names.keys())
    labels = [sly.Label(shape, meta.get_obj_class(legend.names[key])) for key, shape in shapes]
    path = dataset / "ann" / f"{record.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(sly.Annotation(size, labels).to_json()), encoding="utf-8")


def _summary(source: Source, records: Sequence[ImageRecord], legend: Legend, target: Path) -> str:
    labelled = sum(record.annotation_path is not None for record in records)
    names = [one.name for one in legend.classes if one.name != IGNORED]
    said = f"{source.what}: {len(records)} photos, {labelled} with labels"
    said += f"; classes: {', '.join(names)}" if names else ""
    said += "; pixels of 255 do not count" if IGNORED in legend.names.values() else ""
    return f"Found {said}. Imported as {target}."
