"""What each preset of prediction costs and finds, on labelled photos, in one run: `python -m benchmarks.presets`.

    python -m benchmarks.presets --checkpoint best.pth --labelled DIR[:DATASET]
    python -m benchmarks.presets … --also half,beside,0.95 wide,beside,0.95     other layouts of the windows too

The presets take turns photo by photo, with one thread, and what counts is the processor's time. All are measured at
one threshold: the best of `exact` on these photos.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.scores import Predicted, best_threshold, measured
from common.data.project import open_project, prepare_labelled
from common.data.validation import ValidationPhoto, validation_photos
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.prediction.runtime import TorchNetwork
from common.hrda.settings import PRESETS

STRIDES = {"half": 0.5, "wide": 0.75, "whole": 1.0}
"""Distance of neighbouring windows as a share of their side."""
DETAILS = {"overlap": True, "beside": False}
BLENDINGS = ("uniform", "gaussian")
EXACT = "exact"


@dataclass
class Way:
    """One way to lay the windows, and what came of it."""

    predictor: Predictor
    seconds: float = 0.0
    """Of the processor."""
    predicted: list[Predicted] = field(default_factory=list)

    def predict(self, photo: ValidationPhoto, of_class: int) -> None:
        """Predict a photo and keep how probable the class is."""
        before = time.process_time()
        [probabilities] = self.predictor.probabilities([photo.image], np.float16)
        self.seconds += time.process_time() - before
        truth = np.where(photo.truth == IGNORE_LABEL, IGNORE_LABEL, photo.truth == of_class)
        self.predicted.append(Predicted(truth.astype(np.uint8), probabilities[of_class]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all presets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--labelled", metavar="DIR[:DATASET]", required=True)
    parser.add_argument("--class", default=None, dest="name", help="which counts (default: the first)")
    parser.add_argument("--photos", type=int, help="at most so many, at even distances (default: all)")
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="STRIDE,DETAIL,TRUST[,BLENDING]",
        help=f"other ways: {'|'.join(STRIDES)}, {'|'.join(DETAILS)}, trust_context from 0 to 1, {'|'.join(BLENDINGS)}",
    )
    given = parser.parse_args(arguments)
    bundle = load_checkpoint(given.checkpoint)
    of_class = 1 if given.name is None else bundle.classes.index(given.name)
    network = TorchNetwork(bundle.model.eval(), "cpu")
    layouts = {preset: InferenceSettings(preset=preset) for preset in PRESETS}
    layouts |= {text: layout(text, bundle.model.crop_size) for text in given.also}
    ways = {name: Way(Predictor(network, each, input_scale=bundle.input_scale)) for name, each in layouts.items()}
    with tempfile.TemporaryDirectory() as cache:
        photos = labelled_photos(given.labelled, bundle.classes, given.photos, Path(cache))
        for number, photo in enumerate(photos):
            if number == 0:
                # What is made at the first photo of all is no way's own.
                Way(ways[EXACT].predictor).predict(photo, of_class)
                ways[EXACT].predictor = Predictor(network, layouts[EXACT], input_scale=bundle.input_scale)
            for way in ways.values():
                way.predict(photo, of_class)
    print(table(ways))
    return 0


def labelled_photos(spec: str, classes: Sequence[str], most: int | None, cache: Path) -> Iterator[ValidationPhoto]:
    """Photos of a project with what is right in them, at most so many at even distances."""
    records = prepare_labelled(open_project(spec), classes[1:], cache, role="validation", progress=lambda _: None)
    return iter(validation_photos([(record.image_path, mask) for record, mask in records], most))


def layout(text: str, crop_size: tuple[int, int]) -> InferenceSettings:
    """The windows of a way's name, such as 'half,beside,0.95'."""
    stride, detail, trust, *blending = text.split(",")
    return InferenceSettings(
        stride=tuple(int(side * STRIDES[stride]) for side in crop_size),
        detail_overlap=DETAILS[detail],
        trust_context=float(trust),
        blending=blending[0] if blending else BLENDINGS[0],
    )


def table(ways: Mapping[str, Way]) -> str:
    """All ways against `exact`, as a table in Markdown."""
    threshold, exact = best_threshold(ways[EXACT].predicted), None
    lines = [
        f"{len(ways[EXACT].predicted)} photos, threshold {threshold:.2f}",
        "",
        "| windows | times as fast | IoU | F1 at 2 px | clDice | labels as exact | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, way in ways.items():
        scores = measured(way.predicted, threshold)
        values = [100 * scores.get(f"{measure}/crack", 0.0) for measure in ("iou", "f1_2px", "cldice")]
        exact = exact or (way, values)
        cells = [
            f"{value:.1f}" if way is exact[0] else f"{value:.1f} ({value - base:+.2f})"
            for value, base in zip(values, exact[1], strict=True)
        ]
        equal = [
            ((one.crack >= threshold) == (other.crack >= threshold)).mean()
            for one, other in zip(way.predicted, exact[0].predicted, strict=True)
        ]
        tally = way.predictor.tally
        lines.append(
            f"| {name} | {exact[0].seconds / way.seconds:.2f} | {' | '.join(cells)} | {100 * np.mean(equal):.2f}% "
            f"| {tally.share_left_out:.0%} of {tally.computed + tally.left_out} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
