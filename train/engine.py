"""A training run from settings and folders to checkpoints."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from common.data.datasets import MemoryCache, Recipe, TrainingBatches, iterate
from common.hrda import CheckpointBundle, HRDASegmentor, SelfTraining, SettingsError, build_segmentor
from common.hrda.optimisation import optimizer_groups
from common.hrda.teacher import make_teacher
from train.initialisation import load_initial_weights
from train.observers import Observers, TrainingObserver
from train.preparation import Domains, PreparedData, class_weights, prepare
from train.run_folder import RunFolder, RunState
from train.schedule import lr_factor
from train.settings import TrainSettings
from train.validation import Measurement, compare, measure

__all__ = ["Domains", "RunResult", "TrainingError", "run"]


class TrainingError(RuntimeError):
    """Training cannot go on. The message says why and what to do."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    checkpoints: list[Path]
    """The files written: the best one, if anything was measured, and the last one."""
    best: Path
    """The checkpoint with the best score of student and teacher; the last one if nothing was measured."""
    metrics: dict[str, float]
    """Scores from 0 to 1 at the best measurement, named `student/…` and `teacher/…`."""
    iteration: int
    """Iterations done; fewer than the settings say when the run was stopped."""


def run(
    settings: TrainSettings,
    domains: Domains,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    observers: Sequence[TrainingObserver] = (),
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
        observers: told of progress, in their order.
        stop: once set, the run saves the last checkpoint after the current iteration and returns.
        resume: go on with the run in `out`.
        init_checkpoint: weights to start from.

    Raises:
        SettingsError: settings, classes or folders that cannot work; before any training.
        ProjectError: data that cannot be used; before any training.
        TrainingError: the loss is no longer finite.
    """
    notify, stop = Observers(observers), stop or threading.Event()
    place = find_device(device)
    require_start(settings, init_checkpoint)
    folder = RunFolder(out)
    state = folder.claim(resume=resume)
    data = prepare(settings, domains, classes, Path(settings.data.cache_dir or folder.cache), notify.on_message)
    if state is not None:
        state.require_fit(data.classes, settings.iterations)

    seed_everything(settings.seed, 0)
    student = build_segmentor(replace(settings.model, num_classes=len(data.classes)))
    if init_checkpoint is not None:
        notify.on_message(load_initial_weights(student, init_checkpoint))
    # Convolutions are faster in this layout, on CUDA and by a tenth on the CPU.
    student.to(place, memory_format=torch.channels_last).train()
    teacher = make_teacher(student)
    generator = torch.Generator()
    training = SelfTraining(
        student,
        teacher,
        settings.self_training,
        mode=settings.mode,
        generator=generator,
        class_weights=to_device(class_weights(settings.class_weights, data), place),
        imagenet_encoder=frozen_encoder(student, settings),
    )
    groups = optimizer_groups(
        student, settings.optimizer.lr, settings.optimizer.weight_decay, settings.optimizer.head_lr_factor
    )
    optimizer = AdamW(groups, betas=settings.optimizer.betas)
    full_rates = [group["lr"] for group in groups]
    done, best, latest = 0, None, None
    if state is not None:
        state.restore(student, teacher, optimizer)
        done, best, latest = state.iteration, state.best, state.latest
    folder.write_settings(settings)

    def checkpoint(measurement: Measurement | None) -> CheckpointBundle:
        return CheckpointBundle(
            student=student,
            teacher=teacher,
            serve_teacher=measurement is not None and measurement.teacher_is_better,
            classes=data.classes,
            palette=data.palette,
            settings=plain_settings(settings, student_classes=len(data.classes)),
            metrics=dict(measurement.metrics) if measurement else {},
            iteration=done,
        )

    def save_last() -> None:
        folder.save_last(
            checkpoint(latest), RunState.capture(done, data.classes, best, latest, student, teacher, optimizer)
        )
        notify.on_checkpoint(folder.last)

    batches = build_batches(settings, data)
    if settings.data.workers:
        # Before the workers are forked, so that they share what it holds.
        notify.on_message("Reading the training photos.")
        batches.fill_cache()
    adapt_from = settings.self_training_start * settings.iterations
    notify.on_start(settings.iterations)
    losses = RunningMeans()
    for batch in iterate(batches, done, settings.data.workers, pin_memory=place.type == "cuda"):
        if stop.is_set():
            break
        # Each iteration has random numbers of its own, whatever came before: a resumed run draws the same.
        generator.manual_seed(seed_everything(settings.seed, done + 1))
        images, labels, target_images, target_valid = (to_device(tensor, place) for tensor in batch)
        factor = lr_factor(done, settings.iterations, settings.optimizer)
        for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        step = training.step(
            images, labels, target_images, iteration=done, target_valid=target_valid, adapt=done >= adapt_from
        )
        optimizer.step()
        losses.add(step.scalars)
        done += 1

        is_last = done == settings.iterations
        if done % settings.log_interval == 0 or is_last:
            notify.on_iteration(done, {**losses.take(done), "lr": settings.optimizer.lr * factor})
        if done % settings.validation.interval == 0 or is_last:
            latest = measure_both(student, teacher, settings, data, place, done)
            notify.on_validation(done, latest.metrics)
            if best is None or latest.score > best.score:
                best = latest
                folder.save_best(checkpoint(best))
                notify.on_checkpoint(folder.best)
        if done % settings.checkpoint.interval == 0 and not is_last:
            save_last()
    if stop.is_set():
        notify.on_message(f"Stopped after iteration {done} of {settings.iterations}.")
    save_last()
    return RunResult(
        checkpoints=[path for path in (folder.best, folder.last) if path.exists()],
        best=folder.best if folder.best.exists() else folder.last,
        metrics=dict(best.metrics) if best else {},
        iteration=done,
    )


def find_device(name: str) -> torch.device:
    """The device of that name; 'auto' is CUDA where there is one, else the CPU.

    Raises:
        SettingsError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be auto, cpu, cuda or cuda:N. Received: {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"This machine offers {torch.cuda.device_count()} CUDA devices. Received: {name!r}.")
    return device


def seed_everything(seed: int, stream: int) -> int:
    """Seed torch's global generators with the number drawn for (seed, stream), and return that number."""
    [drawn] = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))
    return int(drawn)


