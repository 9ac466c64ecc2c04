"""The centreline of thin areas: how long, how wide, how branched.

A skeleton is a chain of pixels. It is up to 8% longer than the line that it stands for, ends half a width before the
area does, and has spurs where the border is rough. So spurs are removed, each branch is smoothed along itself, and its
free ends are drawn out to the border. The width is the way across the area at a right angle to the smoothed line.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.spatial import cKDTree
from skimage.morphology import remove_small_holes

from common.metrics.centrelines import skeleton, thin_radius
from serve.batch.outputs.graph import NOWHERE, Branch, SkeletonGraph

SMOOTHING = 2.0
"""Standard deviation in pixels along a branch: steps between rows of pixels vanish, curves of a few pixels stay."""
_BEYOND = 8
"""Pixels beyond the ends of a branch that its smoothing looks at: four standard deviations."""
_STEP = 0.125
"""Distance in pixels of the samples by which a border is found."""
_SPUR_RADII = 1.5
"""A branch that ends within so many radii of a fork is roughness of the border: corners are 1.41 away."""
_LARGEST_FILLED = 12
"""Pixels of a hole that counts as a fault of the prediction; around a larger one a crack divides and meets again."""
_MOST_PRUNINGS = 5


@dataclass(frozen=True)
class Line:
    """The centreline of one connected area."""

    length: float
    """Of all its branches together, in pixels."""
    branches: int
    """Pieces between forks and ends: 1 of a plain crack, 3 of one that forks."""
    widths: np.ndarray
    """N float64, N ≥ 1: across the area, at the line's pixels away from forks, in pixels."""


def centrelines(areas: np.ndarray, count: int) -> list[Line]:
    """The centreline of each connected area.

    Args:
        areas: H×W int32; the pixels of area n, which hang together by 8 neighbours, are n. 0 is outside.
        count: areas, numbered from 1; each has a pixel.
    """
    if not count:
        return []
    middle = _Middle(remove_small_holes(areas > 0, max_size=_LARGEST_FILLED).view(np.uint8))
    numbers = areas[tuple(middle.graph.pixels.T)]
    found: dict[int, list[tuple[float, np.ndarray, np.ndarray, bool]]] = {}
    for branch in middle.graph.branches():
        # Pixels of filled holes have no number.
        number = int(numbers[branch.pixels].max())
        found.setdefault(number, []).append((*middle.measure(branch), middle.is_within_fork(branch)))
    pixels = np.bincount(areas.ravel(), minlength=count + 1)
    return [_line(found[n]) if n in found else _dot(pixels[n]) for n in range(1, count + 1)]


def _line(branches: list[tuple[float, np.ndarray, np.ndarray, bool]]) -> Line:
    lengths, widths, at_forks, within_forks = zip(*branches, strict=True)
    widths, at_fork = np.concatenate(widths), np.concatenate(at_forks)
    if not at_fork.all():
        widths = widths[~at_fork]
    # Of a blot little but its middle is left; it is as long as it is wide.
    length = max(float(sum(lengths)), float(widths.max()))
    return Line(length, max(len(branches) - sum(within_forks), 1), widths)


def _dot(pixels: int) -> Line:
    """What lies in a hole that was filled."""
    side = float(np.sqrt(pixels))
    return Line(side, 1, np.array([side]))


