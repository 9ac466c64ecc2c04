"""The model card: what a checkpoint was trained on, how good it is, what it may be used for, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.hrda.files import replacing
from common.hrda.metadata import WeightsOrigin
from train.run.errors import COLOURS
from train.run.folder import RunFolder
from train.run.preparation import PreparedData
from train.run.request import RunRequest
from train.run.scores import (
    Scores,
    below_table,
    compared,
    how_far,
    is_comparable,
    markdown_table,
    table,
    thresholds_of,
    verdict,
)
from train.run.state import RunResult

LOADING = """\
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, "hrda")  # a clone of this app's repository, with its requirements installed
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.prediction.labelling import LabelRule

bundle = load_checkpoint("checkpoints/{checkpoint}")  # tensors and plain data: nothing in it is executed
windows = InferenceSettings.from_dict(bundle.settings["inference"])
predictor = Predictor(bundle.model, windows, device="cpu", input_scale=bundle.input_scale)
thresholds = {{bundle.classes.index(name): value for name, value in bundle.best_thresholds.items()}}

photo = np.array(Image.open("photo.jpg").convert("RGB"))
[found] = predictor.segment([photo], LabelRule(thresholds))
Image.fromarray(found.labels).save("mask.png")  # 0 is the background, the others are places in bundle.classes
print({{name: int((found.labels == index).sum()) for index, name in enumerate(bundle.classes)}})
"""
_BEGIN, _END = "<!-- comparison -->", "<!-- end of comparison -->"
_USE = """\
It marks the classes above in photos that look like the target photos. The scores hold for such photos, and for others
nothing is known: measure on some of your own first. It gives no measure of width or depth, and no photo without a find
is proof that nothing is there. Have a person look at what decisions about safety follow from."""


@dataclass(frozen=True)
class CardData:
    """What the model was trained and measured on, for a person."""

    places: Mapping[str, str]
    """By role, such as 'source', where the photos lie."""
    counts: Mapping[str, int]
    """By role, how many photos."""
    classes: tuple[str, ...]
    """Without the background."""

    @classmethod
    def of(cls, request: RunRequest, data: PreparedData) -> Self:
        """The data of a run."""
        domains = request.domains
        is_supervised = request.settings.mode == "supervised"
        places = {
            "source": domains.target if is_supervised else domains.source,
            "target": domains.target,
            "labelled target": domains.labelled_target,
            "validation": domains.val,
        }
        counts = {
            "source": len(data.source),
            "target": len(data.target),
            "labelled target": len(data.labelled_target),
            "validation": len(data.validation),
        }
        used = {role: count for role, count in counts.items() if count and places[role]}
        return cls({role: str(places[role]) for role in used}, used, data.classes[1:])


def model_card(
    request: RunRequest, data: CardData, result: RunResult, scores: Scores | None, origin: WeightsOrigin | None
) -> str:
    """The card in Markdown.

    Args:
        request: of the run, with what it started from.
        data: what it trained and measured on.
        result: what it left behind.
        scores: of the best measurement; None if nothing was measured.
        origin: of the weights that its encoder started from, as the checkpoint says it.
    """
    settings, folder = request.settings, RunFolder(request.out)
    parts = [
        f"# HRDA, {settings.model.encoder}: {', '.join(data.classes)}",
        f"Semantic segmentation, trained by Train HRDA in mode {settings.mode}: "
        f"{how_far(result.iteration, settings.iterations)}.",
        "## Scores",
        *_scores(scores),
        comparison(scores, Scores.read(RunFolder(folder.control).scores)),
        *_errors(folder, scores),
        "## Data",
        "| photos of | number | where |\n| --- | --- | --- |\n"
        + "\n".join(f"| {role} | {count} | {data.places[role]} |" for role, count in data.counts.items()),
        "## Settings",
        f"Crops of {settings.model.crop_size[0]} × {settings.model.crop_size[1]}, batch {settings.batch_size}, "
        f"learning rate {settings.optimizer.lr:g}, seed {settings.seed}. All of them are in the checkpoint, in the "
        "run's `settings.yaml` and in the experiment's `config.yaml`.",
        "## Licence of the weights",
        licence_of(origin),
        "## Intended use",
        _USE,
        "## Use it outside Supervisely",
        "```python\n" + LOADING.format(checkpoint=result.best.name) + "```",
        "## Export",
        f"In the clone, `python -m serve export --model checkpoints/{result.best.name} --output model.onnx` writes the "
        f"network as ONNX, for ONNX Runtime and TensorRT. {_served(result.best, scores)}".strip(),
    ]
    return "\n\n".join(parts) + "\n"


def licence_of(origin: WeightsOrigin | None) -> str:
    """What the weights that a model started from ask of whoever uses it."""
    if origin is None:
        return "The checkpoint does not say what its encoder started from."
    return f"Its encoder started from: {origin.source}. Licence: {origin.licence}. That holds for this model too."


def comparison(scores: Scores | None, control: Scores | None) -> str:
    """The part of the card with what the target photos brought; empty but for its marks before that is known."""
    content = [_BEGIN]
    if scores is not None and control is not None and is_comparable(scores, control):
        content += [verdict(scores, control), markdown_table(compared(scores, control))]
    return "\n\n".join([*content, _END])


def renew_comparison(card: Path) -> None:
    """Put into the card of a run what the comparison with its control says by now.

    Raises:
        WriteError: it cannot be written.
    """
    folder = RunFolder(card.parent)
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        part = comparison(Scores.read(folder.scores), Scores.read(RunFolder(folder.control).scores))
        with replacing(card) as file:
            file.write(f"{before}{part}{after}".encode())


def _scores(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["It was not measured."]
    return [
        "On the validation photos, in percent, at the threshold that is best for all of them together.",
        markdown_table(table(scores)),
        below_table(scores),
    ]


def _errors(folder: RunFolder, scores: Scores | None) -> list[str]:
    if scores is None:
        return []
    names = [scores.photos.names[place] for place in scores.photos.worst(len(scores.photos.names))]
    pictures = [
        f"{names[number - 1]}:\n\n![{names[number - 1]}](errors/{path.name})"
        for number in range(1, len(names) + 1)
        if (path := folder.errors / f"{number}_errors.jpg").is_file()
    ]
    if not pictures:
        return []
    colours = dict(zip(COLOURS, ("green", "orange", "blue"), strict=True))
    legend = ", ".join(f"{what} in {colour}" for what, colour in colours.items())
    return ["## The photos with the most errors", f"{legend.capitalize()}; within 2 px counts as found.", *pictures]


def _served(best: Path, scores: Scores | None) -> str:
    if scores is None:
        return ""
    return (
        f"Serve HRDA takes `{best.name}` as it is and uses the best thresholds; said in settings they are "
        f"`thresholds: {json.dumps(thresholds_of(scores))}`."
    )
