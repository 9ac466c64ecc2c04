"""Supervisely's annotations, a JSON file a photo."""

from __future__ import annotations

import math

from serve.batch.annotations import annotation
from serve.batch.outputs.format import CONFIDENCES, File, Format, OutputOptions, json_bytes
from serve.batch.result import Result
from serve.model.areas import find_areas


def _annotation(result: Result, options: OutputOptions) -> list[File]:
    classes = result.legend.classes
    confidences = class_confidences(result) if options.confidence else None
    areas = find_areas(result.labels, classes, confidences=confidences, background=options.background)
    return [(f"{result.photo}.json", json_bytes(annotation(result.size, areas, classes)))]


def class_confidences(result: Result) -> list[float | None]:
    """Mean probability of each class over its pixels; None where it has none, or none that was asked for."""
    # Brings torch, which a process that writes results does without.
    from common.hrda.prediction.labelling import mean_confidences

    means = mean_confidences(result.labels, result.confidences, len(result.legend.classes))
    return [None if mean is None or math.isnan(mean) else mean for mean in means]


SUPERVISELY = Format("supervisely", "annotations in Supervisely's format", _annotation, needs=frozenset({CONFIDENCES}))
