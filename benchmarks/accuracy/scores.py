"""What an arm is worth: thresholds are chosen on one half of the photos, the figures are of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.pixels import IGNORE_LABEL
from common.metrics import THRESHOLDS, SegmentationMetrics, sweep
from common.metrics.photos import PhotoTally, Score, scores_of_sums, with_interval
from common.metrics.segmentation import COUNTED

CLASSES = ("background", "crack")
CRACK = CLASSES.index("crack")
COLUMNS = {
    "iou_at_half": "IoU at 0.5",
    "iou": "IoU at the chosen threshold",
    "threshold": "threshold",
    "precision": "precision",
    "recall": "recall",
    "f1_2px": "F1 at 2 px",
    "cldice": "clDice",
    "invented": "false positives",
}
"""Of the table, by what `Figures` calls them."""
ELSEWHERE = {
    "f1_2px": "F1 at 2 px",
    "invented": "false positives",
    "best_f1_2px": "F1 at 2 px, best threshold",
    "iou": "IoU",
    "threshold": "threshold",
}
"""Columns of another set, by what `Elsewhere` calls them."""


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
    invented: float = 0.0
    """Pixels that are called crack and lie farther than 2 px from any, in a megapixel."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)
    """N×C×10 of every photo at the chosen threshold, as of `PhotoCounts`."""

    @classmethod
    def at(cls, threshold: float, reporting: Sequence[Predicted]) -> Self:
        """Measure at a threshold and at 0.5."""
        half, chosen = measured(reporting, 0.5), measured(reporting, threshold)
        counts = by_threshold(reporting)[_number_of(threshold)]
        return cls(
            iou_at_half=100 * half["iou/crack"],
            threshold=threshold,
            iou=100 * chosen["iou/crack"],
            precision=100 * chosen["precision/crack"],
            recall=100 * chosen["recall/crack"],
            f1_2px=100 * chosen["f1_2px/crack"],
            cldice=100 * chosen.get("cldice/crack", 0.0),
            invented=invented(counts, sum(pixels_of(one.truth) for one in reporting)),
            counts=counts,
        )


@dataclass(frozen=True)
class Elsewhere:
    """Of one arm and seed on photos of another set, that nothing was learnt from or chosen on; in percent."""

    f1_2px: float
    """At the threshold that was chosen on the first set."""
    invented: float
    """As of `Figures`, at that threshold."""
    best_f1_2px: float
    """At the threshold at which it is highest on these photos."""
    iou: float
    threshold: float

    @classmethod
    def at(cls, threshold: float, counts: np.ndarray, pixels: int) -> Self:
        """Measure at a threshold.

        Args:
            threshold: that was chosen on the first set.
            counts: of every photo, as `by_threshold` gives them.
            pixels: of all photos.
        """
        chosen, scores = _number_of(threshold), _percent(counts.sum(axis=1))
        return cls(
            f1_2px=float(scores["f1_2px"][chosen]),
            invented=invented(counts[chosen], pixels),
            best_f1_2px=float(scores["f1_2px"].max()),
            iou=float(scores["iou"][chosen]),
            threshold=threshold,
        )


def best_threshold(photos: Iterable[Predicted]) -> float:
    """The threshold of the highest F1."""
    histogram = sum(
        sweep.histogram(sweep.levels(one.crack), np.uint8(one.truth == 1), np.uint8(one.truth == IGNORE_LABEL))
        for one in photos
    )
    return float(THRESHOLDS[sweep.best(sweep.counts(histogram))])


def measured(photos: Sequence[Predicted], threshold: float) -> dict[str, float]:
    """All scores where a crack is what is at least so probable."""
    metrics = SegmentationMetrics(CLASSES)
    for one in photos:
        metrics.update((one.crack >= threshold).astype(np.uint8), one.truth)
    return metrics.compute()


def by_threshold(photos: Iterable[Predicted]) -> np.ndarray:
    """T×N×C×10: the counts of N photos at each of `THRESHOLDS`, as of `PhotoCounts`."""
    tally = PhotoTally(CLASSES)
    for number, one in enumerate(photos):
        labels = (one.crack >= 0.5).astype(np.uint8)
        tally.update(str(number), number, labels, one.truth, (1 - one.crack, one.crack))
    return np.stack([tally.photos((0, chosen)).counts for chosen in range(len(THRESHOLDS))])


