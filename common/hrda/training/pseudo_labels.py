"""Pseudo-labels: what the teacher's answer to a target batch becomes, and how much each pixel counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hrda.settings import SelfTrainingSettings

Share = Callable[[Tensor], Tensor]
"""Averages a tensor over all processes that train together."""

# Scores are counted as log odds, which tell probabilities near 0 and near 1 apart; beyond ±16 float32 has no digits.
_LIMIT = 16.0
_BINS = 1024
# What was seen this many iterations ago counts 1/e: as fast as a teacher with the usual factor of 0.99 changes.
_MEMORY = 100
# Logits are four times smaller than the labels: more pixels would repeat what these say.
_COUNTED_PIXELS = 4
_VIEWS = ((), (3,), (2,), (2, 3))
# Of the sizes that `HRDASegmentor.crop_parts` takes, those whose half has no odd rest.
_STEP, _SMALLEST = 16, 64


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

    def class_shares(self, num_classes: int, share: Share = alone) -> Tensor:
        """Share C of each class in the pixels that count, of all processes that train together; all 0 where none does.

        Args:
            num_classes: C.
            share: averages over the processes. Their pixels are added up before they are divided: of how many pixels
                count each may have another number.
        """
        counted = torch.where(self.weights > 0, self.labels, -1).float()
        pixels = share(torch.histc(counted, num_classes, -0.5, num_classes - 0.5))
        return pixels / pixels.sum().clamp(min=1e-9)


def pseudo_labels(
    logits: Tensor, settings: SelfTrainingSettings, cuts: Tensor | None = None, share: Share = alone
) -> PseudoLabels:
    """Turn the teacher's logits into labels and weights.

    Args:
        logits: B×C×H×W float32.
        settings: whose rule decides.
        cuts: C, probability from which a class is believed; needed by the rule 'class_balanced'.
        share: makes a share of this process's pixels one of the whole batch's.
    """
    probabilities = logits.softmax(dim=1)
    if settings.pseudo_label_rule == "class_balanced":
        excess, labels = (probabilities / cuts[:, None, None]).max(dim=1)
        confidence = probabilities.gather(1, labels[:, None]).squeeze(1)
        weights = (excess >= 1).to(confidence.dtype)
    elif settings.pseudo_label_rule == "per_class":
        foreground, labels = probabilities[:, 1:].max(dim=1)
        trusted = foreground >= settings.class_threshold
        labels = torch.where(trusted, labels + 1, 0)
        confidence = torch.where(trusted, foreground, probabilities[:, 0])
        weights = torch.ones_like(confidence)
    else:
        confidence, labels = probabilities.max(dim=1)
        weights = None
    confident = share((confidence >= settings.pseudo_label_threshold).float().mean())
    if weights is None:
        weights = confident.expand_as(confidence)
    return PseudoLabels(labels, confidence, weights, confident)


def averaged_views(
    answer: Callable[[Tensor], Tensor], images: Tensor, count: int, scales: Sequence[float] = (1.0,)
) -> Tensor:
    """Logits B×C×H×W of the mean probabilities of views; with one view at scale 1, the answer itself.

    Args:
        answer: logits B×C×H×W float32 of images B×3×H×W.
        images: B×3×H×W.
        count: of `PSEUDO_LABEL_VIEWS`: as it is, then mirrored left to right, then both upside down.
        scales: at which each of these is answered. Sizes are rounded to multiples of 16, at least 64.
    """
    if count == 1 and tuple(scales) == (1.0,):
        return answer(images)
    size = images.shape[-2:]
    total = 0
    for scale in scales:
        scaled = _resized(images, size if scale == 1 else _scaled(size, scale))
        for sides in _VIEWS[:count]:
            probabilities = answer(scaled.flip(sides)).softmax(dim=1).flip(sides)
            total = total + _resized(probabilities, size)
    # A probability of 0 has no logit; no float32 lies nearer to it.
    return (total / (count * len(scales))).clamp(min=torch.finfo(total.dtype).tiny).log()


def _scaled(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """What the teacher's network can answer nearest to `size` times `scale`."""
    return tuple(max(round(length * scale / _STEP) * _STEP, _SMALLEST) for length in size)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", antialias=True)


