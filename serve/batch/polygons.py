"""Polygons of a file of labels, whatever its size: GeoJSON in its own coordinates and in WGS 84."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.warp
import shapely
from rasterio.crs import CRS

from common.hrda.files import replacing
from serve.batch.result import Legend

WGS84 = CRS.from_epsg(4326)
_DIGITS_WGS84 = 9
"""Of degrees: a tenth of a millimetre."""


def write_polygons(labels: Path, stem: Path, legend: Legend, tolerance: float) -> tuple[Path, ...]:
    """Write the connected areas of each class but the background.

    Args:
        labels: GeoTIFF of class indices, whose background is 0 and whose empty pixels have its nodata value.
        stem: path of the files, to which `.local.geojson` and, where the coordinates are known, `.geojson` is added.
        legend: of the indices.
        tolerance: how far polygons may run beside the border of their pixels, in pixels.

    Returns:
        The files: first that in WGS 84 (RFC 7946), if there is one.

    Raises:
        WriteError: one could not be written.
    """
    with rasterio.open(labels) as file:
        local, crs = stem.with_name(f"{stem.name}.local.geojson"), file.crs
        member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": _name(crs)}}}
        _write(local, _areas(file, legend, tolerance), member)
        if crs is None:
            return (local,)
        world = stem.with_name(f"{stem.name}.geojson")
        _write(world, _areas(file, legend, tolerance, _to_wgs84(crs)), {})
    return world, local


def _areas(
    file: rasterio.DatasetReader,
    legend: Legend,
    tolerance: float,
    place: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[dict[str, Any]]:
    names, band, transform = dict(legend.found), rasterio.band(file, 1), file.transform
    pixel = abs(transform.determinant)
    # The labels are their own mask: the background is 0.
    for number, (geometry, value) in enumerate(
        rasterio.features.shapes(band, mask=band, connectivity=8, transform=transform)
    ):
        if int(value) not in names:
            continue
        area = shapely.geometry.shape(geometry)
        pixels = round(area.area / pixel)
        if tolerance:
            area = area.simplify(tolerance * pixel**0.5)
        if place is not None:
            area = shapely.transform(area, place)
        # Where pixels touch at a corner alone, the outline touches itself.
        area = shapely.orient_polygons(area if area.is_valid else shapely.make_valid(area))
        yield {
            "type": "Feature",
            "id": number,
            "geometry": shapely.geometry.mapping(area),
            "properties": {"class": names[int(value)], "area_px": pixels},
        }


def _to_wgs84(crs: CRS) -> Callable[[np.ndarray], np.ndarray]:
    def place(points: np.ndarray) -> np.ndarray:
        return np.round(np.column_stack(rasterio.warp.transform(crs, WGS84, *points.T)), _DIGITS_WGS84)

    return place


def _name(crs: CRS) -> str:
    authority = crs.to_authority()
    return crs.to_wkt() if authority is None else f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"


def _write(path: Path, features: Iterator[dict[str, Any]], members: dict[str, Any]) -> None:
    """Write features one by one; all of them are never in memory as text."""
    head = json.dumps({"type": "FeatureCollection", **members})[:-1]
    with replacing(path) as file:
        file.write(f'{head}, "features": ['.encode())
        for number, feature in enumerate(features):
            file.write((",\n" if number else "\n").encode() + json.dumps(feature).encode())
        file.write(b"\n]}\n")
