"""What was predicted of one photo, as the formats of outputs take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from common.hrda.settings import BACKGROUND

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f) as of rasterio: the pixel corner (column, row) lies at x = a·column + b·row + c and
y = d·column + e·row + f."""


@dataclass(frozen=True)
class Legend:
    """What class indices mean."""

    classes: tuple[str, ...]
    """Names by index."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    background: int = BACKGROUND
    """Index of the class that is no finding."""

    @property
    def found(self) -> tuple[tuple[int, str], ...]:
        """Index and name of every class but the background."""
        return tuple((index, name) for index, name in enumerate(self.classes) if index != self.background)


@dataclass(frozen=True)
class Photo:
    """A photo to predict."""

    path: str
    """Below the input folder, with its suffix, parted by '/'."""
    name: str
    """What files of its results are called, without their suffix: see `result_names`."""
    image: np.ndarray
    """H×W×3 uint8 RGB."""
    transform: Transform | None = None
    """From pixels to coordinates of `crs`, of a georeferenced photo."""
    crs: str | None = None
    """Coordinate reference system as an authority's code ('EPSG:32633') or WKT, of a georeferenced photo."""
    valid: np.ndarray | None = None
    """H×W bool: pixels that are not empty; None where all count. What is empty becomes background."""


@dataclass(frozen=True)
class Result:
    """What was predicted of one photo. It holds arrays and plain data alone, so that it goes to other processes."""

    photo: str
    """The photo's path below the input folder, with its suffix, parted by '/'."""
    name: str
    """The photo's path as files of results are called, without their suffix: see `result_names`."""
    labels: np.ndarray
    """H×W uint8 class indices. A class that was not asked for counts as background."""
    legend: Legend
    """What the indices mean."""
    image: np.ndarray | None = None
    """H×W×3 uint8 RGB, where a format needs it."""
    confidences: np.ndarray | None = None
    """H×W float32 probability of each pixel's class, where a format needs it; NaN where that class was not asked
    for."""
    probabilities: np.ndarray | None = None
    """C×H×W float16 probabilities of all classes, where a format needs them."""
    transform: Transform | None = None
    """From pixels to coordinates of `crs`, of a georeferenced photo."""
    crs: str | None = None
    """Coordinate reference system as an authority's code ('EPSG:32633') or WKT, of a georeferenced photo."""

    @property
    def size(self) -> tuple[int, int]:
        """The photo's height and width in pixels."""
        return self.labels.shape

    def placed(self, size: tuple[int, int], region: tuple[slice, slice]) -> Result:
        """As of the photo of `size` (H, W) whose `region` this was predicted of: all beside it is background.
        Probabilities stay those of the region."""
        if self.size == size:
            return self
        labels = np.full(size, self.legend.background, np.uint8)
        labels[region] = self.labels
        confidences = None
        if self.confidences is not None:
            confidences = np.full(size, np.nan, np.float32)
            confidences[region] = self.confidences
        return replace(self, labels=labels, confidences=confidences, image=None)


def result_names(photos: Sequence[str]) -> dict[str, str]:
    """How files of results are called, by photo: as other tools pair them, `night/a` for `night/a.jpg`.

    A photo keeps its suffix where its folder holds another one of that name (`a.jpg` and `a.png`, also `A.png`, which
    some disks take for the same). So no two photos share a name.

    Args:
        photos: paths below the input folder, each once.
    """
    stems = {photo: str(PurePosixPath(photo).with_suffix("")) for photo in photos}
    counts: dict[str, int] = {}
    for name in (*stems.values(), *(photo for photo, stem in stems.items() if photo != stem)):
        counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
    return {photo: stem if counts[stem.casefold()] == 1 else photo for photo, stem in stems.items()}
