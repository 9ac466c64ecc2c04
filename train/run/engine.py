"""A training run from settings and folders to checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.data.datasets import iterate
from common.hrda.training.ranks import ALONE, Ranks
from train.run.device import find_device
from train.run.folder import RunFolder, RunState
from train.run.initial_weights import Start, choose_start, on_this_machine, recorded_pretrained, require_start
from train.run.learner import Learner
from train.run.memory_errors import explained_measuring, explained_memory, learn_or_explain
from train.run.preparation import Domains, PreparedData, build_batches, prepare
from train.run.previews import PreviewWriter
from train.run.processes import part_of_batch
from train.run.progress import RunProgress, TimeLeft
from train.run.state import (
    Downloading,
    Finished,
    PhaseChanged,
    Preview,
    Progressed,
    RunResult,
    Said,
    Started,
    StepsSkipped,
    TrainingError,
    TrainingState,
    Validated,
)
from train.run.validation import Measurement, measure_both
from train.run.watch import FINITE, CollapseWatch
from train.run.writer import CheckpointWriter
from train.settings.training import TrainSettings

__all__ = ["Domains", "RunResult", "TrainingError", "run"]


def run(
    settings: TrainSettings,
    domains: Domains,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    state: TrainingState | None = None,
    stop: threading.Event | None = None,
    resume: bool = False,
    init_checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> RunResult:
    """Train, measure and save.

    Args:
        settings: all that decides the run besides its data.
        domains: where source, target and validation photos lie.
        out: folder of the run; checkpoints go to its `checkpoints`.
        classes: names of the classes to train, without the background; None: all that the labelled photos have.
        device: 'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'.
        state: is told of every change, in this thread.
        stop: once set, the run saves the last checkpoint after the current iteration and returns.
        resume: go on with the run in `out`.
        init_checkpoint: weights to start from.
        ranks: the processes that train together. All call this, each with its own device; the first one reads,
            measures, writes and tells.

    Raises:
        SettingsError: settings, classes or folders that cannot work; before any training.
        ProjectError: data that cannot be used; before any training.
        TrainingError: too many iterations were skipped in a row, memory has run out, the run cannot be saved, or it
            is stopped during a download.
    """
    state, stop = state or TrainingState(), stop or threading.Event()

    def say(text: str) -> None:
        state.apply(Said(text))

    def downloading(name: str, received: int, size: int | None) -> None:
        if stop.is_set():
            raise TrainingError(f"Stopped while {name} was downloaded. Nothing was trained.")
        state.apply(Downloading(name, received, size))

    state.apply(PhaseChanged("preparing"))
    place = find_device(device)
    if place.type == "cuda" and ranks.count > 1:
        # Libraries that are told no device would all work on the first one.
        torch.cuda.set_device(place)
    folder = RunFolder(out)

    def begin() -> tuple[RunState | None, Start, PreparedData]:
        part_of_batch(settings.batch_size, ranks, settings.compute.accumulate)
        require_start(settings, init_checkpoint)
        before = folder.claim(resume=resume, say=say)
        earlier = None if before is None else recorded_pretrained(folder.settings)
        start = choose_start(settings, init_checkpoint, say, downloading, resumed_from=earlier)
        data = prepare(settings, domains, classes, Path(settings.data.cache_dir or folder.cache), say)
        if before is not None:
            before.require_fit(data.classes, settings.iterations)
        return before, start, data

    before, start, data = ranks.from_first(begin)
    settings = replace(settings, pretrained=start.pretrained)
    start = on_this_machine(start, settings)
    with explained_memory(settings, place):
        learner = Learner(settings, data, place, start, say, ranks)
        return learn_all(learner, settings, data, folder, before, state, stop, ranks)


def learn_all(
    learner: Learner,
    settings: TrainSettings,
    data: PreparedData,
    folder: RunFolder,
    before: RunState | None,
    state: TrainingState,
    stop: threading.Event,
    ranks: Ranks = ALONE,
) -> RunResult:
    """Do the iterations that are left, measure and save.

    Args:
        learner: what learns; its weights are still those to start from.
        settings: of the run.
        data: what it trains and measures on.
        folder: gets the checkpoints.
        before: what the run goes on from.
        state: is told of every change.
        stop: once set, the last checkpoint is saved after the current iteration.
        ranks: the processes that train together, of which the first measures and writes.

    Raises:
        SettingsError: `before` does not fit the settings of the model.
        TrainingError: too many iterations were skipped in a row, memory has run out, or the run cannot be saved.
    """
    progress = RunProgress(settings.optimizer)
    if before is not None:
        before.restore(learner, progress)
        on_disk = folder.best_measurement()
        if on_disk is not None and on_disk.iteration > before.iteration:
            # It was written just before the run was interrupted, later than the state to go on from.
            progress.best = on_disk
    checkpoints = CheckpointWriter(folder, learner, progress, settings, data, state)
    if ranks.is_first:
        checkpoints.begin(resumed=before is not None)

    batches = build_batches(settings, data, part_of_batch(settings.batch_size, ranks), ranks.local_count)
    if settings.data.workers:
        # Before the workers are forked, so that they share what it holds.
        state.apply(Said("Reading the training photos."))
        batches.fill_cache()
    state.apply(Started(progress.done, settings.iterations))
    state.apply(PhaseChanged("training"))
    time_left = TimeLeft(settings.iterations, settings.validation.interval)
    previews = PreviewWriter(folder.previews, data, settings)
    collapse = CollapseWatch(data.classes, data.source_shares, settings.self_training)
    is_due = False
    for batch in iterate(batches, progress.done, settings.data.workers, learner.device):
        if ranks.any(stop.is_set()):
            break
        rate = learner.learning_rate(progress.done)
        scalars = learn_or_explain(learner, batch, progress.done, settings)
        done = progress.done = progress.done + 1
        is_last = done == settings.iterations
        is_reported = done % settings.log_interval == 0 or is_last
        is_measured = done % settings.validation.interval == 0 or is_last
        is_due = is_due or done % settings.checkpoint.interval == 0

        finite = scalars.pop(FINITE)
        progress.means.add(scalars, finite)
        try:
            progress.guard.add(done, finite, scalars)
            if is_reported or is_measured or is_due:
                progress.guard.read()
        except TrainingError as error:
            # What is on the disk was written when all was well; the weights of now have not led to anything since.
            raise TrainingError(f"{error} {checkpoints.what_is_left()}") from error
        if is_reported:
            report_skipped(progress, state)
            means = progress.means.take()
            state.apply(Progressed(done, {**means, "lr": rate}, time_left.report(done)))
            for warning in collapse.look(means):
                state.apply(Said(warning))
        if is_measured and ranks.is_first:
            state.apply(PhaseChanged("validating"))
            try:
                with time_left.measuring(), explained_measuring(settings, learner.device, done):
                    progress.latest = measure_both(
                        learner.student, learner.teacher, settings, data, learner.device, done, previews.keep
                    )
                    pictures = write_previews(previews, progress.latest, learner, state)
            except TrainingError:
                # What was learnt so far is good, and the remedy is to continue with another setting.
                checkpoints.save()
                raise
            state.apply(Validated(done, progress.latest.metrics, pictures))
            is_best = progress.best is None or progress.latest.score > progress.best.score
            if is_best and checkpoints.save_best(progress.latest):
                progress.best = progress.latest
            state.apply(PhaseChanged("training"))
        if is_due and not is_last and progress.guard.counts.in_a_row == 0:
            # While iterations are skipped it waits: the last good checkpoint must not give way to a doubtful one.
            if ranks.is_first:
                checkpoints.save()
            is_due = False
    state.apply(PhaseChanged("saving"))
    done, best = progress.done, progress.best
    stopped = done < settings.iterations
    if stopped:
        state.apply(Said(f"Stopped after iteration {done} of {settings.iterations}."))
    if ranks.is_first:
        checkpoints.finish()
    finished = Finished(
        stopped=stopped,
        iteration=done,
        best=str(folder.best if folder.best.exists() else folder.last),
        checkpoints=tuple(str(path) for path in (folder.best, folder.last) if path.exists()),
        metrics=dict(best.metrics) if best else {},
    )
    state.apply(finished)
    return RunResult.from_change(finished)


def report_skipped(progress: RunProgress, state: TrainingState) -> None:
    """Tell how many iterations were skipped, if more were since it was last told."""
    if progress.guard.take_news():
        state.apply(StepsSkipped(progress.done, progress.guard.counts.total))


def write_previews(
    previews: PreviewWriter, measurement: Measurement, learner: Learner, state: TrainingState
) -> tuple[Preview, ...]:
    """Write the pictures of a validation; without them, as on a full disk, the run goes on and says so."""
    try:
        return previews.write(measurement, learner.teacher, learner.device, learner.cuts())
    except OSError as error:
        state.apply(Said(f"The pictures of this validation could not be written: {error.strerror or error}."))
        return ()
