"""The two coordinate systems of labels.

Label files on disk hold whole pixels. The instance keeps positions between pixels: the SDK shifts points by half a
pixel when it uploads and rounds down when it downloads; a rectangle's lower right corner moves by one.
"""

from collections.abc import Callable
from math import floor

Point = list[float]


def _points(geometry: dict) -> list[list[Point]]:
    """The lists of points inside a geometry, not copied."""
    shapes = [geometry["points"]] if isinstance(geometry.get("points"), dict) else []
    if isinstance(geometry.get("parts"), list):
        shapes += geometry["parts"]
    lists = []
    for shape in shapes:
        lists += [shape["exterior"], *shape.get("interior", [])]
    return lists


def _move(geometry: dict, move: Callable[[float, int], float]) -> None:
    for points in _points(geometry):
        points[:] = [[move(point[0], 0), move(point[1], 1)] for point in points]
    nodes = geometry.get("nodes")
    for node in nodes.values() if isinstance(nodes, dict) else ():
        node["loc"] = [move(node["loc"][0], 0), move(node["loc"][1], 1)]
    if isinstance(geometry.get("bitmap"), dict):
        geometry["bitmap"]["origin"] = [floor(value) for value in geometry["bitmap"]["origin"]]


def _corners(geometry: dict) -> tuple[list[float], list[float]]:
    points = geometry["points"]["exterior"]
    return sorted(p[0] for p in points), sorted(p[1] for p in points)


def to_subpixel(geometry: dict, kind: str) -> None:
    """Shift a geometry from a label file to what the instance keeps, in place.

    Args:
        geometry: The label's geometry keys: ``points``, ``parts``, ``nodes`` or ``bitmap``.
        kind: ``geometryType`` of the label.
    """
    if kind == "rectangle":
        (left, right), (top, bottom) = _corners(geometry)
        geometry["points"]["exterior"] = [[left, top], [right + 1, bottom + 1]]
    else:
        _move(geometry, lambda value, _: value + 0.5)


def to_pixel(geometry: dict, kind: str, size: tuple[int, int]) -> None:
    """Undo :func:`to_subpixel`, in place.

    Args:
        geometry: As kept.
        kind: ``geometryType`` of the label.
        size: Width and height of the image: a point on the far edge belongs to the last pixel.
    """
    if kind == "rectangle":
        (left, right), (top, bottom) = ([floor(v) for v in axis] for axis in _corners(geometry))
        geometry["points"]["exterior"] = [[left, top], [max(left, right - 1), max(top, bottom - 1)]]
    else:
        _move(geometry, lambda value, axis: floor(value) - (value == size[axis]))


def bounds(geometry: dict) -> list[float] | None:
    """``[top, left, bottom, right]`` of a geometry made of points; None for others."""
    points = [point for points in _points(geometry) for point in points]
    if not points:
        return None
    columns, rows = [p[0] for p in points], [p[1] for p in points]
    return [min(rows), min(columns), max(rows), max(columns)]
