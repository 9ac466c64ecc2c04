"""A training run from settings and folders to checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.data.datasets import iterate
from common.hrda import CheckpointBundle
from train.collapse import CollapseWatch
from train.device import find_device
from train.initialisation import choose_start, recorded_pretrained, require_start
from train.learner import Learner
from train.memory_errors import explained_measuring, explained_memory, learn_or_explain
from train.preparation import Domains, PreparedData, build_batches, prepare
from train.previews import PreviewWriter
from train.progress import RunningMeans, TimeLeft
from train.result import RunResult, TrainingError
from train.run_folder import RunFolder, RunState
from train.settings import TrainSettings
from train.state import (
    CheckpointWritten,
    Downloading,
    Finished,
    PhaseChanged,
    Preview,
    Progressed,
    Said,
    Started,
    TrainingState,
    Validated,
)
from train.validation import Measurement, measure_both

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

    Raises:
        SettingsError: settings, classes or folders that cannot work; before any training.
        ProjectError: data that cannot be used; before any training.
        TrainingError: the loss is no longer finite, memory has run out, or it is stopped during a download.
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
    require_start(settings, init_checkpoint)
    folder = RunFolder(out)
    before = folder.claim(resume=resume)
    earlier = None if before is None else recorded_pretrained(folder.settings)
    start = choose_start(settings, init_checkpoint, say, downloading, resumed_from=earlier)
    settings = replace(settings, pretrained=start.pretrained)
    data = prepare(settings, domains, classes, Path(settings.data.cache_dir or folder.cache), say)
    if before is not None:
        before.require_fit(data.classes, settings.iterations)
    with explained_memory(settings, place):
        learner = Learner(settings, data, place, start, say)
        return learn_all(learner, settings, data, folder, before, state, stop)


def learn_all(
    learner: Learner,
    settings: TrainSettings,
    data: PreparedData,
    folder: RunFolder,
    before: RunState | None,
    state: TrainingState,
    stop: threading.Event,
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

    Raises:
        SettingsError: `before` does not fit the settings of the model.
        TrainingError: the loss is no longer finite, or memory has run out.
    """
    done, best, latest = 0, None, None
    if before is not None:
        before.restore(learner.student, learner.teacher, learner.optimizer)
        done, best, latest = before.iteration, before.best, before.latest
    folder.write_settings(settings)

    def checkpoint(measurement: Measurement | None) -> CheckpointBundle:
        return CheckpointBundle(
            student=learner.student,
            teacher=learner.teacher,
            serve_teacher=measurement is not None and measurement.teacher_is_better,
            classes=data.classes,
            palette=data.palette,
            settings=plain_settings(settings, student_classes=len(data.classes)),
            metrics=dict(measurement.metrics) if measurement else {},
            iteration=done,
        )

    def save_last() -> None:
        parts = learner.student, learner.teacher, learner.optimizer
        folder.save_last(checkpoint(latest), RunState.capture(done, data.classes, best, latest, *parts), settings)
        state.apply(CheckpointWritten(str(folder.last), done, is_best=False))

    def validate() -> tuple[Measurement, tuple[Preview, ...]]:
        measurement = measure_both(
            learner.student, learner.teacher, settings, data, learner.device, done, previews.keep
        )
        return measurement, previews.write(measurement, learner.teacher, learner.device, learner.cuts())

    batches = build_batches(settings, data)
    if settings.data.workers:
        # Before the workers are forked, so that they share what it holds.
        state.apply(Said("Reading the training photos."))
        batches.fill_cache()
    state.apply(Started(done, settings.iterations))
    state.apply(PhaseChanged("training"))
    losses, time_left = RunningMeans(), TimeLeft(settings.iterations, settings.validation.interval)
    previews = PreviewWriter(folder.previews, data, settings)
    collapse = CollapseWatch(data.classes, data.source_shares, settings.self_training)
    for batch in iterate(batches, done, settings.data.workers, learner.device):
        if stop.is_set():
            break
        rate = learner.learning_rate(done)
        losses.add(learn_or_explain(learner, batch, done, settings))
        done += 1

        is_last = done == settings.iterations
        if done % settings.log_interval == 0 or is_last:
            means = losses.take(done)
            state.apply(Progressed(done, {**means, "lr": rate}, time_left.report(done)))
            for warning in collapse.look(means):
                state.apply(Said(warning))
        if done % settings.validation.interval == 0 or is_last:
            state.apply(PhaseChanged("validating"))
            try:
                with time_left.measuring(), explained_measuring(settings, learner.device, done):
                    latest, pictures = validate()
            except TrainingError:
                # What was learnt so far is good, and the remedy is to continue with another setting.
                save_last()
                raise
            state.apply(Validated(done, latest.metrics, pictures))
            if best is None or latest.score > best.score:
                best = latest
                folder.save_best(checkpoint(best))
                state.apply(CheckpointWritten(str(folder.best), done, is_best=True))
            state.apply(PhaseChanged("training"))
        if done % settings.checkpoint.interval == 0 and not is_last:
            save_last()
    state.apply(PhaseChanged("saving"))
    stopped = done < settings.iterations
    if stopped:
        state.apply(Said(f"Stopped after iteration {done} of {settings.iterations}."))
    save_last()
    finished = Finished(
        stopped=stopped,
        iteration=done,
        best=str(folder.best if folder.best.exists() else folder.last),
        checkpoints=tuple(str(path) for path in (folder.best, folder.last) if path.exists()),
        metrics=dict(best.metrics) if best else {},
    )
    state.apply(finished)
    return RunResult.from_change(finished)


def plain_settings(settings: TrainSettings, student_classes: int) -> dict[str, Any]:
    """The settings as a checkpoint holds them: complete enough to rebuild the network and to predict."""
    plain = settings.to_dict()
    plain["model"] = replace(settings.model, num_classes=student_classes).to_dict()
    if settings.data.scale.edges is not None:
        plain["input"] = settings.data.scale.to_dict()
    return plain
