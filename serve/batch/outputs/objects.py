"""Outputs that list objects, one for each connected part: COCO, YOLO, Pascal VOC, GeoJSON.

YOLO and Pascal VOC are written here and not by the SDK's converters: those move corners to whole pixels and fill holes,
or draw a border around each mask into it, and need a package more. The tests read the files with the SDK's readers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import shapely
import yaml
from shapely.affinity import affine_transform
from shapely.geometry import MultiPolygon, mapping

from serve.batch.outputs.components import Components, components, outlines, without_holes
from serve.batch.outputs.format import CONFIDENCES, Create, File, Format, Merge, OutputOptions, Part, json_bytes
from serve.batch.outputs.images import index_png
from serve.batch.result import Legend, Result

_DIGITS = 2
"""Of coordinates in pixels."""
_NEEDS = frozenset({CONFIDENCES})


def _scores(parts: Components, result: Result) -> list[float]:
    return np.round(parts.confidences(result.confidences), 4).tolist()


# COCO


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
        yield [ring.ravel().tolist() for ring in _rings(outline)]


def _rings(outline: MultiPolygon) -> list[np.ndarray]:
    """Closed rings N×2 without the last point, which is the first; holes are cut open."""
    pieces = [piece for polygon in outline.geoms for piece in without_holes(polygon)]
    return [np.round(shapely.get_coordinates(piece.exterior)[:-1], _DIGITS) for piece in pieces]


def _coco_part(result: Result, options: OutputOptions, segmentations: Any) -> bytes:
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
            segmentations(parts, options), parts.pixels, parts.boxes.tolist(), _scores(parts, result), strict=True
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


def _coco_format(name: str, says: str, segmentations: Any) -> Format:
    part = Part(name, lambda result, options: _coco_part(result, options, segmentations))
    return Format(name, says, merge=Merge(_coco, part), needs=_NEEDS)


# YOLO


def _yolo(result: Result, options: OutputOptions) -> list[File]:
    height, width = result.size
    lines = []
    for place, parts in enumerate(components(result)):
        for outline in outlines(parts, options.tolerance):
            for ring in _rings(outline):
                points = " ".join(f"{value:.6f}" for value in (ring / (width, height)).ravel())
                lines.append(f"{place} {points}\n")
    return [(f"labels/{result.name}.txt", "".join(lines).encode())]


def _yolo_data(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    names = [name for _, name in legend.found]
    data = {
        "path": ".",
        "train": "images",
        "val": "images",
        "nc": len(names),
        "names": names,
        "colors": [list(legend.palette[index]) for index, _ in legend.found],
    }
    with create("data.yaml") as file:
        file.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


# Pascal VOC


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's own colours of the indices 0 to `count` - 1: black is the background."""
    colours = []
    for index in range(count):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append(tuple(colour))
    return tuple(colours)


def _pascal(result: Result, options: OutputOptions) -> list[File]:
    height, width = result.size
    root = ElementTree.Element("annotation")
    for name, text in (("folder", "JPEGImages"), ("filename", result.photo)):
        ElementTree.SubElement(root, name).text = _xml_text(text)
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for parts in components(result):
        for left, top, across, down in parts.boxes.tolist():
            one = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(one, "name").text = _xml_text(parts.name)
            bounds = ElementTree.SubElement(one, "bndbox")
            corners = {"xmin": left, "ymin": top, "xmax": left + across - 1, "ymax": top + down - 1}
            for name, value in corners.items():
                ElementTree.SubElement(bounds, name).text = str(value)
    ElementTree.indent(root)
    file = io.BytesIO()
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
    legend = Legend(result.legend.classes, voc_palette(len(result.legend.classes)), result.legend.background)
    return [
        (f"Annotations/{result.name}.xml", file.getvalue()),
        (f"SegmentationClass/{result.name}.png", index_png(result.labels, legend)),
    ]


def _xml_text(text: str) -> str:
    """`text` without what XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _pascal_lists(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    with create("colors.txt") as file:
        colours = voc_palette(len(legend.classes))
        for index, name in legend.found:
            file.write(f"{name} {' '.join(map(str, colours[index]))}\n".encode())
    with create("ImageSets/Segmentation/val.txt") as file:
        for part in parts:
            file.write(part + b"\n")


# GeoJSON


def feature_collection(result: Result, options: OutputOptions) -> dict[str, Any]:
    """What was found in a photo as GeoJSON: a feature for each connected part, in the coordinates of a georeferenced
    photo, and of others in pixels (x to the right, y down)."""
    features = []
    for parts in components(result):
        for number, (outline, area, score) in enumerate(
            zip(outlines(parts, options.tolerance), parts.pixels, _scores(parts, result), strict=True), start=1
        ):
            features.append(
                {
                    "type": "Feature",
                    "properties": {
                        "class": parts.name,
                        "component": number,
                        "area_px": int(area),
                        "confidence": score,
                    },
                    "geometry": mapping(_placed(outline, result)),
                }
            )
    collection: dict[str, Any] = {"type": "FeatureCollection", "name": result.photo, "features": features}
    if code := re.fullmatch(r"EPSG:(\d+)", result.crs or ""):
        # Not in the standard any more, which knows WGS 84 alone; GDAL and all that is made of it read it.
        name = f"urn:ogc:def:crs:EPSG::{code[1]}"
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection


def _placed(outline: MultiPolygon, result: Result) -> MultiPolygon:
    if result.transform is None:
        return outline
    a, b, c, d, e, f = result.transform
    return affine_transform(outline, (a, b, d, e, c, f))


def _geojson(result: Result, options: OutputOptions) -> list[File]:
    return [(f"{result.name}.geojson", json_bytes(feature_collection(result, options)))]


COCO = _coco_format("coco", "COCO: an object for each connected part, its mask run-length encoded", _masks_of)
COCO_POLYGONS = _coco_format("coco-polygons", "COCO: the same with polygons in place of masks", _rings_of)
YOLO = Format("yolo", "YOLO: polygons, a text file a photo", _yolo, Merge(_yolo_data))
PASCAL = Format(
    "pascal",
    "Pascal VOC: masks and boxes",
    _pascal,
    Merge(_pascal_lists, Part("pascal", lambda result, options: result.name.encode())),
)
GEOJSON = Format("geojson", "GeoJSON: outlines of connected parts", _geojson, needs=_NEEDS)
