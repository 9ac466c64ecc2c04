"""Losses for classes that are a few pixels wide: borders that count less, and agreement along middle lines.

Skeleton recall: Kirchhoff et al., "Skeleton Recall Loss for connectivity conserving and resource efficient segmentation
of thin tubular structures", ECCV 2024. Soft clDice: Shit et al., CVPR 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.network.heads import resize
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.settings import ThinSettings
from common.hrda.training.mixing import paste
from common.hrda.training.pseudo_labels import PseudoLabels

# Enough for lines about 10 pixels wide at any angle; what is wider is not thin.
_EROSIONS = 8
# Of the published tube: two dilations by a cross.
_TUBE_RADIUS = 2
_SMOOTH = 1.0


class Answer(NamedTuple):
    """What a pass is to learn, each B×H×W."""

    labels: Tensor
    """int64, 255 = ignored."""
    weights: Tensor | None = None
    """float, how much a pixel counts in the cross entropy; None: 1."""
    trust: Tensor | None = None
    """float, how much it counts along middle lines, whose borders are another matter; None: 1."""
    tubes: Tensor | None = None
    """bool, pixels of the labels near their middle lines, where these are asked for."""


def labelled_answer(labels: Tensor, tubes: Tensor | None, settings: ThinSettings) -> Answer:
    """What labels B×H×W (int64) teach.

    Args:
        labels: 255 = ignored.
        tubes: B×H×W bool, as the loader makes them.
        settings: of the losses.

    Raises:
        ValueError: no tubes where skeleton recall needs them.
    """
    if settings.needs_tubes and tubes is None:
        raise ValueError("Skeleton recall needs the tubes of the source labels, which the loader makes: source_tubes.")
    weights = border_weights(labels, settings.border_px, settings.border_weight) if settings.border_px else None
    return Answer(labels, weights, None, tubes if settings.needs_tubes else None)


def pseudo_answer(pseudo: PseudoLabels, num_classes: int, settings: ThinSettings) -> Answer:
    """What pseudo-labels teach; their middle lines are found on their device, for which nothing waits."""
    tubes = soft_tubes(pseudo.labels, num_classes) if settings.needs_tubes else None
    return Answer(pseudo.labels, pseudo.weights, pseudo.weights, tubes)


def mixed_answer(mask: Tensor, source: Answer, target: Answer) -> Answer:
    """The source's answer where `mask` (B×H×W bool), the target's elsewhere."""
    ones = torch.ones_like(target.weights)
    return Answer(
        paste(mask, source.labels, target.labels),
        paste(mask, ones if source.weights is None else source.weights, target.weights),
        paste(mask, ones, target.trust),
        None if target.tubes is None else paste(mask, source.tubes, target.tubes),
    )


def border_weights(labels: Tensor, reach: int, weight: float) -> Tensor:
    """`weight` for pixels within `reach` pixels of another label, in all eight directions, and 1 elsewhere.

    Args:
        labels: B×H×W int64; the ignored ones have no border.
        reach: at least 1.
        weight: from 0 to 1.

    Returns:
        B×H×W float32.
    """
    ignored = labels == IGNORE_LABEL
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    highest = F.max_pool2d(labels.float().masked_fill(ignored, -1), **window)
    lowest = -F.max_pool2d(-labels.float().masked_fill(ignored, IGNORE_LABEL), **window)
    return torch.where(highest > lowest, weight, 1.0)


def skeleton_loss(logits: Tensor, answer: Answer, settings: ThinSettings) -> Tensor:
    """The loss along middle lines that the settings name, without its weight: 0-dim, from 0 to 1.

    Args:
        logits: B×C×h×w; resized to the labels' size.
        answer: with tubes for skeleton recall.
        settings: which loss.
    """
    # In float32 also under autocast: sums over a whole crop have more digits than 16 bits.
    probabilities = resize(logits.float(), answer.labels.shape[-2:]).softmax(dim=1)[:, 1:]
    true = _one_hot(answer.labels, probabilities.shape[1] + 1)
    trust = (answer.labels != IGNORE_LABEL).to(probabilities.dtype)[:, None]
    trust = trust if answer.trust is None else trust * answer.trust[:, None]
    if settings.skeleton_loss == "recall":
        return skeleton_recall_loss(probabilities, true * answer.tubes[:, None], trust)
    return soft_cldice_loss(probabilities, true, trust)


def skeleton_recall_loss(probabilities: Tensor, tubes: Tensor, trust: Tensor) -> Tensor:
    """Share of the tubes that is not found, mean over images and classes; 0 for a class that an image does not have.

    Each image is counted by itself, so that parts of a batch, and processes, add up to the whole batch.

    Args:
        probabilities: B×C×H×W, of the classes but the background.
        tubes: B×C×H×W, 1 near the middle lines of each class's label.
        trust: B×1×H×W; what is not trusted adds nothing and still counts, as in the cross entropy.
    """
    missed = (trust * tubes * (1 - probabilities)).sum((2, 3))
    return (missed / (tubes.sum((2, 3)) + _SMOOTH)).mean()


def soft_cldice_loss(probabilities: Tensor, true: Tensor, trust: Tensor) -> Tensor:
    """1 − soft clDice, mean over images and classes.

    Args:
        probabilities: B×C×H×W, of the classes but the background.
        true: B×C×H×W, 1 where the label is that class.
        trust: B×1×H×W, how much a pixel counts.
    """
    found, wanted = (soft_skeleton(maps) * trust for maps in (probabilities, true))
    precision = ((found * true).sum((2, 3)) + _SMOOTH) / (found.sum((2, 3)) + _SMOOTH)
    recall = ((wanted * probabilities).sum((2, 3)) + _SMOOTH) / (wanted.sum((2, 3)) + _SMOOTH)
    return (1 - 2 * precision * recall / (precision + recall)).mean()


def soft_skeleton(maps: Tensor) -> Tensor:
    """Middle lines of maps B×C×H×W in 0..1, by erosions and openings that have gradients (Shit et al., algorithm 1)."""
    skeleton = F.relu(maps - _opened(maps))
    for _ in range(_EROSIONS):
        maps = _eroded(maps)
        ends = F.relu(maps - _opened(maps))
        skeleton = skeleton + F.relu(ends - skeleton * ends)
    return skeleton


@torch.no_grad()
def soft_tubes(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of labels B×H×W (int64) near the middle lines of their class, B×H×W bool; not of the background."""
    true = _one_hot(labels, num_classes)
    near = soft_skeleton(true)
    for _ in range(_TUBE_RADIUS):
        near = torch.maximum(_pooled(near, (3, 1)), _pooled(near, (1, 3)))
    return (near * true > 0).any(dim=1)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """B×(C−1)×H×W float32 without the background; 0 where a label is ignored."""
    classes = torch.arange(1, num_classes, device=labels.device)
    return (labels[:, None] == classes[:, None, None]).float()


def _pooled(maps: Tensor, window: tuple[int, int]) -> Tensor:
    return F.max_pool2d(maps, window, 1, (window[0] // 2, window[1] // 2))


def _eroded(maps: Tensor) -> Tensor:
    return -torch.maximum(_pooled(-maps, (3, 1)), _pooled(-maps, (1, 3)))


def _opened(maps: Tensor) -> Tensor:
    return _pooled(_eroded(maps), (3, 3))
