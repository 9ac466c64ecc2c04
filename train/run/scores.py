"""The scores of a run as people are shown them: one table for the terminal, the page and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np

from common.hrda.checks import Count, Fraction, FromList, PlainSettings, SettingsError, schema
from common.hrda.files import replacing
from common.metrics.photos import SCORES, PhotoCounts, Score
from common.metrics.segmentation import COUNTED

CLASSES_SHOWN = 10
HEADINGS = ("", "threshold", *SCORES.values())
"""Of the columns of the table."""
_NO_INTERVAL = "with fewer than 5 photos no interval can be given"


@schema
class ScoresFile(PlainSettings):
    """What lies in a run's `scores.json`."""

    iteration: Count
    """Iterations after which it was measured."""
    names: Annotated[tuple[str, ...], FromList]
    """File name of each photo."""
    numbers: Annotated[tuple[Count, ...], FromList]
    """Number of each photo."""
    classes: Annotated[tuple[str, ...], FromList]
    """Names by index."""
    thresholds: Annotated[tuple[Fraction, ...], FromList]
    """Best threshold of each class."""
    counts: list[list[list[Count]]]
    """Pixels, by photo, class and kind of count."""


@dataclass(frozen=True)
class Scores:
    """What the best measurement of a run found."""

    iteration: int
    """Iterations after which it was measured."""
    photos: PhotoCounts
    """Counts of every photo, of the better model."""

    def write(self, path: Path) -> None:
        """Keep them in a file.

        Raises:
            WriteError: the disk is full or not writable.
        """
        photos = self.photos
        plain = {
            "iteration": self.iteration,
            "names": photos.names,
            "numbers": photos.numbers,
            "classes": photos.classes,
            "thresholds": photos.thresholds,
            "counts": photos.counts.tolist(),
        }
        with replacing(path) as file:
            file.write(json.dumps(plain).encode())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The scores in a file; None if it is not there or not whole: a run has other things to show."""
        try:
            given: Any = json.loads(path.read_text(encoding="utf-8"))
            file = ScoresFile.from_dict(given)
            counts = np.array(file.counts, dtype=np.int64).reshape(len(file.names), len(file.classes), len(COUNTED))
        except (OSError, ValueError, RecursionError, SettingsError):
            return None
        if len(file.numbers) != len(file.names) or len(file.thresholds) != len(file.classes) or not file.names:
            return None
        return cls(file.iteration, PhotoCounts(file.names, file.numbers, file.classes, file.thresholds, counts))


class Row(NamedTuple):
    """A row of the table."""

    title: str
    threshold: str
    """Empty in a row of means."""
    cells: tuple[str, ...]
    """Scores in percent with their intervals, in the order of `SCORES`."""


def table(scores: Scores) -> list[Row]:
    """Foreground first: a row for each class, above them their means if there are several."""
    photos = scores.photos
    present = photos.present
    rows = []
    if len(present) != 1:
        rows.append(Row("mean of the classes", "", _cells(photos.foreground())))
    for index in present[:CLASSES_SHOWN]:
        name = photos.classes[index]
        rows.append(Row(name, threshold_text(photos.thresholds[index]), _cells(photos.scores_of(name))))
    return rows


def compared(ours: Scores, control: Scores) -> list[Row]:
    """A row for the run with target photos and one for the run without."""
    arms = {"with target photos": ours, "without target photos": control}
    rows = []
    for title, scores in arms.items():
        photos = scores.photos
        only = photos.present[0] if len(photos.present) == 1 else None
        threshold = "" if only is None else threshold_text(photos.thresholds[only])
        rows.append(Row(title, threshold, _cells(photos.foreground())))
    return rows


def below_table(scores: Scores) -> str:
    """What the table does not hold: mIoU, how many photos, what the intervals are."""
    photos = scores.photos
    count = f"{len(photos.names)} validation photo{'s' * (len(photos.names) != 1)}"
    mean = photos.mean_iou()
    note = "in brackets: 95% intervals, by a bootstrap over the photos" if mean.low is not None else _NO_INTERVAL
    more = len(photos.present) - CLASSES_SHOWN
    others = f" {more} more classes are in the means." if more > 0 else ""
    return f"mIoU {percent(mean)}, {count}, iteration {scores.iteration}.{others} {note[0].upper()}{note[1:]}."


def text_table(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [HEADINGS, *((row.title, row.threshold, *row.cells) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """The table for a model card."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *((row.title, row.threshold, *row.cells) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def is_comparable(ours: Scores, control: Scores) -> bool:
    """Whether the two were measured on the same photos and classes."""
    return (ours.photos.names, ours.photos.classes) == (control.photos.names, control.photos.classes)


def verdict(ours: Scores, control: Scores) -> str:
    """What the target photos brought, in plain words.

    Raises:
        ValueError: the two were not measured on the same photos.
    """
    gain = ours.photos.difference(control.photos)
    # Rounded first, so that nothing is said to be -0.0.
    points = round(100 * gain.value, 1) + 0.0
    if gain.low is None or gain.high is None:
        return (
            f"With target photos the IoU is {points:+.1f} points against the run without them. Whether that is chance "
            f"cannot be told: {_NO_INTERVAL}."
        )
    low, high = (round(100 * end, 1) + 0.0 for end in (gain.low, gain.high))
    if gain.low > 0:
        return f"Target photos brought {points:.1f} points of IoU, 95% interval {low:.1f} to {high:.1f}."
    if gain.high < 0:
        return f"Target photos cost {-points:.1f} points of IoU, 95% interval {-high:.1f} to {-low:.1f}."
    return (
        f"No difference can be told: with target photos the IoU is {points:+.1f} points, 95% interval {low:+.1f} to "
        f"{high:+.1f}. More validation photos make the interval narrower."
    )


def how_far(iteration: int, iterations: int) -> str:
    """How a run ended: 'stopped at 540 of 600 iterations'."""
    stopped = iteration < iterations
    return f"stopped at {iteration} of {iterations} iterations" if stopped else f"{iterations} iterations"


def thresholds_of(scores: Scores) -> dict[str, float]:
    """Best threshold by class, as the setting `thresholds` of Serve HRDA wants them."""
    photos = scores.photos
    return {photos.classes[index]: round(photos.thresholds[index], 2) for index in photos.present}


def threshold_text(threshold: float) -> str:
    """A threshold as the setting wants it: 0.41."""
    return f"{threshold:.2f}"


def percent(score: Score) -> str:
    """A score in percent with its interval: 23.4 (20.1 to 26.0)."""
    interval = "" if score.low is None or score.high is None else f" ({100 * score.low:.1f} to {100 * score.high:.1f})"
    return f"{100 * score.value:.1f}{interval}"


def _cells(scores: Mapping[str, Score]) -> tuple[str, ...]:
    return tuple(percent(scores[name]) for name in SCORES)
