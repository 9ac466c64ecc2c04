"""Student, teacher and optimiser of a run, one iteration of them, and the learning rate over the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from common.allocator import keep_freed_memory
from common.data.datasets import Batch
from common.hrda import SelfTraining, build_segmentor
from common.hrda.training.optimisation import GuardedOptimizer, optimizer_groups
from common.hrda.training.ranks import ALONE, Ranks
from common.hrda.training.self_training import StepDraws
from common.hrda.training.teacher import make_teacher
from common.hrda.training.whole_batch import see_whole_batch
from train.run.device import (
    allow_tf32,
    autocast_of,
    compile_networks,
    computing_precision,
    seed_everything,
    to_device,
)
from train.run.initial_weights import Start, frozen_encoder, start_from
from train.run.watch import FINITE
from train.settings.sections import OptimizerSettings
from train.settings.training import TrainSettings

if TYPE_CHECKING:
    from train.run.preparation import PreparedData

# A class may be missing in the source photos altogether, or nearly so: its weight stays within this.
_HIGHEST_AUTO_WEIGHT = 10.0

WARMUP_START = 1e-6
"""Share of the learning rate at the first iteration of the warm-up, as in the reference implementation."""


class Learner:
    """What learns, on its device.

    Args:
        settings: of the run.
        data: whose classes are told apart.
        device: where to compute.
        start: weights to start from.
        say: gets sentences about them.
        ranks: the processes that train together; the weights to start from are those of the first.

    Raises:
        SettingsError: the weights do not fit.
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: PreparedData,
        device: torch.device,
        start: Start,
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.device = device
        self.ranks = ranks
        self._settings = settings
        compute = settings.compute
        precision = computing_precision(compute.precision, device)
        autocast = autocast_of(precision, device)
        _prepare(device, compute.tf32)
        seed_everything(settings.seed, 0)
        self.student = build_segmentor(replace(settings.model, num_classes=len(data.classes)))
        see_whole_batch(self.student, ranks, device)
        if not ranks.is_first:
            # The files may not be on this machine.
            start = Start()
        self.weights_origin = start_from(self.student, start, data.classes, say)
        """Where the encoder's weights came from; of the first process."""
        # Convolutions are faster in this layout, on CUDA and by a tenth on the CPU.
        self.student.to(device, memory_format=torch.channels_last).train()
        ranks.copy_from_first(self.student)
        self.student.backbone.activation_checkpointing = compute.activation_checkpointing
        self.teacher = make_teacher(self.student)
        rates = settings.optimizer
        groups = optimizer_groups(self.student, rates.lr, rates.weight_decay, rates.head_lr_factor, rates.layer_decay)
        self._full_rates = [group["lr"] for group in groups]
        self.optimizer = AdamW(groups, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._guarded = GuardedOptimizer(self.optimizer, (self.student, self.teacher), self.scaler, compute.clip_norm)
        self._generator = torch.Generator()
        self._training = SelfTraining(
            self.student,
            self.teacher,
            settings.self_training,
            mode=settings.mode,
            thin=settings.thin,
            generator=self._generator,
            class_weights=to_device(class_weights(settings.class_weights, data), device),
            class_names=data.classes,
            source_shares=torch.tensor(data.source_shares, device=device),
            imagenet_encoder=ranks.copy_from_first(frozen_encoder(self.student, start, settings.self_training)),
            autocast=autocast,
            backward=self._guarded.backward,
            accumulate=compute.accumulate,
            ranks=ranks,
        )
        if compute.compile:
            compile_networks(
                (self.student, self.teacher), settings.batch_size // ranks.count // compute.accumulate, autocast, say
            )

    def learn(self, batch: Batch, done: int) -> dict[str, Tensor]:
        """One iteration.

        Args:
            batch: what to learn from, on any device.
            done: iterations done before.

        Returns:
            0-dim tensors on the device, by name. `step/finite` is a bool: where it is false, a loss or the gradient was
            not finite, and weights, averages and statistics are as before.
        """
        settings = self._settings
        # Each iteration has random numbers of its own, whatever came before: a resumed run draws the same.
        self._generator.manual_seed(seed_everything(settings.seed, done + 1))
        images, labels, target_images, target_valid = (to_device(tensor, self.device) for tensor in batch[:4])
        tubes = to_device(batch.source_tubes, self.device)
        draws = StepDraws.draw(
            labels, settings.self_training, self._generator, self.ranks, present=batch.source_classes
        )
        factor = self._lr_factor(done)
        for group, rate in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = rate * factor
        self._guarded.begin()
        step = self._training.step(
            images,
            labels,
            target_images,
            iteration=done,
            target_valid=target_valid,
            source_tubes=tubes,
            adapt=done >= settings.self_training_start * settings.iterations,
            draws=draws,
        )
        self.ranks.average_gradients(self.student.parameters())
        scalars = self.ranks.mean_of_each(step.scalars)
        losses = [value for name, value in scalars.items() if name.startswith("loss/")]
        return {**scalars, FINITE: self._guarded.step(losses)}

    def extra_state(self) -> dict[str, Any]:
        """What going on depends on besides the weights of student and teacher and the settings, as tensors and data
        that load without executing anything. Rates follow from settings and iteration, and so do random numbers."""
        return {
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "self_training": self._training.state_dict(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `extra_state` gave."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if state["scaler"]:
            # Empty where the run was computed in another precision than float16 so far.
            self.scaler.load_state_dict(state["scaler"])
        self._training.load_state_dict(state["self_training"])

    def cuts(self) -> Tensor | None:
        """Probability C from which each class is believed in pseudo-labels; None where the rule finds none."""
        return self._training.cuts()

    def learning_rate(self, done: int) -> float:
        """The encoder's learning rate in the iteration that `done` iterations precede."""
        return self._settings.optimizer.lr * self._lr_factor(done)

    def forget_gradients(self) -> None:
        """Let go of the gradients, which fill as much memory as the weights."""
        self.optimizer.zero_grad(set_to_none=True)

    def _lr_factor(self, done: int) -> float:
        return lr_factor(done, self._settings.iterations, self._settings.optimizer)


def lr_factor(iteration: int, iterations: int, settings: OptimizerSettings) -> float:
    """Share of the full learning rate at `iteration` (from 0) of a run of `iterations`.

    Linear warm-up multiplied onto polynomial decay, as in the reference implementation: the decay runs
    from the first iteration on, so that the end of the warm-up makes no step.
    """
    factor = (1 - min(iteration, iterations) / iterations) ** settings.power
    if iteration < settings.warmup_iterations:
        factor *= 1 - (1 - iteration / settings.warmup_iterations) * (1 - WARMUP_START)
    return factor


def _prepare(device: torch.device, tf32: bool) -> None:
    if device.type == "cuda":
        allow_tf32(tf32)
        # All iterations have the same shapes: the fastest kernels are looked for once.
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()


def class_weights(weights: str | Sequence[float] | Mapping[str, float], data: PreparedData) -> Tensor | None:
    """Loss weights C float32 of the classes, or None for none.

    'auto' weighs a class by the fourth root of how much rarer it is than the most frequent one: the full
    ratio would let a thin class drown all else (a crack on 1.5% of the pixels gets 2.8, not 66).

    Args:
        weights: as in the settings, already checked.
        data: whose labelled photos 'auto' counts.
    """
    if weights == "off":
        return None
    if weights == "auto":
        shares = np.array(data.source_shares)
        rarity = shares.max() / np.maximum(shares, 1e-12)
        values = np.where(shares > 0, np.minimum(rarity**0.25, _HIGHEST_AUTO_WEIGHT), 1.0)
    elif isinstance(weights, Mapping):
        values = [weights.get(name, 1.0) for name in data.classes]
    else:
        values = weights
    return torch.tensor(np.asarray(values), dtype=torch.float32)
