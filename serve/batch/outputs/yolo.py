"""YOLO: polygons, a text file a photo.

Written here and not by the SDK's converter, which moves corners to whole pixels and fills holes. Its reader is a test.
"""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from serve.batch.outputs.components import components, outlines, rings
from serve.batch.outputs.format import Create, File, Format, Merge, OutputOptions
from serve.batch.result import Legend, Result


def _yolo(result: Result, options: OutputOptions) -> list[File]:
    height, width = result.size
    lines = []
    for place, parts in enumerate(components(result)):
        for outline in outlines(parts, options.tolerance):
            for ring in rings(outline):
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


YOLO = Format("yolo", "YOLO: polygons, a text file a photo", _yolo, Merge(_yolo_data))
