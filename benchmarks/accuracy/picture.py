"""A picture of photos, their truth, and what each arm finds, misses and invents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.accuracy.scores import CLASSES, Photo, Predicted
from train.run.errors import COLOURS, error_map
from train.run.previews import overlay

INCHES = 2.6
_OF_TRUTH = ((0, 0, 0), (255, 32, 32))
_OF_ERRORS = ((0, 0, 0), *COLOURS.values())


def draw(
    path: Path, photos: Sequence[Photo], arms: Mapping[str, Sequence[Predicted]], thresholds: Mapping[str, float]
) -> None:
    """Write a PNG: a row a photo, itself, its truth, and a column an arm with its errors in colour.

    Args:
        path: the file.
        photos: the rows.
        arms: by name, what each predicts of these photos.
        thresholds: of each arm, from which a crack is drawn.
    """
    figure = Figure(figsize=(INCHES * (len(arms) + 2), INCHES * 0.72 * len(photos)), layout="constrained")
    axes = figure.subplots(len(photos), len(arms) + 2, squeeze=False)
    for row, photo in enumerate(photos):
        truth = (photo.truth == 1).astype(np.uint8)
        shown = {"photo": photo.image, "truth": overlay(photo.image, truth, _OF_TRUTH, 0.75)}
        for arm, predictions in arms.items():
            found = (predictions[row].crack >= thresholds[arm]).astype(np.uint8)
            shown[arm] = overlay(photo.image, error_map(found, photo.truth, len(CLASSES)), _OF_ERRORS, 0.8)
        for axis, (name, image) in zip(axes[row], shown.items(), strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name)
    for name, colour in COLOURS.items():
        axes[-1][0].plot([], [], "s", color=[part / 255 for part in colour], label=name)
    figure.legend(*axes[-1][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS))
    figure.savefig(path, dpi=80)
