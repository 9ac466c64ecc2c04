"""What a person can look at while the demo runs and afterwards."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sandbox.demo import page, progress, report

ROOT = Path(__file__).resolve().parents[2]
INDEX = "index.html"
"""The page, in the folder of the demo."""
Measured = Mapping[str, tuple[report.ArmResult, list[np.ndarray]]]


class Watched:
    """What a person can look at while the demo runs: its page and its pictures.

    Args:
        given: the command line's arguments.
        classes: that are learnt.
        say: prints a sentence.
    """

    def __init__(self, given: argparse.Namespace, classes: Sequence[str], say: Callable[[str], None]) -> None:
        self.page = page.Page(given.out / INDEX, f"HRDA demo: {', '.join(classes)}, seed {given.seed}")
        self.summary = ""
        self.say = say
        self.out = given.out
        self._given, self._classes = given, classes
        self._is_first_shown = False

    def look(self) -> None:
        """Show the first validation of the training in the app as soon as there is one."""
        look = None if self._is_first_shown else progress.first_look(self.out / "train_app" / "run" / "history.jsonl")
        if look is None:
            return
        self._is_first_shown = True
        path = self.out / "first_picture.png"
        look.draw(path)
        text = (
            f"Validation photos of the target domain after {look.iteration} iterations. None of the target's photos "
            "had a label in training."
        )
        self.page.show(
            is_whole=False,
            now=page.now("HRDA is being trained. What comes next will appear here."),
            first=page.picture("First look", text, path),
        )
        self.say(f"The first pictures are there: open {self.page.path} in a browser (or {path}).")

    def show_results(
        self, measured: Measured, photos: Sequence[report.Photo], rows: Sequence[int], served: Sequence[np.ndarray]
    ) -> None:
        """Show figures, pictures and curves of the arms that are measured.

        Args:
            measured: figures and predictions of each arm.
            photos: all that were measured on.
            rows: which of them are drawn.
            served: what the served model answers for those, in place of HRDA's predictions.
        """
        results = {name: result for name, (result, _) in measured.items()}
        columns = {name: [predictions[i] for i in rows] for name, (_, predictions) in measured.items()}
        picture = self.out / "comparison.png"
        report.picture(picture, [photos[i] for i in rows], {**columns, "HRDA": served})
        self.summary = (
            f"{', '.join(self._classes)}, seed {self._given.seed}, {len(photos)} validation photos, in % of pixels\n"
            f"{report.table(results)}\n"
        )
        (self.out / "comparison.txt").write_text(self.summary)
        folders = {name: self.out / name / "tensorboard" for name in results if name != "HRDA"}
        folders["HRDA"] = self.out / "train_app" / "work_dir" / "logs"
        is_whole = len(results) > 1 or not self._given.compare
        self.page.show(
            is_whole=is_whole,
            now=page.now("Done." if is_whole else "The two other arms are being trained, and will appear here."),
            # The same photos are in the comparison.
            first="",
            comparison=page.comparison(
                results,
                f"{len(photos)} validation photos that no arm was trained on, in % of pixels. {report.gain(results)}",
                picture,
            ),
            curves=page.curves("Curves", progress.curves(folders, self._classes[0])),
            next=page.what_next(".venv/bin/python", self.out / "hrda.pth", ROOT / "docs" / "guide.md"),
        )