def invented(counts: np.ndarray, pixels: int) -> float:
    """Pixels that are called crack and lie farther than 2 px from any, in a megapixel.

    Args:
        counts: N×C×10, as of `PhotoCounts`.
        pixels: of all N photos.
    """
    of_crack = dict(zip(COUNTED, counts[:, CRACK].sum(axis=0), strict=True))
    return float(of_crack["judged_predicted"] - of_crack["near_predicted"]) / pixels * 1e6


def pixels_of(truth: np.ndarray) -> int:
    """How many pixels of a truth H×W count."""
    return int(np.count_nonzero(truth != IGNORE_LABEL))


def predict(checkpoint: Path, photos: Iterable[Photo], device: str) -> Iterable[Predicted]:
    """Predict photos as serving does, one by one."""
    bundle = load_checkpoint(checkpoint)
    windows = InferenceSettings.from_dict(bundle.settings["inference"])
    predictor = Predictor(bundle.model, windows, device, input_scale=bundle.input_scale)
    for photo in photos:
        [probabilities] = predictor.probabilities([photo.image])
        yield Predicted(photo.truth, probabilities[CRACK])


def table(results: Mapping[str, Sequence[Figures | Elsewhere]], columns: Mapping[str, str] = COLUMNS) -> str:
    """Mean ± standard deviation over the seeds of each arm, as a table in Markdown."""
    lines = ["| arm | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for arm, figures in results.items():
        cells = []
        for name in columns:
            digits = {"threshold": 2, "invented": 0}.get(name, 1)
            mean, deviation = spread([getattr(one, name) for one in figures])
            cells.append(f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(results: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Every arm against the control, seed by seed, and how much of the gap to the supervised one it closes."""
    lines = []
    for arm, figures in results.items():
        if arm in ("control", "supervised") or "control" not in results:
            continue
        control = results["control"]
        said = [f"{arm}: crack IoU"]
        for name, words in (("iou_at_half", "at 0.5"), ("iou", "at the chosen threshold")):
            gains = [getattr(a, name) - getattr(b, name) for a, b in zip(figures, control, strict=True)]
            mean, deviation = spread(gains)
            said.append(f"{mean:+.1f}{'' if deviation is None else f' ± {deviation:.1f}'} {words},")
        gain = _over_photos((figures, control), lambda ours, theirs: ours["iou"] - theirs["iou"])
        said[-1] = said[-1].removesuffix(",") + f"{_interval(gain)} to the control"
        if "supervised" in results:
            closed = _over_photos((figures, control, results["supervised"]), _share_of_gap)
            said.append(f"; {closed.value:.0f}%{_interval(closed, 0)} of the gap closed")
        lines.append(" ".join(said).replace(" ;", ";") + ".")
    return lines


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample; None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _share_of_gap(
    arm: dict[str, np.ndarray], control: dict[str, np.ndarray], bound: dict[str, np.ndarray]
) -> np.ndarray:
    gap = bound["iou"] - control["iou"]
    return 100 * (arm["iou"] - control["iou"]) / np.where(gap > 0, gap, np.nan)


def _over_photos(arms: Sequence[Sequence[Figures]], figure: Callable[..., np.ndarray]) -> Score:
    """A figure of several arms with its 95% interval over the photos, the pixels of all seeds together."""
    counts = np.stack([sum(one.counts for one in figures) for figures in arms], axis=1)
    return with_interval(counts, lambda sums: figure(*(_percent(sums[..., place, :, :]) for place in range(len(arms)))))


def _number_of(threshold: float) -> int:
    """The place in `THRESHOLDS` of the one that is nearest."""
    return int(np.abs(np.asarray(THRESHOLDS) - threshold).argmin())


def _percent(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of the crack in percent, of summed counts …×C×10."""
    return {name: 100 * values[..., CRACK] for name, values in scores_of_sums(sums).items()}


def _interval(score: Score, digits: int = 1) -> str:
    """The 95% interval in brackets, where there are photos enough for one."""
    return "" if score.low is None else f" ({score.low:.{digits}f} to {score.high:.{digits}f})"
