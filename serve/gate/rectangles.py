"""Regions of images, as labelling tools send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field
from supervisely import Rectangle

from common.hrda.checks import IN_PART, received
from serve.errors import RequestError

# No image is larger; what is, would overflow the pixels' integers.
_FARTHEST = 2**31 - 1
_Place = Annotated[list[Annotated[float, Field(ge=-_FARTHEST, le=_FARTHEST)]], Field(min_length=2, max_length=2)]


class _Points(BaseModel):
    model_config = IN_PART
    exterior: Annotated[list[_Place], Field(min_length=2, max_length=2)]


class _Rectangle(BaseModel):
    """The part of Supervisely's JSON of a rectangle that is read."""

    model_config = IN_PART
    points: _Points


def read_rectangle(value: Any) -> Rectangle:
    """A region of an image as the labelling tools send it.

    Raises:
        RequestError: not a rectangle in Supervisely's JSON.
    """
    try:
        _Rectangle.model_validate(value)
        return Rectangle.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RequestError(
            'rectangle must be {"points": {"exterior": [[left, top], [right, bottom]], "interior": []}}. '
            f"Received: {received(value)}."
        ) from error


def require_for_each(settings: Mapping[str, Any], count: int) -> None:
    """Refuse `rectangles` that are not as many as the images.

    Raises:
        RequestError: with both numbers.
    """
    rectangles = settings.get("rectangles")
    if rectangles is not None and len(rectangles) != count:
        raise RequestError(
            f"rectangles must hold one rectangle for each image, in the order of the images. "
            f"Received: {len(rectangles)} rectangles for {count} images."
        )


def refuse_for_each(settings: Mapping[str, Any]) -> None:
    """Refuse `rectangles` where the request does not name its images one by one.

    Raises:
        RequestError: it says what to send.
    """
    if settings.get("rectangles") is not None:
        raise RequestError(
            "rectangles belong to images that a request names one by one, and a project has no order of images. "
            "Send rectangle, which holds for all images, or ids of images."
        )


def region_size(settings: Mapping[str, Any], index: int, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of what is predicted of image `index` of `size`: its region, where the checked `settings` name one."""
    rectangles = settings.get("rectangles")
    value = rectangles[index] if rectangles is not None else settings.get("rectangle")
    if value is None:
        return size
    rectangle = read_rectangle(value)
    return (rectangle.height, rectangle.width)


def region_of(settings: Mapping[str, Any], image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the only `image` of a request that are predicted.

    Raises:
        RequestError: its region is not within the image, or there are several.
    """
    require_for_each(settings, 1)
    [value] = settings.get("rectangles") or [settings.get("rectangle")]
    if value is None:
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    check_inside(value, image)
    rectangle = read_rectangle(value)
    return slice(rectangle.top, rectangle.bottom + 1), slice(rectangle.left, rectangle.right + 1)


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
