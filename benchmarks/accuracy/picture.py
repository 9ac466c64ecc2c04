"""A picture of photos, their truth, and what each arm predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.accuracy.scores import Photo, Predicted
from train.run.previews import overlay

INCHES = 2.6
COLOURS = ((0, 0, 0), (255, 32, 32))


def draw(
    path: Path, photos: Sequence[Photo], arms: Mapping[str, Sequence[Predicted]], thresholds: Mapping[str, float]
) -> None:
    """Write a PNG: a row a photo, itself, its truth, and a column an arm.

    Args:
        path: the file.
        photos: the rows.
        arms: by name, what each predicts of these photos.
        thresholds: of each arm, from which a crack is drawn.
    """
    figure = Figure(figsize=(INCHES * (len(arms) + 2), INCHES * 0.72 * len(photos)), layout="constrained")
    axes = figure.subplots(len(photos), len(arms) + 2, squeeze=False)
    for row, photo in enumerate(photos):
        masks = {"truth": photo.truth == 1}
        masks |= {arm: predictions[row].crack >= thresholds[arm] for arm, predictions in arms.items()}
        marked = {name: overlay(photo.image, mask.astype(np.uint8), COLOURS, 0.75) for name, mask in masks.items()}
        shown = {"photo": photo.image} | marked
        for axis, (name, image) in zip(axes[row], shown.items(), strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name)
    figure.savefig(path, dpi=80)
