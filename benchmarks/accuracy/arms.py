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
    goes_on_from: str | None = "first phase"
    """The first phase from whose network of the same seed it starts; None: from random or pretrained weights."""
    length: int = 1
    """Iterations, in multiples of those that the settings say."""
    labels: int = 0
    """So many photos of the half that choices are made on are learnt from too, with their labels. Choices are made on
    the others; where none is left, without labels."""
    suggested: bool = False
    """Whether these are the ones that the network it goes on from would have labelled; otherwise the seed draws."""


FIRST_PHASE = "first phase"
_FIRST_LENGTH = 4
FROM_RANDOM = "optimizer.lr=1.5e-3"
"""Weights that are drawn have further to go than those of a first phase, or of a file, for which the settings speak."""
# Its teacher has to follow a student that changes fast.
_START = ("self_training.alpha=0.99",)
RARE = ("data.rare_class_share=0", "data.rare_class_sampling.mode=auto")
MASKED = ("self_training.masked_weight=1",)
FINE = ("model.fine_branch=true",)
SKELETON = ("thin.skeleton_weight=1",)
CLDICE = (*SKELETON, "thin.skeleton_loss=cldice")
BORDER = ("thin.border_px=1",)
# The same part of a photo in a crop would be 256, for 1.8 times the time of 192.
DOUBLE = (
    "data.scale={long_edge: null, short_edge: null, factor: 2}",
    "model.crop_size=[192, 192]",
    "inference.stride=[192, 192]",
)
SLOW = ("optimizer.lr=1e-4", "optimizer.head_lr_factor=10")
# Of four source crops two.
LABELLED = ("data.labelled_target_share=0.5",)

ARMS: Mapping[str, Arm] = {
    "source-only": Arm("source-only", _START, goes_on_from=None, length=_FIRST_LENGTH + 1),
    "control": Arm("control"),
    "HRDA": Arm("uda"),
    "HRDA + fine branch": Arm("uda", FINE, goes_on_from="first phase + fine branch"),
    "HRDA + skeleton recall": Arm("uda", SKELETON),
    "HRDA + 10 labels": Arm("uda", LABELLED, labels=10),
    # The control's passes and augmentation as well, or the bound would be one of augmentation too.
    "supervised": Arm("control", on_real=True),
}
"""The comparison. All but the first go on from one network a seed, which was trained as the control: pseudo-labels of a
network that knows nothing yet teach nothing. `control` makes the passes of HRDA with the same augmentation, and sees no
target photo."""

ABLATIONS: Mapping[str, Arm] = {
    "HRDA + MIC": Arm("uda", MASKED),
    "HRDA + RCS": Arm("uda", RARE),
    "control + MIC": Arm("control", MASKED),
    "control + RCS": Arm("control", RARE),
    "control + fine branch": Arm("control", FINE, goes_on_from="first phase + fine branch"),
    "HRDA + late fine branch": Arm("uda", FINE),
    "HRDA + soft clDice": Arm("uda", CLDICE),
    "HRDA + light borders": Arm("uda", BORDER),
    "control + skeleton recall": Arm("control", SKELETON),
    "control at 2x": Arm("control", DOUBLE, goes_on_from="first phase at 2x"),
    "HRDA at 2x": Arm("uda", DOUBLE, goes_on_from="first phase at 2x"),
    "HRDA at 2x + skeleton recall": Arm("uda", (*DOUBLE, *SKELETON), goes_on_from="first phase at 2x"),
    "control, slow encoder": Arm("control", SLOW),
    "HRDA, slow encoder": Arm("uda", SLOW),
    "HRDA + 5 labels": Arm("uda", LABELLED, labels=5),
    "HRDA + 24 labels": Arm("uda", LABELLED, labels=24),
    "HRDA + 5 suggested labels": Arm("uda", LABELLED, labels=5, suggested=True),
    "HRDA + 10 suggested labels": Arm("uda", LABELLED, labels=10, suggested=True),
    "published rule": Arm("uda", ("self_training.pseudo_label_rule=published",)),
    "cut of 0.6": Arm("uda", ("self_training.class_threshold=0.6",)),
    "class-balanced": Arm("uda", ("self_training.pseudo_label_rule=class_balanced",)),
    "ClassMix": Arm("uda", ("self_training.mixing=class",)),
    "teacher of 100 iterations": Arm("uda", ("self_training.alpha=0.99",)),
    "four views": Arm("uda", ("self_training.pseudo_label_views=4",)),
    "three scales": Arm("uda", ("self_training.pseudo_label_scales=[0.75, 1.0, 1.5]",)),
    "crack weighs 3": Arm("uda", ("class_weights=[1, 3]",)),
    "no supervised phase": Arm("uda", _START, goes_on_from=None, length=_FIRST_LENGTH + 1),
}
"""One change of HRDA each (of the control, where the name says so)."""

FIRST_PHASES: Mapping[str, Arm] = {
    name: Arm("control", (*_START, *changes), goes_on_from=None, length=_FIRST_LENGTH)
    for name, changes in {
        FIRST_PHASE: (),
        "first phase + fine branch": FINE,
        "first phase at 2x": DOUBLE,
    }.items()
}
"""What the others go on from."""

ALL: Mapping[str, Arm] = {**FIRST_PHASES, **ARMS, **ABLATIONS}


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
    phases = dict.fromkeys(phase for arm in arms if (phase := ALL[arm].goes_on_from))
    return [Training(phase, seed) for seed in seeds for phase in phases]


def trainings(arms: Sequence[str], seeds: Sequence[int]) -> list[Training]:
    """All trainings that the arms need, every arm of one seed before the next seed."""
    return [
        Training(arm, seed, fold)
        for seed in seeds
        for arm in arms
        for fold in (range(FOLDS) if ALL[arm].on_real else (None,))
    ]
