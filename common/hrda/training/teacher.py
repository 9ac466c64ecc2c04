"""The mean teacher: a copy of the student that follows it slowly (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from common.hrda.settings import SelfTrainingSettings

M = TypeVar("M", bound=nn.Module)


def averaging_factor(iteration: int, alpha: float) -> float:
    """α_t = min(1 − 1/(t+1), α): the first steps average less, so that the teacher leaves its start quickly."""
    return min(1 - 1 / (iteration + 1), alpha)


def ramped_alpha(iteration: int, settings: SelfTrainingSettings) -> float:
    """The factor that caps the averaging at `iteration`: it grows from `alpha_start` to `alpha`.

    The number of iterations that the teacher averages over, 1 / (1 − α), grows by the same factor in each.
    """
    if settings.alpha_start is None or iteration >= settings.alpha_ramp_iterations:
        return settings.alpha
    done = iteration / settings.alpha_ramp_iterations
    return 1 - (1 - settings.alpha_start) ** (1 - done) * (1 - settings.alpha) ** done


def make_teacher(student: M) -> M:
    """A copy of `student` without gradients, dropout or drop-path, in train mode.

    Batch norm keeps using the statistics of the batch, as in the reference: the teacher sees target
    images, and its own running statistics become the target's.
    """
    teacher = copy.deepcopy(student).requires_grad_(False).train()
    freeze_stochastic_layers(teacher)
    return teacher


def freeze_stochastic_layers(model: nn.Module) -> None:
    """Switch dropout and drop-path off for good; batch norm stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, iteration: int, alpha: float) -> None:
    """θ_T ← α_t θ_T + (1 − α_t) θ_S, parameters only; at iteration 0 this copies the student's."""
    factor = averaging_factor(iteration, alpha)
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - factor)


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """Give the teacher the student's batch statistics: while it sees no images it gathers none of its own."""
    for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        ours.copy_(theirs)
