"""Regions of images, as labelling tools send them."""

from __future__ import annotations

from typing import Any

import numpy as np
from supervisely import Rectangle

from serve.errors import RequestError


def read_rectangle(value: Any) -> Rectangle:
    """A region of an image as the labelling tools send it.

    Raises:
        RequestError: not a rectangle in Supervisely's JSON.
    """
    try:
        return Rectangle.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RequestError(
            'rectangle must be {"points": {"exterior": [[left, top], [right, bottom]], "interior": []}}. '
            f"Received: {value!r:.200}."
        ) from error


def check_inside(value: Any, image: np.ndarray) -> None:
    """Refuse a region that is not within `image`.

    Raises:
        RequestError: it says how large the image is.
    """
    rectangle = read_rectangle(value)
    height, width = image.shape[:2]
    if not Rectangle.from_size((height, width)).contains(rectangle):
        raise RequestError(
            f"rectangle must lie inside the image of {width}×{height} pixels. Received: left {rectangle.left}, "
            f"top {rectangle.top}, right {rectangle.right}, bottom {rectangle.bottom}."
        )
