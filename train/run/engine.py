"""A training run from settings and folders to checkpoints."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from common.data.datasets import Batch, TrainingBatches
from common.data.images import ImageError
from common.data.reading import Patience
from common.hrda.training.ranks import ALONE, Ranks
from train.run.device import find_device
from train.run.domains import require_domains
from train.run.feed import Feed, what_to_do
from train.run.folder import RunFolder, RunState
from train.run.initial_weights import Start, choose_start, on_this_machine, recorded_pretrained, require_start
from train.run.learner import Learner
from train.run.memory_errors import explained_measuring, explained_memory, learn_or_explain
from train.run.preparation import PreparedData, build_batches, prepare
from train.run.previews import PreviewWriter
from train.run.processes import EndedElsewhere, part_of_batch, require_learnable
from train.run.progress import RunProgress, TimeLeft
from train.run.report import report
from train.run.request import RunRequest
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
    Timed,
    TrainingError,
    TrainingState,
    Validated,
)
from train.run.unlabelled import CHOSEN_WITHOUT_LABELS, measure_unlabelled
from train.run.validation import Measurement, measure_both
from train.run.watch import FINITE, CollapseWatch
from train.run.writer import CheckpointWriter
from train.settings.training import TrainSettings

ITERATIONS_TIMED = 10
"""After so many iterations a run says how long the rest takes."""


def run(
    request: RunRequest,
    *,
    state: TrainingState | None = None,
    stop: threading.Event | None = None,
    ranks: Ranks = ALONE,
) -> RunResult:
    """Train, measure and save.

    Args:
        request: what is asked for.
        state: is told of every change, in this thread.
        stop: once set, the run saves the last checkpoint after the current iteration and returns.
        ranks: the processes that train together. All call this, each with its own device; the first one reads,
            measures, writes and tells.

    Raises:
        SettingsError: settings, classes or folders that cannot work; before any training.
        ProjectError: data that cannot be used; before any training.
        TrainingError: too many iterations were skipped in a row, memory has run out, the run cannot be saved, or it
            is stopped during a download.
    """
    state, stop = state or TrainingState(), stop or threading.Event()
    state.apply(PhaseChanged("preparing"))
    device = find_device(request.device)
    if device.type == "cuda" and ranks.count > 1:
        # Libraries that are told no device would all work on the first one.
        torch.cuda.set_device(device)
    folder = RunFolder(request.out)
    with ExitStack() as held:
        before, start, data = ranks.from_first(lambda: begin(request, folder, state, stop, ranks, held))
        settings = replace(request.settings, pretrained=start.pretrained)
        start = on_this_machine(start, settings)
        with explained_memory(settings, device):
            learner = Learner(settings, data, device, start, lambda text: state.apply(Said(text)), ranks)
            result = TrainingLoop(learner, settings, data, folder, state).run(before, stop)
            # What it holds of the device is for the model that has been saved.
            del learner
        if ranks.is_first:
            report(replace(request, settings=settings), data, result, device, lambda text: state.apply(Said(text)))
        return result


def begin(
    request: RunRequest,
    folder: RunFolder,
    state: TrainingState,
    stop: threading.Event,
    ranks: Ranks,
    held: ExitStack,
) -> tuple[RunState | None, Start, PreparedData]:
    """Claim the folder, choose the weights to start from and prepare the photos.

    Args:
        request: what is asked for.
        folder: of the run.
        state: is told of downloads and of what is chosen.
        stop: ends a download or the reading of photos once it is set.
        ranks: the processes that train together, of which one calls this.
        held: keeps the folder for this run.

    Returns:
        What the run goes on from, if it is resumed, what it starts from, and what it trains and measures on.

    Raises:
        SettingsError, ProjectError: as `run`.
        TrainingError: it was stopped meanwhile.
    """
    settings, init_checkpoint = request.settings, request.init_checkpoint

    def say(text: str) -> None:
        if stop.is_set():
            raise TrainingError("Stopped while the photos were prepared. Nothing was trained.")
        state.apply(Said(text))

    def downloading(name: str, received: int, size: int | None) -> None:
        if stop.is_set():
            raise TrainingError(f"Stopped while {name} was downloaded. Nothing was trained.")
        state.apply(Downloading(name, received, size))

    require_learnable(settings, ranks)
    require_start(settings, init_checkpoint)
    # Before published weights are fetched, which without internet takes minutes to fail.
    require_domains(settings, request.domains)
    before = held.enter_context(folder.claimed(resume=request.resume, say=say))
    if before is not None:
        before.require_settings(settings)
        if init_checkpoint is not None:
            say(
                f"The run goes on with its own weights of iteration {before.iteration}, not those of {init_checkpoint}."
            )
    earlier = None if before is None else recorded_pretrained(folder.settings)
    start = choose_start(settings, init_checkpoint, say, downloading, resumed_from=earlier)
    cache = Path(settings.data.cache_dir or folder.cache)
    data = prepare(settings, request.domains, request.classes, cache, say, Patience(say, stop.wait))
    if before is not None:
        before.require_classes(data.classes)
    return before, start, data


class TrainingLoop:
    """The iterations of a run, and what is told, measured and saved between them.

    Args:
        learner: what learns; its weights are still those to start from. Of the processes that train together, each
            has one, and the first measures and writes.
        settings: of the run.
        data: what it trains and measures on.
        folder: gets checkpoints and pictures.
        state: is told of every change.
    """

    def __init__(
        self, learner: Learner, settings: TrainSettings, data: PreparedData, folder: RunFolder, state: TrainingState
    ) -> None:
        self._learner, self._settings, self._data = learner, settings, data
        self._folder, self._state, self._ranks = folder, state, learner.ranks
        self._progress = RunProgress(settings.optimizer)
        self._checkpoints = CheckpointWriter(folder, learner, self._progress, settings, data, state)
        self._previews = PreviewWriter(folder.previews, data, settings)
        self._collapse = CollapseWatch(data.classes, data.source_shares, settings.self_training)
        self._time_left = TimeLeft(settings.iterations, settings.validation.interval)
        self._is_save_due = False
        self._done_before = 0

    def run(self, before: RunState | None, stop: threading.Event) -> RunResult:
        """Do the iterations that are left, measure and save.

        Args:
            before: what the run goes on from.
            stop: once set, the last checkpoint is saved after the current iteration.

        Raises:
            SettingsError: `before` does not fit the settings of the model.
            TrainingError: too many iterations were skipped in a row, memory has run out, the run cannot be saved, or
                a photo or mask cannot be read any more.
            EndedElsewhere: in another process than the first, that the first raises one.
        """
        patience = Patience(self._before_waiting, stop.wait)
        batches = self._prepare(before, patience, stop)
        feed = Feed(batches, self._settings.data, self._ranks, stop, self._say, patience)
        for batch in feed.take(self._progress.done, self._learner.device):
            self._step(batch)
            if self._is_due(self._settings.log_interval):
                self._report()
            elif self._is_timed():
                self._tell_pace()
            if self._is_due(self._settings.validation.interval) and self._ranks.is_first:
                self._measure(patience)
            if self._is_save_due:
                self._save()
        feed.tell_lost()
        feed.sum_up()
        if feed.failure is not None:
            raise self._ended_by(feed.failure)
        return self._finish()

    def _prepare(self, before: RunState | None, patience: Patience, stop: threading.Event) -> TrainingBatches:
        """Go on from `before`, make sure that the run can be saved, and make its batches."""
        settings, progress = self._settings, self._progress
        if before is not None:
            before.restore(self._learner, progress)
            on_disk = self._folder.best_measurement()
            if on_disk is not None and on_disk.iteration > before.iteration:
                # It was written just before the run was interrupted, later than the state to go on from.
                progress.best = on_disk
        if self._ranks.is_first:
            self._checkpoints.begin(resumed=before is not None)
        part = part_of_batch(settings.batch_size, self._ranks)
        batches = build_batches(settings, self._data, part, self._ranks.local_count)
        if settings.data.workers:
            # Before the workers are forked, so that they share what it holds.
            self._say("Reading the training photos.")
            try:
                batches.fill_cache(stop=stop.is_set, patience=patience)
            except ImageError as error:
                if not stop.is_set():
                    raise self._ended_by(what_to_do(error, settings.data)) from error
        self._done_before = progress.done
        self._state.apply(Started(progress.done, settings.iterations))
        self._state.apply(PhaseChanged("training"))
        return batches

    def _step(self, batch: Batch) -> None:
        """Do an iteration and take note of it."""
        settings, progress = self._settings, self._progress
        scalars = learn_or_explain(self._learner, batch, progress.done, settings)
        progress.done += 1
        self._is_save_due = self._is_save_due or progress.done % settings.checkpoint.interval == 0
        finite = scalars.pop(FINITE)
        progress.means.add(scalars, finite)
        try:
            progress.guard.add(progress.done, finite, scalars)
            is_told = self._is_due(settings.log_interval) or self._is_due(settings.validation.interval)
            # It waits for the device, so that what is timed is done and not only ordered.
            if is_told or self._is_save_due or self._is_timed():
                progress.guard.read()
            if progress.done == settings.iterations:
                progress.guard.require_any()
        except TrainingError as error:
            # What is on the disk was written when all was well; the weights of now have not led to anything since.
            raise TrainingError(f"{error} {self._checkpoints.what_is_left()}") from error

    def _is_due(self, interval: int) -> bool:
        """Whether it is the turn of what comes every `interval` iterations and at the end."""
        done = self._progress.done
        return done % interval == 0 or done == self._settings.iterations

    def _is_timed(self) -> bool:
        """Whether the timing of this process's first iterations begins, after one to warm up, or ends here."""
        return self._progress.done - self._done_before in (1, ITERATIONS_TIMED)

    def _tell_pace(self) -> None:
        """Tell, as soon as something can be said, how long the rest takes: the first report may be hours away."""
        left = self._time_left.report(self._progress.done)
        if left is not None:
            self._state.apply(Timed(self._progress.done, left, self._time_left.seconds_per_iteration))

    def _report(self) -> None:
        """Tell what was learnt since the last report."""
        progress, state = self._progress, self._state
        if progress.guard.take_news():
            state.apply(StepsSkipped(progress.done, progress.guard.counts.total))
        means, rate = progress.means.take(), self._learner.learning_rate(progress.done - 1)
        left = self._time_left.report(progress.done)
        state.apply(Progressed(progress.done, {**means, "lr": rate}, left, self._time_left.seconds_per_iteration))
        for warning in self._collapse.look(means):
            self._say(warning)

    def _measure(self, patience: Patience) -> None:
        """Measure student and teacher, draw pictures, and save what is better than all before."""
        learner, settings, progress, state = self._learner, self._settings, self._progress, self._state
        state.apply(PhaseChanged("validating"))
        lost: dict[Path, str] | None = {} if settings.data.skip_broken else None
        try:
            with self._time_left.measuring(), explained_measuring(settings, learner.device, progress.done):
                progress.latest = measured = self._compare(patience, lost)
                pictures = self._write_previews(measured, patience)
        except ImageError as error:
            raise self._ended_by(what_to_do(error, settings.data)) from error
        except TrainingError:
            # What was learnt so far is good, and the remedy is to continue with another setting.
            self._save_aside()
            raise
        if lost:
            self._say(f"{len(lost)} photos were left out of this measurement: {next(iter(lost.values()))}")
        state.apply(Validated(progress.done, measured.metrics, pictures))
        is_best = progress.best is None or measured.beats(progress.best)
        if is_best and self._checkpoints.save_best(measured):
            progress.best = measured
        state.apply(PhaseChanged("training"))

    def _compare(self, patience: Patience, lost: dict[Path, str] | None) -> Measurement:
        """Measure student and teacher, or compare them without labels where there are none."""
        learner, data, settings = self._learner, self._data, self._settings
        networks = (learner.student, learner.teacher, data, learner.device, self._progress.done)
        ways = {"inference": settings.inference, "scale": settings.data.scale, "patience": patience, "lost": lost}
        ways["max_images"] = settings.validation.max_images
        if data.validation:
            return measure_both(*networks, self._previews.keep, **ways)
        return measure_unlabelled(*networks, **ways)

    def _write_previews(self, measurement: Measurement, patience: Patience) -> tuple[Preview, ...]:
        """Write the pictures of a validation; without them, as on a full disk, the run goes on and says so."""
        learner = self._learner
        lost: dict[Path, str] = {}
        try:
            pictures = self._previews.write(
                measurement, learner.teacher, learner.device, learner.cuts(), patience=patience, lost=lost
            )
        except OSError as error:
            self._say(f"The pictures of this validation could not be written: {error.strerror or error}.")
        except ImageError as error:
            self._say(f"The pictures of this validation could not be made. {error}")
        else:
            # Without a picture the run goes on: it ends, or draws another photo, when the training needs this one.
            for reason in lost.values():
                self._say(f"{reason} There is no picture of it.")
            return pictures
        return ()

    def _save(self) -> None:
        """Save what is due, except after the last iteration, as the end of the run saves anyway."""
        if self._progress.done == self._settings.iterations or self._progress.guard.counts.in_a_row:
            # While iterations are skipped it waits: the last good checkpoint must not give way to a doubtful one.
            return
        if self._ranks.is_first:
            self._checkpoints.save()
        self._is_save_due = False

    def _save_aside(self) -> None:
        """Save what has been learnt, in the middle of whatever goes on, unless it is saved or doubtful."""
        progress = self._progress
        if self._ranks.is_first and not progress.guard.counts.in_a_row and self._folder.latest != progress.done:
            self._checkpoints.save()

    def _before_waiting(self, text: str) -> None:
        """Save before a disk is waited for: nobody knows whether it comes back."""
        self._save_aside()
        self._say(text)

    def _ended_by(self, failure: str) -> TrainingError:
        """Save, and say why the run ends and where it can be continued."""
        self._save_aside()
        if not self._ranks.is_first:
            return EndedElsewhere(failure)
        return TrainingError(f"{failure} {self._checkpoints.what_is_left()}")

    def _say(self, text: str) -> None:
        self._state.apply(Said(text))

    def _finish(self) -> RunResult:
        """Save at the end of the run, or where it was stopped."""
        progress, folder, state = self._progress, self._folder, self._state
        state.apply(PhaseChanged("saving"))
        stopped = progress.done < self._settings.iterations
        if stopped:
            self._say(f"Stopped after iteration {progress.done} of {self._settings.iterations}.")
        if progress.best is not None and not progress.best.rests_on_labels:
            self._say(CHOSEN_WITHOUT_LABELS)
        if self._ranks.is_first:
            self._checkpoints.finish()
        finished = Finished(
            stopped=stopped,
            iteration=progress.done,
            best=str(folder.best if folder.best.exists() else folder.last),
            checkpoints=tuple(str(path) for path in (folder.best, folder.last) if path.exists()),
            metrics=dict(progress.best.metrics) if progress.best else {},
        )
        state.apply(finished)
        return RunResult.from_change(finished)
