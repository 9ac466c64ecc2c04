"""The arms that are compared, and the trainings of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FOLDS = 5


@dataclass(frozen=True)
class Arm:
    """What is compared."""

    mode: str
    """Mode of the training."""
    changes: tuple[str, ...] = ()
    """Settings that differ from those of all arms, as for `--set`."""
    on_real: bool = False
    """Whether it learns from the labelled real photos; each is then predicted by a network that has not seen it."""
    goes_on: bool = True
    """Whether it starts from the network of the first phase of its seed; otherwise from random weights."""
    length: int = 1
    """Iterations, in multiples of those that the settings say."""


FIRST_PHASE = "first phase"
_FIRST_LENGTH = 4
# Weights that are drawn have further to go than those of a first phase, and the teacher has to follow them.
FROM_RANDOM = ("optimizer.lr=1.5e-3", "self_training.alpha=0.99")
RARE = ("data.rare_class_share=0", "data.rare_class_sampling.mode=auto")
MASKED = ("self_training.masked_weight=1",)

ARMS: Mapping[str, Arm] = {
    "source-only": Arm("source-only", FROM_RANDOM, goes_on=False, length=_FIRST_LENGTH + 1),
    "control": Arm("control"),
    "HRDA": Arm("uda"),
    "HRDA + MIC": Arm("uda", MASKED),
    "HRDA + RCS": Arm("uda", RARE),
    # The control's passes and augmentation as well, or the bound would be one of augmentation too.
    "supervised": Arm("control", on_real=True),
}
"""The comparison. All but the first go on from one network a seed, which was trained as the control: pseudo-labels of a
network that knows nothing yet teach nothing. `control` makes the passes of HRDA with the same augmentation, and sees no
target photo."""

ABLATIONS: Mapping[str, Arm] = {
    "control + MIC": Arm("control", MASKED),
    "control + RCS": Arm("control", RARE),
    "published rule": Arm("uda", ("self_training.pseudo_label_rule=published",)),
    "cut of 0.6": Arm("uda", ("self_training.class_threshold=0.6",)),
    "class-balanced": Arm("uda", ("self_training.pseudo_label_rule=class_balanced",)),
    "ClassMix": Arm("uda", ("self_training.mixing=class",)),
    "teacher of 100 iterations": Arm("uda", ("self_training.alpha=0.99",)),
    "four views": Arm("uda", ("self_training.pseudo_label_views=4",)),
    "three scales": Arm("uda", ("self_training.pseudo_label_scales=[0.75, 1.0, 1.5]",)),
    "crack weighs 3": Arm("uda", ("class_weights=[1, 3]",)),
    "no supervised phase": Arm("uda", FROM_RANDOM, goes_on=False, length=_FIRST_LENGTH + 1),
}
"""One change of HRDA each (of the control, where the name says so)."""

ALL: Mapping[str, Arm] = {
    FIRST_PHASE: Arm("control", FROM_RANDOM, goes_on=False, length=_FIRST_LENGTH),
    **ARMS,
    **ABLATIONS,
}


@dataclass(frozen=True)
class Training:
    """One training of an arm."""

    arm: str
    seed: int
    fold: int | None = None
    """Which fifth of the labelled real photos is left out; None: none is learnt from."""

    @property
    def name(self) -> str:
        """Its folder, and what messages call it."""
        own = self.arm.replace(",", "").replace(" ", "_")
        return f"{own}/seed{self.seed}" + ("" if self.fold is None else f"/fold{self.fold}")


def first_phases(arms: Sequence[str], seeds: Sequence[int]) -> list[Training]:
    """The trainings that those of the arms go on from, which must be done before."""
    return [Training(FIRST_PHASE, seed) for seed in seeds] if any(ALL[arm].goes_on for arm in arms) else []


def trainings(arms: Sequence[str], seeds: Sequence[int]) -> list[Training]:
    """All trainings that the arms need, every arm of one seed before the next seed."""
    return [
        Training(arm, seed, fold)
        for seed in seeds
        for arm in arms
        for fold in (range(FOLDS) if ALL[arm].on_real else (None,))
    ]
