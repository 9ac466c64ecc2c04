"""COCO: one file of all photos, an object for each connected part, as run-length encoded mask or as polygons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from serve.batch.outputs.components import Components, components, outlines, rings
from serve.batch.outputs.format import CONFIDENCES, Create, Format, Merge, OutputOptions, Part, json_bytes
from serve.batch.result import Legend, Result

Segmentations = Callable[[Components, OutputOptions], Iterator[Any]]
"""Gives what COCO calls the segmentation of each part."""


def run_lengths(parts: Components, number: int) -> list[int]:
    """COCO's uncompressed mask of part `number`: lengths of runs outside and inside in turn, column by column."""
    left, top, width, height = parts.boxes[number - 1]
    columns, rows = np.nonzero((parts.areas[top : top + height, left : left + width] == number).T)
    places = (columns + left) * np.int64(parts.areas.shape[0]) + rows + top
    gaps = np.flatnonzero(np.diff(places) > 1)
    begins = np.concatenate([places[:1], places[gaps + 1]])
    ends = np.concatenate([places[gaps] + 1, places[-1:] + 1])
    bounds = np.concatenate([[0], np.stack([begins, ends], axis=1).ravel(), [parts.areas.size]])
    return np.diff(bounds).tolist()


def _masks_of(parts: Components, options: OutputOptions) -> Iterator[dict[str, Any]]:
    from pycocotools import mask

    height, width = parts.areas.shape
    for number in range(1, len(parts) + 1):
        runs = {"size": [height, width], "counts": run_lengths(parts, number)}
        packed = mask.frPyObjects(runs, height, width)
        yield {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _rings_of(parts: Components, options: OutputOptions) -> Iterator[list[list[float]]]:
    for outline in outlines(parts, options.tolerance):
        yield [ring.ravel().tolist() for ring in rings(outline)]


def _coco_part(result: Result, options: OutputOptions, segmentations: Segmentations) -> bytes:
    height, width = result.size
    found = [
        {
            "category_id": parts.index,
            "segmentation": segmentation,
            "area": int(area),
            "bbox": box,
            "iscrowd": 0,
            "score": score,
        }
        for parts in components(result)
        for segmentation, area, box, score in zip(
            segmentations(parts, options), parts.pixels, parts.boxes.tolist(), parts.scores(result), strict=True
        )
    ]
    return json_bytes({"file_name": result.photo, "height": height, "width": width, "annotations": found})


def _coco(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    """One file, written as the parts come: of a million photos it does not fit into memory."""
    categories = [{"id": index, "name": name, "supercategory": name} for index, name in legend.found]
    with create("annotations.json") as file:
        file.write(b'{"info": {"description": "Predictions of HRDA"}, "licenses": [], "categories": ')
        file.write(json_bytes(categories) + b', "images": [')
        for number, part in enumerate(parts, start=1):
            image = json.loads(part)
            del image["annotations"]
            file.write((b",\n" if number > 1 else b"\n") + json_bytes({"id": number} | image))
        file.write(b'], "annotations": [')
        count = 0
        for number, part in enumerate(parts, start=1):
            for each in json.loads(part)["annotations"]:
                count += 1
                file.write((b",\n" if count > 1 else b"\n") + json_bytes({"id": count, "image_id": number} | each))
        file.write(b"]}\n")


def _coco_format(name: str, says: str, segmentations: Segmentations) -> Format:
    part = Part(name, lambda result, options: _coco_part(result, options, segmentations))
    return Format(name, says, merge=Merge(_coco, part), needs=frozenset({CONFIDENCES}))


COCO = _coco_format("coco", "COCO: an object for each connected part, its mask run-length encoded", _masks_of)
COCO_POLYGONS = _coco_format("coco-polygons", "COCO: the same with polygons in place of masks", _rings_of)
