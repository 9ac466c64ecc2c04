"""What is said about a choice of domains, and beside which selector."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from train.instance.domains import FoundDomain
from train.instance.facts import ClassFacts, DomainFacts
from train.instance.problems import overlaps, problems_of

LABELLED = DomainFacts(
    images=10, labelled_images=8, sized_images=10, smallest=(600, 400), largest=(640, 480), median_long_edge=620,
    classes={"crack": ClassFacts(8, 9, 0.02), "joint": ClassFacts(3, 3, 0.1)}, counted_images=10,
)  # fmt: skip
TARGET = replace(LABELLED, labelled_images=0, classes={}, counted_images=0)


def said(**facts: DomainFacts) -> list[tuple[str, str, str]]:
    return [(problem.role, problem.kind, problem.text) for problem in problems_of(facts)]


def with_classes(**images: int) -> DomainFacts:
    return replace(LABELLED, classes={name: ClassFacts(count, count, 0.1) for name, count in images.items()})


def test_good_choice_is_not_complained_of():
    assert said(source=LABELLED, target=TARGET, validation=LABELLED) == []


@pytest.mark.parametrize("role", ["source", "validation", "labelled_target"])
def test_unlabelled_domain_is_an_error_beside_its_selector(role):
    [(where, kind, text)] = said(**{"source": LABELLED, "validation": LABELLED, role: TARGET})
    assert (where, kind) == (role, "error")
    assert f"No image of the {role.replace('_', ' ')} has labels" in text


def test_class_without_labels_is_said_once():
    facts = with_classes(crack=3, joint=0)
    [(where, kind, text)] = said(source=facts, validation=facts)
    assert (where, kind) == ("source", "warning")
    assert "No labels of the class 'joint': label some, or leave it out" in text


def test_classes_that_the_validation_lacks_are_named():
    [(where, _, text)] = said(source=with_classes(crack=3, joint=2, stain=1), validation=with_classes(crack=4, joint=0))
    assert where == "validation"
    assert "No labels of the classes 'joint', 'stain', which the source has: label some, or leave them out" in text


def test_class_that_only_the_validation_has_is_named():
    [(where, _, text)] = said(source=with_classes(crack=3), validation=with_classes(crack=4, stain=1))
    assert where == "validation"
    assert "Labels of the class 'stain', which the source lacks" in text


def test_class_spelt_otherwise_is_said_as_that_and_not_as_missing():
    [(where, _, text)] = said(source=with_classes(crack=3), validation=with_classes(Crack=4))
    assert (where, "'crack' in the source and 'Crack' here" in text) == ("validation", True)


@pytest.mark.parametrize(("edge", "word"), [(1300, "larger"), (300, "smaller")])
def test_photos_of_another_size_are_named_with_both_sizes(edge, word):
    target = replace(TARGET, median_long_edge=edge)
    [(where, kind, text)] = said(source=LABELLED, target=target)
    assert (where, kind) == ("target", "warning")
    assert f"The target photos are much {word} than those of the source: {edge} against 620 pixels" in text
    problems = said(source=LABELLED, target=target, validation=LABELLED)
    assert [(where, "those of the target" in text) for where, _, text in problems] == [
        ("target", False), ("validation", True),
    ]  # fmt: skip


def test_labelled_part_of_another_size_than_the_target_is_named_beside_itself():
    part = replace(LABELLED, median_long_edge=1300)
    [(where, kind, text)] = said(source=LABELLED, target=TARGET, validation=LABELLED, labelled_target=part)
    assert (where, kind) == ("labelled_target", "warning")
    assert "The labelled target photos are much larger than those of the target" in text
    assert said(source=LABELLED, labelled_target=part) == []


def test_photos_twice_as_large_are_not_yet_complained_of():
    assert said(source=LABELLED, validation=replace(LABELLED, median_long_edge=1240)) == []


def test_labels_that_cannot_be_drawn_are_counted_and_one_is_named():
    facts = replace(LABELLED, undrawable=("Label 1 of a.png is odd.", "Label 2 of b.png is odd."))
    [(where, _, text)] = said(source=facts)
    assert where == "source"
    assert text == "2 of 12 images looked at cannot be trained with. Label 1 of a.png is odd."


def test_dataset_chosen_twice_is_an_error_for_measuring_and_a_warning_for_adapting():
    one = FoundDomain(SimpleNamespace(name="roads"), {"ds": SimpleNamespace(id=1)})
    other = FoundDomain(SimpleNamespace(name="walls"), {"ds": SimpleNamespace(id=2)})
    [problem] = overlaps({"source": one, "target": other, "validation": one})
    assert (problem.role, problem.kind) == ("validation", "error")
    assert "Source and validation share dataset 'ds' of project 'roads'" in problem.text
    [problem] = overlaps({"source": one, "target": one, "validation": other})
    assert (problem.role, problem.kind) == ("target", "warning")
    assert problem.text == "Target and source share dataset 'ds' of project 'roads'."
    assert overlaps({"source": one, "target": other}) == []
    [problem] = overlaps({"source": one, "target": other, "labelled_target": other, "validation": other})[:1]
    assert (problem.role, problem.kind) == ("validation", "error")
    assert "Labelled target and validation share" in problem.text
    assert overlaps({"source": one, "target": other, "labelled_target": other}) == []
