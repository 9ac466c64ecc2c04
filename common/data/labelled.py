"""Photos with labels, as training and measuring take them: mask files, and how many pixels and parts each class has."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from common.data.choice import BACKGROUND, IGNORED
from common.data.folders import ImageRecord, ProjectError
from common.data.labels import LabelScaling, count_parts, resize_labels, summed_parts
from common.data.reading import is_away, read_mask
from common.data.transforms import InputScale
from common.hrda.pixels import IGNORE_LABEL

logger = logging.getLogger(__name__)

LabelledRole = Literal["source", "validation", "labelled target"]


@dataclass(frozen=True)
class MaskFacts:
    """What is counted of a mask."""

    pixels: dict[int, int]
    """Pixels that have each index."""
    parts: dict[int, tuple[int, int]]
    """By index: connected parts that have a pixel left at the scale of training, and all."""


MASK_FACTS = TypeAdapter(MaskFacts)


def pixel_counts(histogram: NDArray[np.int64]) -> dict[int, int]:
    """How many pixels have each index that occurs, of 256 counts."""
    return {int(index): int(histogram[index]) for index in histogram.nonzero()[0]}


@dataclass(frozen=True)
class TrainingScale:
    """How large labels are when they are learnt from."""

    size: InputScale
    """Of photos and labels."""
    labels: LabelScaling
    """How labels get there."""

    def facts(self, mask: NDArray[np.uint8]) -> MaskFacts:
        """What a mask (H×W uint8) is at this scale; nothing is said of parts where it is not made smaller."""
        size = self.size.size(*mask.shape)
        small = resize_labels(mask, size, self.labels)
        parts = count_parts(mask, small) if size[0] * size[1] < mask.size else {}
        return MaskFacts(pixel_counts(np.bincount(small.ravel(), minlength=256)), parts)

    def key(self) -> dict[str, Any]:
        """Plain data that is equal for equal scales."""
        return {**self.size.to_dict(), "labels": self.labels}


@dataclass(frozen=True, eq=False)
class LabelledImages(Sequence[tuple[ImageRecord, Path]]):
    """Photos with their masks: a sequence of (record, mask file)."""

    classes: tuple[str, ...]
    """Names by index, the background first."""
    items: list[tuple[ImageRecord, Path]]
    pixels: NDArray[np.int64]
    """N×C: how many pixels of each photo each class has, at the scale that was asked for; left-out pixels are not
    counted."""
    left_out: list[str] = field(default_factory=list)
    """What `skip_broken` passed over, a sentence each."""
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By name of the class, of those photos that are made smaller: connected parts that have a pixel left, and all."""

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class in all pixels that count, C values."""
        return self.pixels.sum(axis=0) / max(self.pixels.sum(), 1)


def with_facts(
    classes: Sequence[str], items: list[tuple[ImageRecord, Path]], facts: Sequence[MaskFacts], left_out: list[str]
) -> LabelledImages:
    """The photos with what is counted of each.

    Args:
        classes: names without the background.
        items: photos and mask files.
        facts: of each photo.
        left_out: what was passed over, a sentence each.
    """
    pixels = np.zeros((len(facts), len(classes) + 1), np.int64)
    for row, one in zip(pixels, facts, strict=True):
        for index, count in one.pixels.items():
            if index != IGNORE_LABEL:
                row[index] = count
    parts = summed_parts(one.parts for one in facts)
    by_name = {classes[index - 1]: both for index, both in sorted(parts.items())}
    return LabelledImages((BACKGROUND, *classes), items, pixels, left_out, by_name)


def facts_of_file(path: Path, scale: TrainingScale) -> MaskFacts:
    """`TrainingScale.facts` of a mask file."""
    return scale.facts(read_mask(path))


def parts_sentence(labelled: LabelledImages, scaling: LabelScaling, role: str) -> str | None:
    """What share of each class's parts is left at the scale of training, and which setting keeps them.

    None where no photo is made smaller, or no class has parts.
    """
    shares = [f"{name} {100 * left / count:.0f}% ({left} of {count})" for name, (left, count) in labelled.parts.items()]
    if not shares:
        return None
    more = (
        "data.label_scaling: keep_thin keeps more"
        if scaling == "nearest"
        else "data.scale with larger edges or a larger factor keeps them at more pixels"
    )
    return f"Of the parts of each class these are left at the scale of training ({role}): {', '.join(shares)}; {more}."


def check_choice(classes: Sequence[str]) -> None:
    """Refuse a choice of classes that no mask can hold.

    Raises:
        ProjectError: none, the background, one twice, or too many.
    """
    if not classes:
        raise ProjectError("No class was chosen: name at least one besides the background.")
    if BACKGROUND in classes:
        raise ProjectError(f"The class '{BACKGROUND}' is the background, which is always there: leave it out.")
    if IGNORED in classes:
        raise ProjectError(f"The labels of '{IGNORED}' are what does not count: leave it out of the classes.")
    if len(set(classes)) < len(classes):
        raise ProjectError(f"A class was chosen twice. Received: {', '.join(classes)}.")
    if len(classes) >= IGNORE_LABEL:
        raise ProjectError(f"A mask holds at most {IGNORE_LABEL - 1} classes. Received: {len(classes)}.")


def count_labels(records: Iterable[ImageRecord]) -> Counter[str]:
    """Number of labels per class; annotations that cannot be read are named later, when masks are drawn."""
    counter: Counter[str] = Counter()
    for record in records:
        try:
            objects = read_annotation(record)[1].get("objects", []) if record.annotation_path else []
            counter.update(one["classTitle"] for one in objects)
        except (ProjectError, KeyError, TypeError) as error:
            if is_away(error):
                # Of a disk that is away it would be wrong to say that there are no labels.
                raise
            logger.debug("%s: its labels cannot be counted.", record.key)
    return counter


def read_annotation(record: ImageRecord) -> tuple[bytes, dict[str, Any]]:
    """A photo's annotation, as bytes and as what they say.

    Raises:
        ProjectError: it cannot be read.
    """
    try:
        content = record.annotation_path.read_bytes()
        return content, dict(json.loads(content))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ProjectError(
            f"Cannot read the annotation {record.annotation_path}: {error}. Download it again."
        ) from error
