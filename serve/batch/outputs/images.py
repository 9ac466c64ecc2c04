"""Outputs that are pictures or arrays: index masks, overlays, probabilities."""

from __future__ import annotations

import io
from collections.abc import Iterable

import cv2
import numpy as np
from PIL import Image

from serve.batch.outputs.format import IMAGE, Create, File, Format, Merge, OutputOptions, json_bytes
from serve.batch.outputs.format import PROBABILITIES as ALL_CLASSES
from serve.batch.result import Legend, Result

INDICES = "classes.json"
"""File beside the masks: index by class name."""
_OPACITY = 0.4


def index_png(labels: np.ndarray, legend: Legend) -> bytes:
    """H×W uint8 class indices as a PNG whose palette has the classes' colours."""
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(legend.palette, np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def overlay_png(image: np.ndarray, labels: np.ndarray, legend: Legend) -> bytes:
    """A photo H×W×3 uint8 RGB with what was found in colour, its border in full colour one pixel wide, as PNG."""
    drawn = image.copy()
    for index, _ in legend.found:
        inside = (labels == index).view(np.uint8)
        left, top, width, height = cv2.boundingRect(inside)
        if not width:
            continue
        box = np.s_[top : top + height, left : left + width]
        inside, colour = inside[box], np.asarray(legend.palette[index], np.uint8)
        # The border of the box counts as outside: a mask that ends there has a border there.
        core = cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        part, filled = drawn[box], inside.astype(bool)
        part[filled] = np.rint((1 - _OPACITY) * part[filled] + _OPACITY * colour).astype(np.uint8)
        part[(inside != core)] = colour
    done, content = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    assert done
    return content.tobytes()


def probabilities_npz(probabilities: np.ndarray, classes: Iterable[str]) -> bytes:
    """A file for `numpy.load`: `probabilities` C×H×W float16, and `classes`, their C names."""
    file = io.BytesIO()
    np.savez_compressed(file, probabilities=probabilities, classes=np.array(list(classes)))
    return file.getvalue()


def _mask(result: Result, options: OutputOptions) -> list[File]:
    return [(f"{result.name}.png", index_png(result.labels, result.legend))]


def _indices(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    with create(INDICES) as file:
        file.write(json_bytes({name: index for index, name in enumerate(legend.classes)}))


def _overlay(result: Result, options: OutputOptions) -> list[File]:
    return [(f"{result.name}.png", overlay_png(result.image, result.labels, result.legend))]


def _probabilities(result: Result, options: OutputOptions) -> list[File]:
    return [(f"{result.name}.npz", probabilities_npz(result.probabilities, result.legend.classes))]


MASKS = Format("masks", "PNG of class indices, with the classes' colours as palette", _mask, Merge(_indices))
OVERLAY = Format("overlay", "the photo with what was found in colour", _overlay, needs=frozenset({IMAGE}))
PROBABILITIES = Format(
    "probabilities", "all classes' probabilities, float16", _probabilities, needs=frozenset({ALL_CLASSES})
)
