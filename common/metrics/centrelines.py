"""Agreement along the middle of thin objects: clDice.

Source: Shit et al., "clDice: a novel topology-preserving loss function for tubular structure segmentation", CVPR 2021,
with the skeletons of Zhang and Suen as scikit-image computes them.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from skimage.morphology import medial_axis, skeletonize

_LEAST_RADIUS = 16.0
_RADIUS_SHARE = 1 / 32


def centreline_matches(predicted: np.ndarray, true: np.ndarray, radius: float) -> list[int]:
    """Count the pixels of each region's skeleton that lie inside the other region.

    Args:
        predicted, true: H×W uint8, 1 in the region. Ignored pixels must be 0 in both, so that both skeletons make the
            same way around them.
        radius: of the thickest object that still counts as thin, in pixels.

    Returns:
        Pixels of the predicted skeleton inside the true region, and all of them; pixels of the true skeleton inside the
        predicted region, and all of them.
    """
    predicted_line, true_line = skeleton(predicted, radius), skeleton(true, radius)
    return [
        cv2.countNonZero(predicted_line & true),
        cv2.countNonZero(predicted_line),
        cv2.countNonZero(true_line & predicted),
        cv2.countNonZero(true_line),
    ]


def skeleton(region: np.ndarray, radius: float, method: Literal["zhang", "lee"] = "zhang") -> np.ndarray:
    """The middle lines of a region, one pixel wide.

    Thinning takes two passes a pixel of radius. A region thicker than `radius`, such as all of the photo predicted as
    crack, gets the medial axis, whose time does not grow with the thickness.

    Args:
        region: H×W uint8, 1 inside.
        radius: in pixels.
        method: of thinning. Zhang's is that of clDice, and shrinks some lines at exactly 45° to a point; Lee's keeps
            them.

    Returns:
        H×W uint8, 1 on the lines.
    """
    lines = np.zeros_like(region)
    left, top, width, height = cv2.boundingRect(region)
    if width == 0:
        return lines
    box = np.s_[top : top + height, left : left + width]
    inside = region[box].astype(bool)
    # The medial axis draws lots among pixels at equal distances; scores must not. It needs a border to begin from.
    is_thin = thickness(region[box]) <= radius
    lines[box] = skeletonize(inside, method=method) if is_thin else medial_axis(np.pad(inside, 1), rng=0)[1:-1, 1:-1]
    return lines


def thickness(region: np.ndarray) -> float:
    """Radius in pixels of the largest circle inside a region H×W uint8."""
    # What is beyond the photo's edge is not part of the object.
    framed = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return float(cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_3).max())


def thin_radius(size: tuple[int, int]) -> float:
    """Radius up to which an object counts as thin in a photo of `size` (H, W): a 32nd of the shorter side."""
    return max(min(size) * _RADIUS_SHARE, _LEAST_RADIUS)
