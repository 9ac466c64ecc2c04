"""Which photos the arms learn from, which choices are made on, and which the figures are of."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.project import ImageRecord, open_project
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from sandbox.synthetic.projects import CLASS_NAME, write_project
from train.run.suggestions import suggest

SOURCE_PHOTOS, SOURCE_SIDE, SOURCE_SEED = 300, 256, 0


@dataclass(frozen=True)
class Folds:
    """The labelled real photos, dealt out once and for all."""

    choosing: tuple[tuple[ImageRecord, ...], ...]
    """Photos by fold on which thresholds, and which of student and teacher, are chosen."""
    reporting: tuple[tuple[ImageRecord, ...], ...]
    """Photos by fold that the figures are of."""

    @classmethod
    def deal(cls, photos: Sequence[ImageRecord], count: int) -> Folds:
        """Two halves, each dealt out to `count` folds, in an order that depends on the photos' names alone."""
        mixed = sorted(photos, key=lambda record: record.key)
        random.Random(0).shuffle(mixed)
        halves = mixed[::2], mixed[1::2]
        return cls(*(tuple(tuple(half[fold::count]) for fold in range(count)) for half in halves))

    def left_in(self, fold: int) -> list[ImageRecord]:
        """The photos of all other folds, of both halves."""
        halves = zip(self.choosing, self.reporting, strict=True)
        return [record for number, pair in enumerate(halves) if number != fold for part in pair for record in part]


def write_source(folder: Path) -> str:
    """Generated photos of cracks in `folder`, made anew where they are not complete; their specification."""
    done = folder / "complete"
    if not done.exists():
        write_project(folder / "project", "road", SOURCE_PHOTOS, seed=SOURCE_SEED, size=(SOURCE_SIDE, SOURCE_SIDE))
        done.touch()
    return str(folder / "project")


def write_part(folder: Path, photos: Sequence[ImageRecord], meta: Path) -> None:
    """Write a project of some photos, as links to them in `folder`.

    Args:
        folder: made if missing; what is there stays.
        photos: with their annotations.
        meta: the file `meta.json` of the project that they are of.
    """
    for part in ("img", "ann"):
        (folder / "ds" / part).mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_bytes(meta.read_bytes())
    for number, record in enumerate(photos):
        # Numbered: photos of several datasets may have the same name.
        name = f"{number:04d}_{record.name}"
        for part, path in (("img", record.image_path), ("ann", record.annotation_path)):
            link, wanted = folder / "ds" / part / (name if part == "img" else f"{name}.json"), path.resolve()
            if link.is_symlink() and link.readlink() == wanted:
                # A training may be reading it.
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(wanted)


def ranked(photos: Sequence[ImageRecord], network: Path, file: Path) -> list[ImageRecord]:
    """Photos as `python -m train suggest` would have them labelled, the most useful first.

    Args:
        photos: to choose from, none of them labelled yet.
        network: a checkpoint, of whose teacher it is asked.
        file: holds the order, once it is known.
    """
    if not file.is_file():
        bundle = load_checkpoint(network)
        windows = InferenceSettings.from_dict(bundle.settings["inference"])
        predictor = Predictor(bundle.teacher or bundle.student, windows, input_scale=bundle.input_scale)
        order = [one.photo for one in suggest(photos, (), predictor, len(photos))]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(order), encoding="utf-8")
    by_key = {record.key: record for record in photos}
    return [by_key[key] for key in json.loads(file.read_text(encoding="utf-8"))]


def labelled_photos(spec: str) -> list[ImageRecord]:
    """The photos of a project whose annotation has a crack.

    Raises:
        ProjectError: there is no such project.
    """
    return [record for record in open_project(spec) if record.annotation_path and _has_crack(record.annotation_path)]


def _has_crack(annotation: Path) -> bool:
    objects = json.loads(annotation.read_text(encoding="utf-8"))["objects"]
    return any(label["classTitle"] == CLASS_NAME for label in objects)
