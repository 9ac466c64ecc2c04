"""Pseudo-labels: what the teacher's answer to a target batch becomes, and how much each pixel counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.hrda.settings import SelfTrainingSettings

Share = Callable[[Tensor], Tensor]
"""Averages a tensor over all processes that train together."""


def alone(tensor: Tensor) -> Tensor:
    """The average over the one process that there is."""
    return tensor


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher says of a target batch."""

    labels: Tensor
    """B×H×W int64."""
    confidence: Tensor
    """B×H×W float, probability of the label."""
    weights: Tensor
    """B×H×W float, weight of each pixel in the mixed loss."""
    confident_share: Tensor
    """0-dim: share of the batch's pixels at or above the threshold."""


def pseudo_labels(logits: Tensor, settings: SelfTrainingSettings, share: Share = alone) -> PseudoLabels:
    """Turn the teacher's logits B×C×H×W into labels and weights, by the rule of `settings`.

    `share` makes a share of this process's pixels one of the whole batch's.
    """
    probabilities = logits.softmax(dim=1)
    if settings.pseudo_label_rule == "per_class":
        foreground, labels = probabilities[:, 1:].max(dim=1)
        trusted = foreground >= settings.class_threshold
        labels = torch.where(trusted, labels + 1, 0)
        confidence = torch.where(trusted, foreground, probabilities[:, 0])
        confident = share((confidence >= settings.pseudo_label_threshold).float().mean())
        return PseudoLabels(labels, confidence, torch.ones_like(confidence), confident)
    confidence, labels = probabilities.max(dim=1)
    confident = share((confidence >= settings.pseudo_label_threshold).float().mean())
    return PseudoLabels(labels, confidence, confident.expand_as(confidence), confident)
