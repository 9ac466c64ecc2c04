"""What the terminal ends with: how far the run came, how good it is, and what to do next."""

from __future__ import annotations

import json
import shlex

from train.run.folder import RunFolder
from train.run.request import RunRequest
from train.run.scores import (
    Scores,
    below_table,
    compared,
    how_far,
    is_comparable,
    table,
    text_table,
    thresholds_of,
    verdict,
)
from train.run.state import RunResult


def summary(request: RunRequest, result: RunResult) -> str:
    """The last lines of a run.

    Args:
        request: of the run.
        result: what it left behind.
    """
    folder, settings = RunFolder(request.out), request.settings
    scores, control = Scores.read(folder.scores), Scores.read(RunFolder(folder.control).scores)
    ended = how_far(result.iteration, settings.iterations)
    is_stopped = result.iteration < settings.iterations
    lines = [f"{ended[0].upper()}{ended[1:]}." + " The same command with --resume goes on from there." * is_stopped]
    if scores is not None:
        lines += ["", "In %, at the best threshold:", text_table(table(scores)), below_table(scores)]
        if control is not None and is_comparable(scores, control):
            lines += ["", text_table(compared(scores, control)), verdict(scores, control)]
    lines += ["", f"Best checkpoint: {result.best}"]
    if folder.errors.is_dir():
        lines.append(f"The photos with the most errors: {folder.errors}")
    if folder.card.is_file():
        lines.append(f"Model card: {folder.card}")
    lines.append(f"Curves and pictures: tensorboard --logdir {shlex.quote(str(folder.out / 'tensorboard'))}")
    lines.append(f"Next: {next_command(result, scores)}")
    if settings.mode == "uda" and control is None and not is_stopped:
        lines.append("What the target photos brought: the same command with --compare.")
    return "\n".join(lines)


def next_command(result: RunResult, scores: Scores | None) -> str:
    """How photos are predicted with the best checkpoint."""
    words = ["python", "-m", "serve", "predict", "PHOTOS", "--model", str(result.best), "--draw"]
    if scores is not None and scores.photos.present:
        words += ["--settings", f"thresholds={json.dumps(thresholds_of(scores), ensure_ascii=False)}"]
    return shlex.join(words)
