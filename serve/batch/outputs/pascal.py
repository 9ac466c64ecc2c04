"""Pascal VOC: masks of class indices, and the box of each connected part.

Written here and not by the SDK's converter, which draws a border around each part into the masks and needs a package
more. Its reader is a test.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from xml.etree import ElementTree

from serve.batch.outputs.components import components
from serve.batch.outputs.format import Create, File, Format, Merge, OutputOptions, Part
from serve.batch.outputs.images import index_png
from serve.batch.result import Legend, Result


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


PASCAL = Format(
    "pascal",
    "Pascal VOC: masks and boxes",
    _pascal,
    Merge(_pascal_lists, Part("pascal", lambda result, options: result.name.encode())),
)
