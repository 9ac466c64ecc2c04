"""Results as they are written in one process, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.hrda.files import replacing
from serve.batch.outputs import DEFAULT, FORMATS, needs_of, parts_of
from serve.batch.outputs.format import Format, OutputOptions, Part
from serve.batch.result import Legend, Result


class Writer:
    """Writes what a run finds.

    Args:
        folder: where files go.
        formats: each into a folder of its name in it. Without any, annotations in Supervisely's format go into the
            folder itself.
        legend: of the results.
        options: of the formats.
        draw: also write the photos with what was found in colour into the folder itself.
    """

    def __init__(
        self, folder: Path, formats: Sequence[Format], legend: Legend, options: OutputOptions, *, draw: bool = False
    ) -> None:
        self.files: list[Path] = []
        """What was written, in order."""
        self._folder, self._legend, self._options = folder, legend, options
        self._folders = [(folder / each.name, each) for each in formats] or [(folder, FORMATS[DEFAULT])]
        self._drawn = (folder, FORMATS["overlay"]) if draw else None
        written = [each for _, each in (*self._folders, *([self._drawn] if self._drawn else []))]
        self.needs = needs_of(written)
        """Fields of `Result` that must be there."""
        self._parts: dict[Part, dict[str, bytes]] = {part: {} for part in parts_of(written)}

    def add(self, result: Result) -> Path:
        """Write the files of one photo; the first of them, or the folder where there are none.

        Raises:
            WriteError: one could not be written.
        """
        before = len(self.files)
        for folder, each in self._folders:
            for name, content in each.files(result, self._options):
                self._write(folder / name, content)
        if self._drawn:
            folder, overlay = self._drawn
            for _, content in overlay.files(result, self._options):
                self._write(folder / f"{result.photo}.png", content)
        for part, kept in self._parts.items():
            kept[result.photo] = part.of(result, self._options)
        return self.files[before] if len(self.files) > before else self._folder

    def finish(self) -> None:
        """Write the files of all photos together.

        Raises:
            WriteError: one could not be written.
        """
        for folder, each in self._folders:
            if each.merge is None:
                continue
            kept = self._parts.get(each.merge.part, {})

            def create(name: str, folder: Path = folder) -> AbstractContextManager[BinaryIO]:
                self.files.append(folder / name)
                return replacing(folder / name)

            parts = [kept[photo] for photo in sorted(kept)]
            each.merge.write(parts, self._legend, self._options, create)

    def _write(self, path: Path, content: bytes) -> None:
        with replacing(path) as file:
            file.write(content)
        self.files.append(path)


class Tally:
    """What was found so far, for a line a photo and a summary.

    Args:
        legend: of the results.
    """

    def __init__(self, legend: Legend) -> None:
        self.photos = 0
        """Photos that were added."""
        self._legend = legend
        self._pixels = np.zeros(len(legend.classes), np.int64)
        self._photos_with = np.zeros(len(legend.classes), np.int64)

    def add(self, labels: np.ndarray) -> str:
        """Add a photo's labels H×W uint8; what was found in it, such as 'crack 1.23%'."""
        counts = np.bincount(labels.ravel(), minlength=len(self._legend.classes))
        self.photos += 1
        self._pixels += counts
        self._photos_with += counts > 0
        shares = [
            f"{name} {_percent(counts[index] / labels.size)}" for index, name in self._legend.found if counts[index]
        ]
        return ", ".join(shares) or "nothing found"

    def summary(self, seconds: float) -> str:
        """How many photos, how fast, and how much of them each class is."""
        pixels = int(self._pixels.sum())
        speed = f"{self.photos / seconds:.2g} photos/s, {pixels / 1e6 / seconds:.2g} megapixels/s"
        lines = [f"{_photos(self.photos)} predicted in {seconds:.1f} s ({speed})."]
        if pixels:
            lines += [
                f"  {name}: in {self._photos_with[index]} of {_photos(self.photos)}, "
                f"{_percent(self._pixels[index] / pixels)} of all pixels"
                for index, name in self._legend.found
            ]
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _photos(count: int) -> str:
    return f"{count} photo" if count == 1 else f"{count} photos"
