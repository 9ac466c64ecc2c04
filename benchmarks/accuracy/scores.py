"""What an arm is worth: thresholds are chosen on one half of the photos, the figures are of the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.pixels import IGNORE_LABEL
from common.metrics import SegmentationMetrics, sweep

CLASSES = ("background", "crack")


@dataclass(frozen=True)
class Photo:
    """A labelled photo."""

    image: np.ndarray
    """H×W×3 uint8 RGB."""
    truth: np.ndarray
    """H×W uint8: 1 crack, 0 none, 255 where nothing counts."""


@dataclass(frozen=True)
class Predicted:
    """What is right in a photo, and how probable a crack is at each of its pixels."""

    truth: np.ndarray
    """H×W uint8: 1 crack, 0 none, 255 where nothing counts."""
    crack: np.ndarray
    """H×W float32."""


@dataclass(frozen=True)
class Figures:
    """Of one arm and seed, in percent but for the threshold. Shapes are compared at the chosen threshold."""

    iou_at_half: float
    threshold: float
    iou: float
    precision: float
    recall: float
    f1_2px: float
    cldice: float

    @classmethod
    def of(cls, choosing: Iterable[Predicted], reporting: Sequence[Predicted]) -> Self:
        """Choose the threshold of the highest F1 on one half, and measure on the other at it and at 0.5."""
        histogram = sum(
            sweep.histogram(sweep.levels(one.crack), np.uint8(one.truth == 1), np.uint8(one.truth == IGNORE_LABEL))
            for one in choosing
        )
        threshold = float(sweep.THRESHOLDS[sweep.best(sweep.counts(histogram))])
        half, chosen = measured(reporting, 0.5), measured(reporting, threshold)
        return cls(
            iou_at_half=100 * half["iou/crack"],
            threshold=threshold,
            iou=100 * chosen["iou/crack"],
            precision=100 * chosen["precision/crack"],
            recall=100 * chosen["recall/crack"],
            f1_2px=100 * chosen["f1_2px/crack"],
            cldice=100 * chosen.get("cldice/crack", 0.0),
        )


def measured(photos: Sequence[Predicted], threshold: float) -> dict[str, float]:
    """All scores where a crack is what is at least so probable."""
    metrics = SegmentationMetrics(CLASSES)
    for one in photos:
        metrics.update((one.crack >= threshold).astype(np.uint8), one.truth)
    return metrics.compute()


def predict(checkpoint: Path, photos: Sequence[Photo], device: str) -> list[Predicted]:
    """Predict photos as serving does."""
    bundle = load_checkpoint(checkpoint)
    windows = InferenceSettings.from_dict(bundle.settings["inference"])
    predictor = Predictor(bundle.model, windows, device, input_scale=bundle.input_scale)
    maps = (predictor.probabilities([photo.image])[0] for photo in photos)
    return [Predicted(photo.truth, probabilities[1]) for photo, probabilities in zip(photos, maps, strict=True)]


def table(results: Mapping[str, Sequence[Figures]]) -> str:
    """Mean ± standard deviation over the seeds of each arm, as a table in Markdown."""
    names = {
        "iou_at_half": "IoU at 0.5",
        "iou": "IoU at the chosen threshold",
        "threshold": "threshold",
        "precision": "precision",
        "recall": "recall",
        "f1_2px": "F1 at 2 px",
        "cldice": "clDice",
    }
    lines = ["| arm | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, figures in results.items():
        cells = []
        for name in names:
            digits = 2 if name == "threshold" else 1
            mean, deviation = spread([getattr(one, name) for one in figures])
            cells.append(f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(results: Mapping[str, Sequence[Figures]]) -> list[str]:
    """HRDA against the control, seed by seed, and against learning from labelled real photos."""
    lines = []
    for name, words in (("iou", "at the chosen threshold"), ("iou_at_half", "at 0.5")):
        of = {arm: [getattr(one, name) for one in figures] for arm, figures in results.items()}
        if {"HRDA", "control"} <= of.keys():
            mean, deviation = spread([ours - theirs for ours, theirs in zip(of["HRDA"], of["control"], strict=True)])
            within = "" if deviation is None else f" ± {deviation:.1f}"
            lines.append(f"Crack IoU {words}: HRDA {mean:+.1f}{within} to the control, seed by seed.")
        if {"HRDA", "supervised"} <= of.keys():
            share = np.mean(of["HRDA"]) / max(np.mean(of["supervised"]), 1e-9)
            lines.append(f"Crack IoU {words}: HRDA reaches {share:.0%} of the supervised one.")
    return lines


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample; None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
