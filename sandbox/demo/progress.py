"""What can be seen of the demo's trainings before they have ended: the first pictures, and the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.data.images import read_image
from sandbox.demo.report import sheet

ROLES = ("photo", "truth", "prediction")
CHARTS = {
    "IoU of the foreground on validation photos, in %": ("validation/teacher/iou/", 100),
    "Loss on labelled source photos": ("loss/source", 1),
    "Foreground in the pseudo-labels, in % of the pixels": ("pseudo_label/foreground_share", 100),
}
"""Titles of the curves, how their names in TensorBoard begin, and the factor to what is shown."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class FirstLook:
    """The first validation of a run: pictures of a few photos."""

    iteration: int
    rows: Sequence[Mapping[str, Path]]
    """For each photo the files of `ROLES`."""

    def draw(self, path: Path) -> None:
        """Write them as one picture."""
        sheet(path, ROLES, [[read_image(row[role]) for role in ROLES] for row in self.rows])


def first_look(history: Path) -> FirstLook | None:
    """The first validation that a run of Train HRDA tells of; None before it.

    Args:
        history: file in which the app keeps what its page shows, a JSON object a line.
    """
    # It appears with the run, goes with its upload, and its last line may not be whole yet.
    with suppress(OSError):
        for line in history.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                change = json.loads(line)
                if change["change"] == "Validated" and (rows := _validation_rows(change)):
                    return FirstLook(change["iteration"], rows)
    return None


def _validation_rows(change: Mapping) -> list[dict[str, Path]]:
    pictures = [preview["pictures"] for preview in change["previews"] if preview["kind"] == "validation"]
    return [{role: Path(row[role]) for role in ROLES} for row in pictures]


def curves(folders: Mapping[str, Path], foreground: str) -> dict[str, dict[str, Points]]:
    """Points (iteration, value) of each arm, by the titles of `CHARTS`.

    Args:
        folders: by arm, where its training has written for TensorBoard.
        foreground: class whose IoU is drawn.
    """
    charts: dict[str, dict[str, Points]] = {title: {} for title in CHARTS}
    for arm, folder in folders.items():
        # A second of imports.
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
        events.Reload()
        for title, (begins, factor) in CHARTS.items():
            name = begins + foreground if begins.endswith("/") else begins
            known = events.Scalars(name) if name in events.Tags()[SCALARS] else []
            charts[title][arm] = [(event.step, factor * event.value) for event in known]
    return charts
