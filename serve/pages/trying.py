"""One photo tried in the browser: probabilities as pictures, which the page cuts at any threshold by itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from serve.model.deployment import Deployment

PAGE = Path(__file__).with_name("try.html")
LONGEST_SIDE = 1600
"""Of the pictures that the page gets, in pixels."""
MOST_CLASSES = 12
"""Classes that the page shows; each is a picture on its way."""
_AT_HALF = 0.5


def shown(
    image: np.ndarray,
    probabilities: np.ndarray,
    deployment: Deployment,
    thresholds: Mapping[str, float],
    milliseconds: float,
) -> dict[str, Any]:
    """What the page gets of a photo.

    Args:
        image: H×W×3 uint8 RGB.
        probabilities: C×H×W float, of the classes of `deployment`.
        deployment: the model.
        thresholds: by class name, at which the page begins.
        milliseconds: that the prediction took.

    Returns:
        `milliseconds`, `width` and `height` of the photo, the `photo` as an address of data, and for each class but the
        background its `name`, its `colour`, its `threshold` and its `probabilities`, 255 for 1.
    """
    height, width = image.shape[:2]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    classes = [
        {
            "name": name,
            "colour": list(colour),
            "threshold": thresholds.get(name, _AT_HALF),
            "probabilities": _address(".png", _level(plane, size)),
        }
        for name, colour, plane in zip(deployment.classes, deployment.palette, probabilities, strict=True)
    ]
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), size, interpolation=cv2.INTER_AREA)
    return {
        "milliseconds": round(milliseconds),
        "width": width,
        "height": height,
        "photo": _address(".jpg", small),
        "classes": classes[1 : MOST_CLASSES + 1],
        "left_out": max(len(classes) - 1 - MOST_CLASSES, 0),
    }


def _level(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(255 * small), 0, 255).astype(np.uint8)


def _address(suffix: str, picture: np.ndarray) -> str:
    _, content = cv2.imencode(suffix, picture)
    kind = "png" if suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"
