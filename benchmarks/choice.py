"""How well measures without labels choose between the networks of a run: `python -m benchmarks.choice --run DIR`.

Student and teacher of all kept states (`checkpoint.keep`) are measured on labelled photos and by each measure on
unlabelled ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr

from common.data.images import read_image
from common.data.project import open_project, prepare_labelled
from common.data.validation import ValidationPhoto, validation_photos
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.pixels import resize_image
from common.hrda.prediction.labelling import LabelRule
from common.metrics import SegmentationMetrics
from common.metrics.unlabelled import MIXED_SHARE, UnlabelledMetrics, certainty, density, expected_threshold, mixture
from train.run.folder import RunFolder
from train.run.previews import evenly

_DENSITY_PIXELS = 4000


@dataclass(frozen=True)
class Row:
    """A network of the run."""

    best_iou: float
    """Mean over the classes, at the thresholds that labels say."""
    iou: float
    """At the thresholds that are chosen without labels."""
    certainty: float
    density: float
    mixture: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, with as many states as it kept")
    parser.add_argument("--target", metavar="DIR[:DATASET]", help="unlabelled photos (default: the run's target)")
    parser.add_argument("--labelled", metavar="DIR[:DATASET]", help="labelled photos (default: the run's validation)")
    parser.add_argument("--photos", type=int, default=20, help="photos of each kind, at even distances (default: 20)")
    parser.add_argument("--every", type=int, default=1, help="take each so-manieth state (default: 1)")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.run)
    domains = folder.domains()
    target = open_project(given.target or domains["target"])
    images = [read_image(target[number].image_path) for number in evenly(len(target), given.photos)]
    labelled = open_project(given.labelled or domains["val"])
    rows: dict[str, Row] = {}
    print(f"| network | {' | '.join(field.name for field in fields(Row))} |")
    print("|---" * (len(fields(Row)) + 1) + "|")
    with tempfile.TemporaryDirectory() as cache:
        for done, path in sorted(folder.kept.items())[:: given.every]:
            bundle = load_checkpoint(path)
            pairs = prepare_labelled(labelled, classes=bundle.classes[1:], cache_dir=cache, role="validation")
            files = [(record.image_path, mask) for record, mask in pairs]
            windows = InferenceSettings.from_dict(bundle.settings["inference"])
            for name, model in (("student", bundle.student), ("teacher", bundle.teacher)):
                photos = list(validation_photos(files, given.photos))
                row = measure(Predictor(model, windows, input_scale=bundle.input_scale), bundle.classes, photos, images)
                rows[f"{done} {name}"] = row
                values = " | ".join(f"{value:.4f}" for value in asdict(row).values())
                print(f"| {done} {name} | {values} |", flush=True)
    for line in verdict(rows):
        print(line)
    return 0


def measure(
    predictor: Predictor, classes: Sequence[str], labelled: Sequence[ValidationPhoto], images: Sequence[np.ndarray]
) -> Row:
    """A network on photos with labels and without."""
    unlabelled = UnlabelledMetrics(classes)
    for image in images:
        unlabelled.update(predictor.predict_with_probabilities(image)[1])
    pixels = unlabelled.pixels
    rule = LabelRule({index: expected_threshold(pixels[:, index]) for index in range(1, len(classes))})
    metrics = SegmentationMetrics(classes)
    for photo in labelled:
        [found] = predictor.segment([photo.image], rule)
        [probabilities] = predictor.probabilities([photo.image])
        metrics.update(found.labels, photo.truth, probabilities)
    scores = metrics.compute()
    best, iou = (np.mean([scores.get(f"{name}/{one}", 0.0) for one in classes[1:]]) for name in ("best_iou", "iou"))
    thinned = pixels[:: max(len(pixels) // _DENSITY_PIXELS, 1)]
    return Row(float(best), float(iou), certainty(pixels), density(thinned), mixed(predictor, images, rule))


def mixed(predictor: Predictor, images: Sequence[np.ndarray], rule: LabelRule) -> float:
    """Mean agreement over mixtures of neighbouring photos, where they agree and where they differ."""
    labels = [segmentation.labels for segmentation in predictor.segment(images, rule)]
    found, total = np.zeros(2), np.zeros(2)
    for (first, own), (second, other) in pairwise(zip(images, labels, strict=True)):
        size = first.shape[:2]
        together = cv2.addWeighted(first, MIXED_SHARE, resize_image(second, size), 1 - MIXED_SHARE, 0)
        [answer] = predictor.segment([together], rule)
        other = cv2.resize(other, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        agree, pixels = mixture(own, other, answer.labels)
        found, total = found + agree, total + pixels
    return float((found / np.maximum(total, 1)).mean())


def verdict(rows: dict[str, Row]) -> list[str]:
    """For each measure its agreement with the labels, and what its choice is worth."""
    truth = np.array([row.best_iou for row in rows.values()])
    lines = [f"Best network: IoU {100 * truth.max():.1f}."]
    for name in ("certainty", "density", "mixture"):
        values = np.array([getattr(row, name) for row in rows.values()])
        chosen = list(rows)[int(values.argmax())]
        correlation = spearmanr(values, truth).statistic
        row = rows[chosen]
        lines.append(
            f"{name}: rank correlation {correlation:.2f}; it chooses {chosen}, IoU {100 * row.best_iou:.1f}, at the "
            f"threshold without labels {100 * row.iou:.1f}."
        )
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
