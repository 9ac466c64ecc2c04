"""Feature distance to a frozen ImageNet encoder (DAFormer, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.hrda.settings import IGNORE_LABEL


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


def masked_feature_distance(features: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean over the cells of `mask` of ‖features − reference‖₂ along the channels; 0 for an empty mask.

    Args:
        features, reference: B×D×h×w.
        mask: B×h×w bool.
    """
    # The norm's gradient at 0 is not finite: cells outside the mask must not reach it.
    difference = torch.where(mask[:, None], features - reference, torch.ones_like(features))
    distance = difference.norm(dim=1)
    return (distance * mask).sum() / mask.sum().clamp(min=1)


def feature_distance(
    features: Tensor,
    reference: Tensor,
    labels: Tensor,
    classes: tuple[int, ...],
    min_share: float,
    num_classes: int,
) -> Tensor:
    """Feature distance on the cells of `classes`.

    Args:
        features, reference: B×D×h×w of the last encoder stage, student's and ImageNet's.
        labels: B×H×W int64 of the same images.
        classes: class indices that count.
        min_share: smallest share of its class in a cell for the cell to count.
        num_classes: number of classes.
    """
    cells = downscale_labels(labels, labels.shape[-1] // features.shape[-1], min_share, num_classes)
    mask = torch.isin(cells, torch.tensor(classes, device=cells.device))
    return masked_feature_distance(features, reference, mask)