def to_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """`tensor` on `device`; copied while the device works on, where memory is pinned."""
    return None if tensor is None else tensor.to(device, non_blocking=True)


def build_batches(settings: TrainSettings, data: PreparedData) -> TrainingBatches:
    """The training batches of the whole run."""
    recipe = Recipe(
        crop_size=settings.model.crop_size,
        scale=settings.data.scale,
        augmentation=settings.data.augmentation,
        rare_class_share=settings.data.rare_class_share,
        margins=settings.self_training.ignore_margins,
    )
    return TrainingBatches(
        data.source,
        data.target,
        recipe,
        batch_size=settings.batch_size,
        iterations=settings.iterations,
        seed=settings.seed,
        cache=MemoryCache(settings.data.memory_cache_mb * 2**20),
    )


def require_start(settings: TrainSettings, init_checkpoint: Path | None) -> None:
    """Make sure that the weights to start from are there.

    Raises:
        SettingsError: the file is missing, or the feature distance is on without any.
    """
    if init_checkpoint is not None and not Path(init_checkpoint).is_file():
        raise SettingsError(f"There are no initial weights at {init_checkpoint}. Give the path of a .pth file.")
    if init_checkpoint is None and settings.self_training.feature_distance_weight > 0:
        raise SettingsError(
            "self_training.feature_distance_weight holds the encoder near its initial weights, which would be random. "
            "Give pretrained weights to start from, or set it to 0."
        )


def frozen_encoder(student: HRDASegmentor, settings: TrainSettings) -> nn.Module | None:
    """The encoder that the feature distance compares with: the student's, as it starts. None if it is off."""
    if settings.self_training.feature_distance_weight == 0:
        return None
    return copy.deepcopy(student.backbone).eval().requires_grad_(False)


def plain_settings(settings: TrainSettings, student_classes: int) -> dict[str, Any]:
    """The settings as a checkpoint holds them: complete enough to rebuild the network and to predict."""
    plain = settings.to_dict()
    plain["model"] = replace(settings.model, num_classes=student_classes).to_dict()
    if settings.data.scale.edges is not None:
        plain["input"] = settings.data.scale.to_dict()
    return plain


def measure_both(
    student: HRDASegmentor,
    teacher: HRDASegmentor,
    settings: TrainSettings,
    data: PreparedData,
    device: torch.device,
    iteration: int,
) -> Measurement:
    """Measure both models on the validation photos."""
    counts = [
        measure(
            model,
            data.validation,
            data.classes,
            inference=settings.inference,
            scale=settings.data.scale,
            device=device,
            max_images=settings.validation.max_images,
        )
        for model in (student, teacher)
    ]
    return compare(iteration, *counts)


class RunningMeans:
    """Means of an iteration's scalars since they were last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Count 0-dim tensors; nothing waits for the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, iteration: int) -> dict[str, float]:
        """The means, and start anew.

        Raises:
            TrainingError: one of them is no finite number.
        """
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        for name, value in means.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"Training has diverged: {name} is {value} at iteration {iteration}. Lower optimizer.lr or "
                    "lengthen optimizer.warmup_iterations, and start again."
                )
        return means
