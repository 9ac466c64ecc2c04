"""What is wrong, or may be, with the choice of the domains, for the page to say beside the selector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from common.data.choice import named, pronoun
from train.instance.domains import FoundDomain, InputError, check_apart, overlap_with_target, spoken
from train.instance.facts import DomainFacts

SIZE_RATIO = 2.0
"""Photos whose long edges differ by more than this show the same thing at very different sizes."""


@dataclass(frozen=True)
class Problem:
    """A sentence for a person, and how bad it is."""

    role: str
    """The domain whose choice causes it: source, target, validation or labelled_target."""
    kind: Literal["error", "warning"]
    text: str


def overlaps(found: Mapping[str, FoundDomain]) -> list[Problem]:
    """Datasets that are chosen twice; `found` may lack domains."""
    problems = []
    try:
        check_apart(found)
    except InputError as error:
        problems.append(Problem("validation", "error", str(error)))
    shared = overlap_with_target(found)
    if shared:
        problems.append(Problem("target", "warning", shared))
    return problems


def problems_of(facts: Mapping[str, DomainFacts]) -> list[Problem]:
    """What the facts of the domains say; `facts` may lack domains that are not chosen or not yet read."""
    labelled = [role for role in ("source", "validation", "labelled_target") if role in facts]
    problems = [problem for role in labelled for problem in _labels(role, facts[role])]
    if "source" in facts and "validation" in facts:
        problems += _classes(facts["source"], facts["validation"])
    main = {role: facts[role] for role in ("source", "target", "validation") if role in facts}
    part = {role: facts[role] for role in ("target", "labelled_target") if role in facts}
    return [*problems, *_sizes(main), *(_sizes(part) if len(part) == 2 else ())]


def _labels(role: str, facts: DomainFacts) -> Iterable[Problem]:
    if not facts.labelled_images:
        yield Problem(role, "error", f"No image of the {spoken(role)} has labels. Choose others, or label some.")
        return
    if role == "source":
        unlabelled = [name for name, one in facts.classes.items() if not one.images]
        if unlabelled:
            text = f"No labels of {named(unlabelled)}: label some, or leave {pronoun(unlabelled)} out in step Classes."
            yield Problem(role, "warning", text)
    if facts.undrawable:
        looked_at = facts.counted_images + len(facts.undrawable)
        yield Problem(
            role,
            "warning",
            f"{len(facts.undrawable)} of {looked_at} images looked at cannot be trained with. {facts.undrawable[0]}",
        )


def _classes(source: DomainFacts, validation: DomainFacts) -> Iterable[Problem]:
    if not source.labelled_images or not validation.labelled_images:
        return
    learnt = [name for name, one in source.classes.items() if one.images]
    measured = [name for name, one in validation.classes.items() if one.images]
    missing = [name for name in learnt if name not in measured]
    strange = [name for name in measured if name not in learnt]
    for name in list(missing):
        twins = [other for other in strange if other.casefold() == name.casefold()]
        if twins:
            missing.remove(name)
            strange.remove(twins[0])
            yield Problem(
                "validation",
                "warning",
                f"The class is '{name}' in the source and '{twins[0]}' here: give it the same name in both.",
            )
    if missing:
        yield Problem(
            "validation",
            "warning",
            f"No labels of {named(missing)}, which the source has: label some, or leave {pronoun(missing)} out in step "
            "Classes.",
        )
    if strange:
        text = f"Labels of {named(strange)}, which the source lacks: the model cannot learn {pronoun(strange)}."
        yield Problem("validation", "warning", text)


def _sizes(facts: Mapping[str, DomainFacts]) -> Iterable[Problem]:
    edges = [(role, one.median_long_edge) for role, one in facts.items() if one.median_long_edge]
    pairs = [*pairwise(edges), *([(edges[0], edges[2])] if len(edges) == 3 else [])]
    for (other, before), (role, edge) in pairs:
        if max(edge, before) > SIZE_RATIO * min(edge, before):
            larger = "larger" if edge > before else "smaller"
            photos, others = f"The {spoken(role)} photos", f"those of the {spoken(other)}"
            yield Problem(
                role,
                "warning",
                f"{photos} are much {larger} than {others}: {edge} against {before} pixels on the "
                "long edge (medians). Check the scale in step Hyperparameters.",
            )