class _Middle:
    """The middle lines of areas.

    Args:
        inside: H×W uint8, 1 in the areas, somewhere 1.
    """

    def __init__(self, inside: np.ndarray) -> None:
        self._border = _Border(inside)
        lines = skeleton(inside, thin_radius(inside.shape), "lee")
        for _ in range(_MOST_PRUNINGS):
            self._find(lines)
            spurs = [branch.pixels for branch in self.graph.branches() if self._is_spur(branch)]
            if not spurs:
                break
            lines[tuple(self.graph.pixels[np.concatenate(spurs)].T)] = 0
        else:
            self._find(lines)

    def _find(self, lines: np.ndarray) -> None:
        self.graph = graph = SkeletonGraph(lines)
        places = graph.pixels[graph.fork_pixels]
        members = np.maximum(np.bincount(graph.fork_numbers, minlength=graph.forks), 1)[:, None]
        self._centres = np.zeros((graph.forks, 2))
        np.add.at(self._centres, graph.fork_numbers, places)
        self._centres /= members
        self._radii = np.zeros(graph.forks)
        if graph.forks:
            np.maximum.at(self._radii, graph.fork_numbers, self._border.nearest(places)[0])

    def measure(self, branch: Branch) -> tuple[float, np.ndarray, np.ndarray]:
        """What a branch measures.

        Returns:
            Its length in pixels, to the middle of its forks and to the border at its free ends; its width N in pixels
            at each of its pixels; and N bool, whether the pixel lies in a fork, which is wider.
        """
        pixels = self.graph.pixels[branch.pixels].astype(float)
        radii, _ = self._border.nearest(pixels)
        begin, end = (self._centres[[fork] if fork != NOWHERE else []] for fork in branch.forks)
        points = np.concatenate([begin, pixels, end])
        if len(points) == 1:
            # A dot is as long as it is wide.
            width = self._border.across(points, self._border.normals(points), radii)
            return float(width[0]), width, np.zeros(1, bool)
        smooth = _smoothed(points, branch.is_loop)
        own = slice(len(begin), len(points) - len(end))
        along = np.gradient(smooth, axis=0)[own]
        normals = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        widths = _smoothed(self._border.across(pixels, normals, radii), branch.is_loop)
        is_at_fork, length = np.zeros(len(pixels), bool), _length(smooth)
        if branch.is_loop:
            return length + float(np.hypot(*(smooth[0] - smooth[-1]))), widths, is_at_fork
        for fork, line in zip(branch.forks, (smooth, smooth[::-1]), strict=True):
            if fork == NOWHERE:
                length += self._border.beyond(line)
            else:
                is_at_fork |= np.hypot(*(pixels - self._centres[fork]).T) <= self._radii[fork] + SMOOTHING
        return length, widths, is_at_fork

    def is_within_fork(self, branch: Branch) -> bool:
        """Whether a branch only joins two forks that lie within each other: where wide cracks cross, four branches meet
        in two places."""
        if NOWHERE in branch.forks:
            return False
        one, other = branch.forks
        return bool(len(branch.pixels) <= max(self._radii[one], self._radii[other]))

    def _is_spur(self, branch: Branch) -> bool:
        forks = [fork for fork in branch.forks if fork != NOWHERE]
        if len(forks) != 1:
            return False
        points = self.graph.pixels[branch.pixels]
        farthest = np.hypot(*(points - self._centres[forks[0]]).T).max()
        return farthest <= _SPUR_RADII * self._radii[forks[0]]


class _Border:
    """Where areas end.

    Args:
        inside: H×W uint8, 1 in the areas.
    """

    def __init__(self, inside: np.ndarray) -> None:
        self._inside = inside
        pixels = np.argwhere(cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside)
        if not len(pixels):
            # All of the photo: what is beyond it counts as outside.
            height, width = inside.shape
            pixels = np.array([(-1, width // 2), (height, width // 2), (height // 2, -1), (height // 2, width)])
        self._tree = cKDTree(pixels)

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance from points N×2 (row, column) to the nearest pixel outside, N, and that pixel, N×2."""
        distances, places = self._tree.query(points)
        return distances, self._tree.data[places]

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Unit vectors N×2 from points N×2 to the nearest pixel outside."""
        distances, nearest = self.nearest(points)
        return (nearest - points) / distances[:, None]

    def across(self, points: np.ndarray, normals: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """Width N of the areas at points N×2 of their middle lines, along unit vectors N×2; `radii` N is how far the
        nearest pixel outside is."""
        one, other = (self._way_out(points, sign * normals, radii, 1.25) for sign in (1, -1))
        return one + other

    def beyond(self, line: np.ndarray) -> float:
        """How far the border is from the first of the points N×2 (N ≥ 2) of a line, straight on."""
        [distance], _ = self.nearest(line[:1])
        direction = line[0] - line[min(len(line) - 1, int(distance) + 2)]
        direction /= max(np.hypot(*direction), 1e-9)
        return float(self._way_out(line[:1], direction[None], np.array([distance]), 0.5 * distance + 1.5)[0])

    def _way_out(self, points: np.ndarray, directions: np.ndarray, distances: np.ndarray, most: float) -> np.ndarray:
        """Way N from points N×2 along unit vectors N×2 to the border, half way between pixels inside and outside, at
        most `most` more than the distance N of the nearest pixel outside."""
        # Nearer by a pixel's diagonal all is inside, whatever the direction.
        begin = np.maximum(distances - 1.5, 0)[:, None]
        ways = begin + np.arange(0, 1.5 + most + _STEP, _STEP)
        places = points[:, :, None] + ways[:, None] * directions[:, :, None]
        values = map_coordinates(self._inside, np.moveaxis(places, 1, 0), np.float32, order=1, cval=0)
        values[:, 0], values[:, -1] = 1, 0
        after = np.argmax(values < 0.5, axis=1)[:, None]
        (inner, outer), (before, beyond) = (
            [np.take_along_axis(each, place, 1)[:, 0] for place in (after - 1, after)] for each in (values, ways)
        )
        return before + (beyond - before) * (inner - 0.5) / (inner - outer)


def _smoothed(values: np.ndarray, is_loop: bool) -> np.ndarray:
    """Values N×… along a branch; its ends stay where they are."""
    if is_loop:
        return gaussian_filter1d(values, SMOOTHING, axis=0, mode="wrap")
    # Mirrored at the ends in place and direction.
    beyond = [(_BEYOND, _BEYOND)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, beyond, mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, SMOOTHING, axis=0)[_BEYOND:-_BEYOND]


def _length(points: np.ndarray) -> float:
    return float(np.hypot(*np.diff(points, axis=0).T).sum())
