"""Agreement with a tolerance: of the pixels of two regions, and of their borders.

A pixel is right if the other region, or its border, comes within the tolerance. What lies where nothing is counted is
unknown, so a pixel without a partner is wrong only if none can lie there either: next to ignored pixels it is left out.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def region_matches(predicted: np.ndarray, true: np.ndarray, ignored: np.ndarray | None, tolerance: float) -> list[int]:
    """Count the pixels of two regions that come within `tolerance` of the other.

    Args:
        predicted, true: H×W uint8, 1 in the region; 0 where `ignored` is 1.
        ignored: H×W uint8, 1 where nothing is counted; None: nowhere.
        tolerance: distance in pixels.

    Returns:
        Pixels of the prediction that have a partner, and all of them that were judged; the same of the truth.
    """
    near = disk(tolerance)
    unknown = None if ignored is None else cv2.dilate(ignored, near)
    return [
        *_found(predicted, cv2.dilate(true, near), unknown),
        *_found(true, cv2.dilate(predicted, near), unknown),
    ]


def border_matches(predicted: np.ndarray, true: np.ndarray, ignored: np.ndarray | None, tolerance: float) -> list[int]:
    """Count the pixels of two regions' borders that come within `tolerance` of the other's.

    Args:
        predicted, true, ignored, tolerance: as of `region_matches`.

    Returns:
        Four counts as of `region_matches`.
    """
    near = disk(tolerance)
    predicted_border, maybe_predicted = border(predicted, ignored)
    true_border, maybe_true = border(true, ignored)
    return [
        *_found(predicted_border, cv2.dilate(true_border, near), _near(maybe_true, near)),
        *_found(true_border, cv2.dilate(predicted_border, near), _near(maybe_predicted, near)),
    ]


def border(region: np.ndarray, ignored: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels of a region that touch (4 neighbours) counted pixels outside of it.

    The edge of the photo is no border, nor is that of the ignored pixels, behind which the region may go on.

    Args:
        region: H×W uint8, 1 inside; 0 where `ignored` is 1.
        ignored: H×W uint8, 1 where nothing is counted; None: nowhere.

    Returns:
        H×W uint8, 1 on the border; and the same for where else it may lie: the ignored pixels, and those of the region
        that touch them. None if nothing is ignored.
    """
    if ignored is None:
        return region & cv2.dilate(1 - region, _CROSS), None
    outside = 1 - (region | ignored)
    return region & cv2.dilate(outside, _CROSS), ignored | (region & cv2.dilate(ignored, _CROSS))


def disk(radius: float) -> np.ndarray:
    """Pixels within `radius` of the middle one, as a uint8 square."""
    reach = math.floor(radius)
    steps = np.arange(-reach, reach + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)


def _near(mask: np.ndarray | None, near: np.ndarray) -> np.ndarray | None:
    return None if mask is None else cv2.dilate(mask, near)


def _found(pixels: np.ndarray, near_partner: np.ndarray, unknown: np.ndarray | None) -> tuple[int, int]:
    """How many of `pixels` have a partner, and of how many that can be said."""
    found = cv2.countNonZero(pixels & near_partner)
    if unknown is None:
        return found, cv2.countNonZero(pixels)
    return found, cv2.countNonZero(pixels & (near_partner | (1 - unknown)))
