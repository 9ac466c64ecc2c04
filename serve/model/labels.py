"""From a mask of class indices to labels in Supervisely's format."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from supervisely import Bitmap, Label, ObjClass, ProjectMeta, Tag, TagMeta, TagValueType
from supervisely.nn.prediction_dto import PredictionSegmentation

from common.hrda.prediction.labelling import BACKGROUND

CONFIDENCE = TagMeta("confidence", TagValueType.ANY_NUMBER)


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
            wanted: names of classes; the pixels of others count as background. None: all.
        """
        mask, confidences = self.mask, self._confidences
        unwanted = [
            index
            for index, obj_class in enumerate(self._objects)
            if index != BACKGROUND and wanted is not None and obj_class.name not in wanted
        ]
        if np.isin(mask, unwanted).any():
            mask = np.where(np.isin(mask, unwanted), BACKGROUND, mask)
            # What has become background was not predicted as such: its probability would say nothing.
            confidences = confidences and [None, *confidences[1:]]
        return [
            self._label(mask, index, confidences)
            for index in np.unique(mask)
            if index != BACKGROUND or self._background
        ]

    def _label(self, mask: np.ndarray, index: int, confidences: Sequence[float | None] | None) -> Label:
        label = Label(Bitmap(mask == index, extra_validation=False), self._objects[index])
        if confidences is not None and confidences[index] is not None:
            label = label.add_tag(Tag(CONFIDENCE, round(confidences[index], 4)))
        return label
