"""Feature distance to a frozen ImageNet encoder (DAFormer, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.checks import SettingsError, closest
from common.hrda.pixels import IGNORE_LABEL
from common.hrda.training.pseudo_labels import Share, alone

MIN_SHARE = 0.75
"""Smallest share of one class in an encoder cell for the cell to count (DAFormer)."""


def class_indices(names: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the classes `names` among all `class_names`.

    Raises:
        SettingsError: one is not among them.
    """
    known = list(class_names)
    for name in names:
        if name not in known:
            raise SettingsError(
                f"feature_distance_classes names '{name}', which is not trained: {closest(name, known)} "
                "Leave it out, or set feature_distance_weight to 0."
            )
    return tuple(known.index(name) for name in names)


def downscale_labels(labels: Tensor, factor: int, min_share: float, num_classes: int) -> Tensor:
    """The class of each `factor`×`factor` cell, 255 where none has at least `min_share` of it.

    Args:
        labels: B×H×W int64, 255 = ignored (it takes its share of a cell, too).
        factor: side of a cell in pixels.
        min_share: in 0..1.
        num_classes: number of classes.

    Returns:
        B×H/factor×W/factor int64.
    """
    slots = torch.where(labels == IGNORE_LABEL, num_classes, labels)
    one_hot = F.one_hot(slots, num_classes + 1).permute(0, 3, 1, 2).float()
    share, cell_class = F.avg_pool2d(one_hot, factor).max(dim=1)
    ignored = (cell_class == num_classes) | (share < min_share)
    return torch.where(ignored, IGNORE_LABEL, cell_class)


def masked_feature_distance(features: Tensor, reference: Tensor, mask: Tensor, share: Share = alone) -> Tensor:
    """Mean over the cells of `mask` of ‖features − reference‖₂ along the channels; 0 for an empty mask.

    Args:
        features, reference: B×D×h×w.
        mask: B×h×w bool.
        share: averages over processes that train together, such that their results have the mean of all cells as mean.
    """
    # The norm's gradient at 0 is not finite: cells outside the mask must not reach it.
    difference = torch.where(mask[:, None], features - reference, torch.ones_like(features))
    distance = difference.norm(dim=1)
    cells = share(mask.sum().float())
    return (distance * mask).sum() / torch.where(cells > 0, cells, 1)


def feature_distance(
    features: Tensor,
    reference: Tensor,
    labels: Tensor,
    classes: tuple[int, ...],
    min_share: float,
    num_classes: int,
    share: Share = alone,
) -> Tensor:
    """Feature distance on the cells of `classes`.

    Args:
        features, reference: B×D×h×w of the last encoder stage, student's and ImageNet's.
        labels: B×H×W int64 of the same images.
        classes: class indices that count.
        min_share: smallest share of its class in a cell for the cell to count.
        num_classes: number of classes.
        share: as for `masked_feature_distance`.
    """
    cells = downscale_labels(labels, labels.shape[-1] // features.shape[-1], min_share, num_classes)
    mask = torch.isin(cells, torch.tensor(classes).to(cells.device, non_blocking=True))
    return masked_feature_distance(features, reference, mask, share)