class ClassCuts(nn.Module):
    """Finds, for the rule 'class_balanced', the probability from which each class is believed.

    It counts the teacher's scores over the last iterations; the state dict holds the counts. A class's cut is where
    its share of the pixels lies above it, so that a class of which the teacher is never sure gets its share all the
    same, and one that it sees everywhere gets no more (Zou et al., ECCV 2018, section 4, with shares in place of
    portions of what is predicted: a thin class may not be predicted at all yet).

    Args:
        source_shares: C, share of each class in the source's pixels.
        settings: `balance_source` and `balance_keep`.
        class_weights: C, loss weights by which the teacher's probabilities are too high, or None.
        share: averages over the processes that train together.
    """

    def __init__(
        self,
        source_shares: Tensor,
        settings: SelfTrainingSettings,
        class_weights: Tensor | None = None,
        share: Share = alone,
    ) -> None:
        super().__init__()
        self._settings, self._share = settings, share
        weights = torch.ones_like(source_shares) if class_weights is None else class_weights
        # The loss does not count a class of weight 0, so that its probabilities are not shifted and need no correction.
        log_weights = torch.where(weights > 0, weights, 1.0).log()
        self.register_buffer("_log_weights", log_weights, persistent=False)
        self.register_buffer("_source", source_shares / source_shares.sum(), persistent=False)
        # Decayed sums over the iterations: the share of the pixels in each bin, and the mean probability.
        self.register_buffer("scores", source_shares.new_zeros(len(source_shares), _BINS))
        self.register_buffer("expected", source_shares.new_zeros(len(source_shares)))

    @torch.no_grad()
    def learn(self, logits: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: B×C×H×W float32, the teacher's. What is not finite does not count.
            valid: B×H×W, 0 where a pixel does not count; None: all do.
        """
        every = slice(None, None, _COUNTED_PIXELS)
        logits = logits[..., every, every].transpose(0, 1).flatten(1)
        counts = logits.isfinite().all(dim=0)
        if valid is not None:
            counts &= valid[..., every, every].flatten() > 0
        log_p = logits.log_softmax(dim=0)
        log_odds = (log_p - torch.log(-torch.expm1(log_p))).clamp(-_LIMIT, _LIMIT)
        # Out of range is not counted.
        log_odds = torch.where(counts, log_odds, 2 * _LIMIT)
        scores = torch.stack([torch.histc(row, _BINS, -_LIMIT, _LIMIT) for row in log_odds])
        unweighted = (logits - self._log_weights[:, None]).softmax(dim=0)
        expected = torch.where(counts, unweighted, 0).sum(dim=1)
        seen = torch.cat([scores, expected[:, None]], dim=1)
        seen = self._share(torch.cat([seen.flatten(), counts.sum().to(seen.dtype)[None]]))
        pixels = seen[-1]
        fresh = (seen[:-1] / pixels.clamp(min=1e-9)).view(len(self.scores), -1)
        keep = torch.where(pixels > 0, 1 - 1 / _MEMORY, 1.0)
        self.scores.mul_(keep).add_(fresh[:, :-1])
        self.expected.mul_(keep).add_(fresh[:, -1])

    def shares(self) -> Tensor:
        """Share C of the target's pixels that each class is to get; they add up to 1."""
        expected = self.expected / self.expected.sum().clamp(min=1e-9)
        trust = self._settings.balance_source
        shares = self._source.pow(trust) * expected.pow(1 - trust)
        return shares / shares.sum().clamp(min=1e-9)

    def cuts(self) -> Tensor:
        """Probability C from which each class is believed; 0.5 for all while nothing was counted."""
        total = self.scores[0].sum()
        wanted = self.shares() * self._settings.balance_keep
        above = (self.scores / total.clamp(min=1e-9)).flip(1).cumsum(1).flip(1)
        # The highest bin above whose lower edge the class has its share.
        index = ((above >= wanted[:, None]).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        width = 2 * _LIMIT / _BINS
        share_above = above.gather(1, index).squeeze(1)
        share_inside = self.scores.gather(1, index).squeeze(1) / total.clamp(min=1e-9)
        into = ((share_above - wanted) / share_inside.clamp(min=1e-9)).clamp(0, 1)
        cuts = torch.sigmoid(-_LIMIT + width * (index.squeeze(1) + into))
        cuts = torch.where(wanted > 0, cuts, torch.inf)
        return torch.where(total > 0, cuts, 0.5)
