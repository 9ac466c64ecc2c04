"""Connected parts of what was found, and their outlines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from serve.batch.result import Result

_DIGITS = 2
"""Of coordinates in pixels."""


@dataclass(frozen=True)
class Components:
    """The connected parts (8 neighbours) of one class in a photo."""

    index: int
    """Of the class."""
    name: str
    """Of the class."""
    areas: np.ndarray
    """H×W int32: the pixels of part n are n, from 1; 0 elsewhere."""
    boxes: np.ndarray
    """N×4 int32: left, top, width, height of each part in pixels."""
    pixels: np.ndarray
    """N int32: how many each part has."""

    def __len__(self) -> int:
        return len(self.pixels)

    def confidences(self, confidences: np.ndarray) -> np.ndarray:
        """Mean N float64 of `confidences` H×W over each part."""
        inside = self.areas > 0
        sums = np.bincount(self.areas[inside], confidences[inside], minlength=len(self) + 1)
        return sums[1:] / self.pixels

    def scores(self, result: Result) -> list[float]:
        """Mean probability of each part to four digits."""
        return np.round(self.confidences(result.confidences), 4).tolist()


def components(result: Result) -> Iterator[Components]:
    """The parts of every class but the background, one class after the other. Also of classes that have none."""
    for index, name in result.legend.found:
        inside = (result.labels == index).view(np.uint8)
        _, areas, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8, ltype=cv2.CV_32S)
        yield Components(index, name, areas, stats[1:, :4], stats[1:, cv2.CC_STAT_AREA])


def outlines(parts: Components, tolerance: float) -> list[MultiPolygon]:
    """The outline of each part, with its holes.

    Args:
        parts: of one class.
        tolerance: how far it may run beside the border, in pixels. At 0 it follows the border, half way between the
            middles of the pixels inside and outside, so that whoever fills it gets the same pixels.

    Returns:
        Valid geometries in pixels, column first, (0, 0) at the photo's upper left corner.
    """
    # Takes a third of a second to import: most predictions write no outlines.
    from skimage.measure import find_contours

    found: list[list[np.ndarray]] = [[] for _ in range(len(parts))]
    if not found:
        return []
    left, top, width, height = cv2.boundingRect((parts.areas > 0).view(np.uint8))
    # Outside there is at least one pixel of background everywhere.
    areas = np.pad(parts.areas[top : top + height, left : left + width], 1)
    for ring in find_contours((areas > 0).astype(np.float32), 0.5, fully_connected="high"):
        # A point lies between two pixels, one of which is inside.
        row, column = ring[0]
        number = max(areas[int(np.floor(row)), int(np.floor(column))], areas[int(np.ceil(row)), int(np.ceil(column))])
        # From middles of pixels to their corners, and without the frame.
        found[number - 1].append(ring[:, ::-1] + (left - 0.5, top - 0.5))
    return [_outline(rings, tolerance) for rings in found]


def rings(outline: MultiPolygon) -> list[np.ndarray]:
    """The outline as closed rings N×2 without the last point, which is the first; holes are cut open."""
    pieces = [piece for polygon in outline.geoms for piece in without_holes(polygon)]
    return [np.round(shapely.get_coordinates(piece.exterior)[:-1], _DIGITS) for piece in pieces]


def without_holes(polygon: Polygon) -> list[Polygon]:
    """Polygons without holes that cover the same: formats that know no holes get it in pieces."""
    if not polygon.interiors:
        return [polygon]
    left, top, right, bottom = polygon.bounds
    hole = polygon.interiors[0].bounds
    # Through a hole, and between pixels where it is wider than one.
    cut = hole[0] + max(1.0, round((hole[2] - hole[0]) / 2)) if hole[2] - hole[0] > 1 else (hole[0] + hole[2]) / 2
    pieces = []
    for side in (box(left, top, cut, bottom), box(cut, top, right, bottom)):
        pieces += [each for piece in _polygons(shapely.intersection(polygon, side)) for each in without_holes(piece)]
    return pieces


def _outline(rings: list[np.ndarray], tolerance: float) -> MultiPolygon:
    # A part has one outer ring, which is around all others.
    outer, *holes = sorted(rings, key=lambda ring: -np.ptp(ring, axis=0).sum())
    whole = Polygon(outer, holes)
    if tolerance:
        whole = shapely.make_valid(shapely.simplify(whole, tolerance))
    return MultiPolygon(_polygons(whole))


def _polygons(geometry: shapely.Geometry) -> list[Polygon]:
    """The polygons in a geometry; points and lines that are left of an intersection cover nothing."""
    return [part for part in _flat(geometry) if isinstance(part, Polygon) and not part.is_empty]


def _flat(geometry: shapely.Geometry) -> Iterator[shapely.Geometry]:
    if hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _flat(part)
    else:
        yield geometry
