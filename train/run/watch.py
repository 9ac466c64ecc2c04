"""What can go wrong while a run learns.

Iterations are skipped because a loss or a gradient is no finite number: they are counted, and too many in a row end the
run. Pseudo-labels degenerate, as a class is lost or spreads or nothing is confident: an early warning is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from common.hrda import SelfTrainingSettings
from train.run.state import TrainingError
from train.settings.sections import OptimizerSettings

FINITE = "step/finite"
"""Name of the flag among an iteration's scalars: 0-dim bool, whether all losses and gradients are finite."""

_CONFIDENT = "pseudo_label/confident_share"
_REPORTS_IN_A_ROW = 3
# Of the odds, so that one factor suits thin classes and large ones. Domains differ: a target may well hold twice as
# much as the source.
_LOST = 1 / 20
_SPREAD = 5.0
_STARVED = 0.01


@dataclass
class SkipCounts:
    """How many iterations were skipped."""

    total: int = 0
    """Of the whole run."""
    in_a_row: int = 0
    """Since the last one that was learnt from."""


class StepGuard:
    """Counts skipped iterations and ends a run in which too many follow on each other.

    Args:
        settings: with the limit, and what to change once it is reached.
    """

    def __init__(self, settings: OptimizerSettings) -> None:
        self.counts = SkipCounts()
        """As of the last `read` or `to_plain`; on a CPU always up to date."""
        self._settings = settings
        self._unread: list[Tensor] = []
        self._latest: Mapping[str, Tensor] = {}
        self._done = self._reported = 0

    def add(self, done: int, finite: Tensor, scalars: Mapping[str, Tensor]) -> None:
        """Take note of an iteration; nothing waits for another device than the CPU.

        Args:
            done: iterations done with it.
            finite: 0-dim bool, whether it was learnt from.
            scalars: its losses by name, 0-dim.

        Raises:
            TrainingError: as `read`.
        """
        self._done, self._latest = done, scalars
        self._unread.append(finite)
        if finite.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Bring `counts` up to date.

        Raises:
            TrainingError: as many iterations as the settings allow were skipped in a row.
        """
        self._count()
        if self.counts.in_a_row >= self._settings.skip_limit:
            raise TrainingError(self._diverged())

    def require_any(self) -> None:
        """Make sure that something was learnt, at the end of a run.

        Raises:
            TrainingError: all iterations were skipped.
        """
        self._count()
        if self.counts.total == self._done:
            raise TrainingError(self._diverged())

    def take_news(self) -> bool:
        """Whether more were skipped than when this was last asked, as of the last `read`."""
        before, self._reported = self._reported, self.counts.total
        return self.counts.total > before

    def to_plain(self) -> dict[str, Any]:
        """The counts, for a run that goes on later."""
        self._count()
        return asdict(self.counts)

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what `to_plain` gave."""
        self.counts = SkipCounts(**plain)

    def _count(self) -> None:
        flags = torch.stack(self._unread).tolist() if self._unread else []
        for finite in flags:
            self.counts.total += not finite
            self.counts.in_a_row = 0 if finite else self.counts.in_a_row + 1
        self._unread.clear()

    def _diverged(self) -> str:
        count, settings = self.counts.in_a_row, self._settings
        culprits = [name for name, value in self._latest.items() if not torch.isfinite(value)]
        what = " and ".join(culprits) or "a gradient"
        since = self._done - count + 1
        remedy = (
            f"Lower optimizer.lr ({settings.lr:g}) or lengthen optimizer.warmup_iterations "
            f"({settings.warmup_iterations})."
        )
        if since == 1:
            remedy += " If that does not help, the weights that it started from are damaged."
        return (
            f"Training has diverged: from iteration {since} to {self._done} {what} was no finite number. None of these "
            f"{count} iterations was learnt from. {remedy}"
        )


class CollapseWatch:
    """Tells when pseudo-labels have been degenerate for some reports in a row; once, until they are not any more.

    Args:
        classes: names by index, the background first.
        source_shares: share of each class in the source's pixels, which the pseudo-labels are compared with.
        settings: of self-training.
    """

    def __init__(self, classes: Sequence[str], source_shares: Sequence[float], settings: SelfTrainingSettings) -> None:
        self._classes, self._source, self._rule = tuple(classes), tuple(source_shares), settings.pseudo_label_rule
        self._threshold = settings.pseudo_label_threshold
        self._in_a_row: dict[tuple[str, int], int] = {}

    def look(self, scalars: Mapping[str, float]) -> list[str]:
        """Sentences for a person, of what has become worth saying with this report.

        Args:
            scalars: means since the last report, by the names that an iteration gives them.
        """
        if _CONFIDENT not in scalars:
            return []
        signs = self._signs(scalars)
        self._in_a_row = {sign: self._in_a_row.get(sign, 0) + 1 for sign in signs}
        new = [sign for sign, count in self._in_a_row.items() if count == _REPORTS_IN_A_ROW]
        sentences = []
        if any(kind == "starved" for kind, _ in new):
            sentences.append(
                f"Pseudo-labels teach next to nothing: {_percent(scalars[_CONFIDENT])} of the target's pixels reach "
                f"self_training.pseudo_label_threshold ({self._threshold:g}), and all are weighted by that share. "
                "Lower it, start self-training later (self_training_start), or set self_training.pseudo_label_rule "
                "to class_balanced."
            )
        for kind, verb in (("lost", "are losing"), ("spread", "are overrun by")):
            found = [index for sign, index in new if sign == kind]
            if found:
                sentences.append(f"Pseudo-labels {verb} {self._compared(found, scalars)}. {self._remedy(kind)}")
        return sentences

    def _signs(self, scalars: Mapping[str, float]) -> list[tuple[str, int]]:
        """Kinds of degeneration, each with the index of its class."""
        starved = scalars[_CONFIDENT] < _STARVED
        if starved and self._rule == "published":
            # No pixel counts: the classes' shares say nothing.
            return [("starved", 0)]
        signs = []
        for index in range(1, len(self._classes)):
            expected = _odds(self._source[index])
            found = _odds(scalars.get(f"pseudo_label/share/{index}", self._source[index]))
            if found < _LOST * expected:
                signs.append(("lost", index))
            elif expected > 0 and found > _SPREAD * expected:
                signs.append(("spread", index))
        return signs

    def _compared(self, indices: Sequence[int], scalars: Mapping[str, float]) -> str:
        return ", ".join(
            f"{self._classes[index]} ({_percent(scalars[f'pseudo_label/share/{index}'])} of the pixels, "
            f"{_percent(self._source[index])} in the source)"
            for index in indices
        )

    def _remedy(self, kind: str) -> str:
        other = "Start self-training later (self_training_start)"
        weights = "raise the weight of rare classes" if kind == "lost" else "lower the weight of this class"
        if self._rule == "class_balanced":
            return f"{other}, {weights} (class_weights), or raise self_training.balance_source."
        return f"{other}, {weights} (class_weights), or set self_training.pseudo_label_rule to class_balanced."


def _odds(share: float) -> float:
    return share / max(1 - share, 1e-9)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
