"""From a mask of class indices to labels in Supervisely's format."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from supervisely import Bitmap, Label, ObjClass, ProjectMeta, Tag, TagMeta, TagValueType
from supervisely.nn.prediction_dto import PredictionSegmentation

from serve.model.areas import CONFIDENCE_TAG, Area, find_areas

CONFIDENCE = TagMeta(CONFIDENCE_TAG, TagValueType.ANY_NUMBER)


def model_meta(classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> ProjectMeta:
    """What clients are told: the classes in the order of the masks' indices, their colours, the tag of confidence."""
    return ProjectMeta(_object_classes(classes, palette), [CONFIDENCE])


def _object_classes(classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> list[ObjClass]:
    return [ObjClass(name, Bitmap, color=list(colour)) for name, colour in zip(classes, palette, strict=True)]


class LabelledMask(PredictionSegmentation):
    """A mask that knows what its indices mean, whatever is deployed by the time that labels are made of it.

    Args:
        mask: H×W uint8 class indices.
        classes: names by index, the background first.
        palette: RGB colour of each class.
        confidences: mean probability of each class in the mask, or None.
        background: whether the background gets a label.
    """

    def __init__(
        self,
        mask: np.ndarray,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        *,
        confidences: Sequence[float | None] | None = None,
        background: bool = True,
    ) -> None:
        super().__init__(mask)
        self._objects = _object_classes(classes, palette)
        self._confidences = confidences
        self._background = background

    def labels(self, wanted: Collection[str] | None = None) -> list[Label]:
        """One bitmap a class that is present.

        Args:
            wanted: names of classes, as in `find_areas`. None: all.
        """
        areas = find_areas(
            self.mask,
            [obj_class.name for obj_class in self._objects],
            confidences=self._confidences,
            background=self._background,
            wanted=wanted,
        )
        return [self._label(area) for area in areas]

    def _label(self, area: Area) -> Label:
        label = Label(Bitmap(area.pixels, extra_validation=False), self._objects[area.index])
        return label if area.confidence is None else label.add_tag(Tag(CONFIDENCE, area.confidence))
