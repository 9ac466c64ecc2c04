"""GeoJSON: the outline of each connected part."""

from __future__ import annotations

import re
from typing import Any

from shapely.affinity import affine_transform
from shapely.geometry import MultiPolygon, mapping

from serve.batch.outputs.components import components, outlines
from serve.batch.outputs.format import CONFIDENCES, File, Format, OutputOptions, json_bytes
from serve.batch.result import Result


def feature_collection(result: Result, options: OutputOptions) -> dict[str, Any]:
    """What was found in a photo as GeoJSON: a feature for each connected part, in the coordinates of a georeferenced
    photo, and of others in pixels (x to the right, y down)."""
    features = []
    for parts in components(result):
        for number, (outline, area, score) in enumerate(
            zip(outlines(parts, options.tolerance), parts.pixels, parts.scores(result), strict=True), start=1
        ):
            features.append(
                {
                    "type": "Feature",
                    "properties": {
                        "class": parts.name,
                        "component": number,
                        "area_px": int(area),
                        "confidence": score,
                    },
                    "geometry": mapping(_placed(outline, result)),
                }
            )
    collection: dict[str, Any] = {"type": "FeatureCollection", "name": result.photo, "features": features}
    if code := re.fullmatch(r"EPSG:(\d+)", result.crs or ""):
        # Not in the standard any more, which knows WGS 84 alone; GDAL and all that is made of it read it.
        name = f"urn:ogc:def:crs:EPSG::{code[1]}"
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection


def _placed(outline: MultiPolygon, result: Result) -> MultiPolygon:
    if result.transform is None:
        return outline
    a, b, c, d, e, f = result.transform
    return affine_transform(outline, (a, b, d, e, c, f))


def _geojson(result: Result, options: OutputOptions) -> list[File]:
    return [(f"{result.name}.geojson", json_bytes(feature_collection(result, options)))]


GEOJSON = Format("geojson", "GeoJSON: outlines of connected parts", _geojson, needs=frozenset({CONFIDENCES}))
