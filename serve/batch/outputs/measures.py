"""How large, long and wide is what was found: of each class in a photo, and of each connected part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.batch.outputs.components import components
from serve.batch.outputs.format import OutputOptions
from serve.batch.outputs.georeference import mm_per_pixel
from serve.batch.result import Result

if TYPE_CHECKING:
    from serve.batch.outputs.centreline import Line

COLUMNS: dict[str, type] = {
    "photo": str,
    "class": str,
    "area_px": int,
    "area_percent": float,
    "length_px": float,
    "mean_width_px": float,
    "p95_width_px": float,
    "max_width_px": float,
    "branches": int,
    "confidence": float,
}
"""Columns of both tables, and what they hold."""
MM_COLUMNS: dict[str, type] = dict.fromkeys(
    ("mm_per_pixel", "area_mm2", "length_mm", "mean_width_mm", "p95_width_mm", "max_width_mm"), float
)
"""Columns of both tables that are empty where the photo's scale is not known."""
CLASSES: dict[str, type] = COLUMNS | {"components": int, "height_px": int, "width_px": int} | MM_COLUMNS
"""Columns of the table with a row for each photo and class."""
COMPONENTS: dict[str, type] = (
    COLUMNS | {"component": int} | dict.fromkeys(("left", "top", "box_width", "box_height"), int) | MM_COLUMNS
)
"""Columns of the table with a row for each connected part."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """The measures of one photo."""

    classes: list[Row]
    """A row for each class but the background, also where it was not found."""
    components: list[Row]
    """A row for each connected part."""


def measure(result: Result, options: OutputOptions) -> Measures:
    """Measure what was found in a photo.

    Lengths and widths are those of the centreline, see `centrelines`; the width is taken at every pixel of it.
    """
    # Brings scikit-image, which takes a third of a second: most predictions measure nothing.
    from serve.batch.outputs.centreline import centrelines

    scale = mm_per_pixel(result, options)
    of_classes, of_parts = [], []
    for parts in components(result):
        lines = centrelines(parts.areas, len(parts))
        means = parts.confidences(result.confidences)
        shared = {"photo": result.photo, "class": parts.name}
        for number, (line, pixels, box, mean) in enumerate(
            zip(lines, parts.pixels, parts.boxes.tolist(), means, strict=True), start=1
        ):
            left, top, width, height = box
            row = shared | _measures([line], int(pixels), result.labels.size, mean, scale)
            of_parts.append(
                row | {"component": number, "left": left, "top": top, "box_width": width, "box_height": height}
            )
        height, width = result.size
        mean = float(np.average(means, weights=parts.pixels)) if len(parts) else None
        row = shared | _measures(lines, int(parts.pixels.sum()), result.labels.size, mean, scale)
        of_classes.append(row | {"components": len(parts), "height_px": height, "width_px": width})
    return Measures(of_classes, of_parts)


def _measures(lines: list[Line], pixels: int, of: int, confidence: float | None, scale: float | None) -> Row:
    widths = np.concatenate([line.widths for line in lines]) if lines else None
    length = sum(line.length for line in lines)
    mean, high, most = (
        (None, None, None) if widths is None else (widths.mean(), np.percentile(widths, 95), widths.max())
    )
    found = {
        "area_px": pixels,
        "area_percent": round(100 * pixels / of, 4),
        "length_px": _rounded(length),
        "mean_width_px": _rounded(mean),
        "p95_width_px": _rounded(high),
        "max_width_px": _rounded(most),
        "branches": sum(line.branches for line in lines),
        "confidence": _rounded(confidence, 4),
        "mm_per_pixel": scale,
    }
    in_mm = {"length_mm": length, "mean_width_mm": mean, "p95_width_mm": high, "max_width_mm": most}
    found |= {name: _rounded(value, 4, scale) for name, value in in_mm.items()}
    return found | {"area_mm2": _rounded(pixels, 4, None if scale is None else scale**2)}


def _rounded(value: float | None, digits: int = 2, scale: float | None = 1.0) -> float | None:
    return None if value is None or scale is None else round(float(value) * scale, digits)
