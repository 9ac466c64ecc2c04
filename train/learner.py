"""Student, teacher and optimiser of a run, and one iteration of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import AdamW

from common.data.datasets import Batch
from common.hrda import SelfTraining, build_segmentor
from common.hrda.optimisation import optimizer_groups
from common.hrda.teacher import make_teacher
from train.device import seed_everything, to_device
from train.initialisation import Start, frozen_encoder, start_from
from train.preparation import PreparedData, class_weights
from train.schedule import lr_factor
from train.settings import TrainSettings


class Learner:
    """What learns, on its device.

    Args:
        settings: of the run.
        data: whose classes are told apart.
        device: where to compute.
        start: weights to start from.
        say: gets sentences about them.

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
    ) -> None:
        self.device = device
        self._settings = settings
        seed_everything(settings.seed, 0)
        self.student = build_segmentor(replace(settings.model, num_classes=len(data.classes)))
        start_from(self.student, start, say)
        # Convolutions are faster in this layout, on CUDA and by a tenth on the CPU.
        self.student.to(device, memory_format=torch.channels_last).train()
        self.teacher = make_teacher(self.student)
        self._generator = torch.Generator()
        self._training = SelfTraining(
            self.student,
            self.teacher,
            settings.self_training,
            mode=settings.mode,
            generator=self._generator,
            class_weights=to_device(class_weights(settings.class_weights, data), device),
            class_names=data.classes,
            source_shares=torch.tensor(data.source_shares, device=device),
            imagenet_encoder=frozen_encoder(self.student, start, settings),
        )
        rates = settings.optimizer
        groups = optimizer_groups(self.student, rates.lr, rates.weight_decay, rates.head_lr_factor)
        self.optimizer = AdamW(groups, betas=rates.betas)
        self._full_rates = [group["lr"] for group in groups]

    def learn(self, batch: Batch, done: int) -> dict[str, Tensor]:
        """One iteration.

        Args:
            batch: what to learn from, on any device.
            done: iterations done before.

        Returns:
            0-dim tensors on the device, by name.
        """
        settings = self._settings
        # Each iteration has random numbers of its own, whatever came before: a resumed run draws the same.
        self._generator.manual_seed(seed_everything(settings.seed, done + 1))
        images, labels, target_images, target_valid = (to_device(tensor, self.device) for tensor in batch)
        factor = self._lr_factor(done)
        for group, rate in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        step = self._training.step(
            images,
            labels,
            target_images,
            iteration=done,
            target_valid=target_valid,
            adapt=done >= settings.self_training_start * settings.iterations,
        )
        self.optimizer.step()
        return step.scalars

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
