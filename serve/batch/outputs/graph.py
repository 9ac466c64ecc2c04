"""A skeleton as branches between forks and ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

NOWHERE = -1
"""In place of a fork's number: the branch ends freely."""


@dataclass(frozen=True)
class Branch:
    """A piece of a skeleton without forks."""

    pixels: np.ndarray
    """N int64, N ≥ 1: places in the graph's list of pixels, in order."""
    forks: tuple[int, int]
    """Numbers of the forks at its beginning and at its end, or `NOWHERE`."""
    is_loop: bool
    """Whether its end is its beginning."""


class SkeletonGraph:
    """Finds the branches of a skeleton.

    Args:
        lines: H×W uint8, 1 on the skeleton, which is one pixel wide.
    """

    def __init__(self, lines: np.ndarray) -> None:
        self.pixels = np.argwhere(lines)
        """N×2 int64 row and column."""
        self._count = len(self.pixels)
        edges = _edges(lines, self.pixels)
        is_fork = np.bincount(edges.ravel(), minlength=self._count) >= 3
        at_fork = is_fork[edges]
        # Neighbouring pixels with three neighbours are one fork.
        joined = self._joined(edges[at_fork.all(1)])
        self.fork_pixels = np.flatnonzero(is_fork)
        """M int64: places of the pixels where branches meet."""
        _, self.fork_numbers = np.unique(joined[self.fork_pixels], return_inverse=True)
        """M int64: to which fork each belongs, from 0."""
        self.forks = 1 + int(self.fork_numbers.max(initial=-1))
        """How many there are."""
        numbers = np.full(self._count, NOWHERE)
        numbers[self.fork_pixels] = self.fork_numbers
        self._touched: dict[int, list[int]] = {}
        for one, other in edges[at_fork.sum(1) == 1].tolist():
            pixel, fork = (other, one) if is_fork[one] else (one, other)
            self._touched.setdefault(pixel, []).append(int(numbers[fork]))
        self._is_fork, self._edges = is_fork, edges[~at_fork.any(1)]

    def branches(self) -> Iterator[Branch]:
        """All of them."""
        chains, edges = self._joined(self._edges), self._edges
        loops = self._loops(chains)
        if loops:
            # Opened at one edge each, they are chains like the others.
            _, firsts = np.unique(chains[edges[:, 0]], return_index=True)
            edges = np.delete(edges, [first for first in firsts if chains[edges[first, 0]] in loops], axis=0)
        own = np.flatnonzero(~self._is_fork)
        if not len(own):
            return
        ends = own[np.bincount(edges.ravel(), minlength=self._count)[own] <= 1]
        _, firsts = np.unique(chains[ends], return_index=True)
        steps = dijkstra(self._matrix(edges), directed=False, indices=ends[firsts], unweighted=True, min_only=True)
        order = own[np.lexsort((steps[own], chains[own]))]
        for pixels in np.split(order, np.flatnonzero(np.diff(chains[order])) + 1):
            yield Branch(pixels, self._forks_of(pixels), int(chains[pixels[0]]) in loops)

    def _forks_of(self, pixels: np.ndarray) -> tuple[int, int]:
        begin, end = (self._touched.get(int(pixel), []) for pixel in (pixels[0], pixels[-1]))
        if len(pixels) == 1:
            begin, end = begin[:1], begin[1:]
        return (begin[0] if begin else NOWHERE, end[0] if end else NOWHERE)

    def _loops(self, chains: np.ndarray) -> set[int]:
        neighbours = np.bincount(self._edges.ravel(), minlength=self._count)
        least = np.full(self._count, 2)
        np.minimum.at(least, chains[~self._is_fork], neighbours[~self._is_fork])
        return set(np.unique(chains[~self._is_fork & (least[chains] == 2)]).tolist())

    def _joined(self, edges: np.ndarray) -> np.ndarray:
        return connected_components(self._matrix(edges), directed=False)[1]

    def _matrix(self, edges: np.ndarray) -> coo_matrix:
        return coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (self._count, self._count)).tocsr()


def _edges(lines: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """E×2 places of neighbouring pixels. Across a corner only where no way leads around it, or corners would count as
    forks."""
    places = np.full((lines.shape[0] + 2, lines.shape[1] + 2), NOWHERE)
    rows, columns = pixels[:, 0] + 1, pixels[:, 1] + 1
    places[rows, columns] = np.arange(len(pixels))
    right, below = places[rows, columns + 1], places[rows + 1, columns]
    lower_right = np.where((right < 0) & (below < 0), places[rows + 1, columns + 1], NOWHERE)
    left = places[rows, columns - 1]
    lower_left = np.where((left < 0) & (below < 0), places[rows + 1, columns - 1], NOWHERE)
    found = []
    for others in (right, below, lower_right, lower_left):
        there = np.flatnonzero(others >= 0)
        found.append(np.stack([there, others[there]], axis=1))
    return np.concatenate(found)
