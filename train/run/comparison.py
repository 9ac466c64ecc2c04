"""What the target photos bring: the same run once more without them, and the difference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.hrda import SettingsError
from common.hrda.training.ranks import ALONE, Ranks
from train.run.card import renew_comparison
from train.run.engine import run
from train.run.folder import RunFolder, resumable
from train.run.initial_weights import recorded_pretrained
from train.run.request import RunRequest
from train.run.state import RunResult, Said, TrainingState
from train.settings.training import TrainSettings


def require_comparable(settings: TrainSettings, is_measured: bool) -> None:
    """Make sure that there is something to leave out, and something to measure on what that changes.

    Args:
        settings: of the run.
        is_measured: whether it has labelled photos to measure on.

    Raises:
        SettingsError: the run does not adapt, or has no validation.
    """
    if settings.mode != "uda":
        raise SettingsError(
            "Only a run in mode uda has target photos that can be left out for comparison. "
            f"Received: mode {settings.mode}."
        )
    if not is_measured:
        raise SettingsError(
            "A comparison is of scores on labelled photos. Name such photos as validation, or leave the comparison "
            "out. Received: no validation."
        )


def control_of(request: RunRequest) -> RunRequest:
    """The same run without target photos: mode control, with the same passes and the source as strongly augmented.

    Args:
        request: of a run that is done. The control lies in its folder, and goes on there where it was interrupted.
    """
    settings, folder = request.settings, RunFolder(request.out)
    cache = settings.data.cache_dir or str(folder.cache)
    settings = replace(
        settings,
        mode="control",
        # The very weights that the run came by, and its masks, which need not be drawn again.
        pretrained=recorded_pretrained(folder.settings),
        data=replace(settings.data, cache_dir=cache),
    )
    domains = replace(request.domains, target=None)
    is_begun = bool(RunFolder(folder.control).kept)
    return replace(request, settings=settings, domains=domains, out=folder.control, resume=is_begun)


def is_complete(out: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    found = resumable(out)
    return found is not None and found.iteration >= found.total_iterations


def run_compared(
    request: RunRequest,
    state: TrainingState,
    watched: Callable[[Path], TrainingState],
    *,
    stop: threading.Event,
    ranks: Ranks = ALONE,
) -> RunResult:
    """Train, unless that is done, then train without target photos, unless that is done.

    Args:
        request: of the run with target photos.
        state: of that run.
        watched: makes the state of the other run, from its folder.
        stop: ends whichever of them is running; the other is then left out.
        ranks: the processes that train together.

    Returns:
        The result of the run with target photos. The comparison lies in its folder and on its model card.

    Raises:
        SettingsError, ProjectError, TrainingError: as `train.run.engine.run`.
    """
    require_comparable(request.settings, request.domains.val is not None)
    if ranks.from_first(lambda: is_complete(request.out)):
        result = kept_result(request.out)
        state.apply(Said(f"{request.out} holds a finished run: only the one without target photos is trained."))
    else:
        result = run(request, state=state, stop=stop, ranks=ranks)
    if result.iteration < request.settings.iterations:
        state.apply(Said("The comparison is left out, as the run was stopped: --resume --compare goes on with both."))
        return result
    control = replace(ranks.from_first(lambda: control_of(request)), device=request.device)
    if not ranks.from_first(lambda: is_complete(control.out)):
        state.apply(Said(f"Now the same without target photos, in {control.out}."))
        run(control, state=watched(control.out), stop=stop, ranks=ranks)
    if ranks.is_first:
        renew_comparison(RunFolder(request.out).card)
    return result


def kept_result(out: Path) -> RunResult:
    """What a finished run has left in its folder."""
    folder = RunFolder(out)
    best = folder.best if folder.best.exists() else folder.last
    checkpoints = [path for path in (folder.best, folder.last) if path.exists()]
    return RunResult(checkpoints, best, {}, folder.latest or 0)
