"""Predicted areas in Supervisely's annotation format.

Written here and not by the SDK, whose import takes longer than torch's and brings its server along. A test compares
every byte with what the SDK writes.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from serve.model.areas import CONFIDENCE_TAG, Area


def annotation(size: tuple[int, int], areas: Sequence[Area], classes: Sequence[str]) -> dict[str, Any]:
    """The annotation of an image.

    Args:
        size: the image's height and width.
        areas: what was found in it.
        classes: names by index.
    """
    height, width = size
    return {
        "description": "",
        "size": {"height": height, "width": width},
        "tags": [],
        "objects": [_bitmap_object(area, classes[area.index]) for area in areas],
        "customBigData": {},
    }


def _bitmap_object(area: Area, name: str) -> dict[str, Any]:
    tags = [] if area.confidence is None else [{"name": CONFIDENCE_TAG, "value": area.confidence}]
    left, top, width, height = cv2.boundingRect(area.pixels.view(np.uint8))
    data = _encoded(area.pixels[top : top + height, left : left + width])
    return {
        "classTitle": name,
        "description": "",
        "tags": tags,
        "bitmap": {"origin": [left, top], "data": data},
        "shape": "bitmap",
        "geometryType": "bitmap",
        "nnCreated": True,
        "nnUpdated": True,
    }


def _encoded(pixels: np.ndarray) -> str:
    """H×W bool as a zipped PNG of two colours, in base64."""
    image = Image.fromarray(pixels.view(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=0, optimize=0)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()
