"""Where a photo was taken, and how large a pixel of it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from serve.batch.outputs.format import OutputOptions
from serve.batch.result import Result, Transform

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.transform import Affine

_MM_PER_METRE = 1000.0
_MOST_UNEQUAL = 1.01
"""Height and width of a pixel may differ by this factor and still have one scale."""


def place_of(transform: Affine, crs: CRS | None) -> tuple[Transform, str | None] | tuple[None, None]:
    """Transform and coordinate reference system of an open GeoTIFF, as `Photo` has them; (None, None) without."""
    if transform.is_identity:
        return None, None
    authority = crs.to_authority() if crs else None
    return tuple(transform)[:6], ":".join(authority) if authority else crs.to_wkt() if crs else None


def mm_per_pixel(result: Result, options: OutputOptions) -> float | None:
    """Millimetres that a pixel shows: as the options say, else of a georeferenced photo.

    None where neither knows it, where coordinates are angles, and where pixels are no squares.
    """
    if options.mm_per_pixel is not None:
        return options.mm_per_pixel
    if result.transform is None or result.crs is None:
        return None
    a, b, _, d, e, _ = result.transform
    sides = math.hypot(a, d), math.hypot(b, e)
    if not min(sides) or max(sides) / min(sides) > _MOST_UNEQUAL:
        return None
    # Who knows a photo's place has rasterio.
    from rasterio.crs import CRS

    crs = CRS.from_user_input(result.crs)
    if not crs.is_projected:
        return None
    _, metres = crs.linear_units_factor
    return math.sqrt(sides[0] * sides[1]) * metres * _MM_PER_METRE
