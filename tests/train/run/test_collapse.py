"""Degenerate pseudo-labels are reported, once, and only when they last."""

import pytest

from common.hrda import SelfTrainingSettings
from train.collapse import CollapseWatch


def watch(rule="per_class", shares=(0.985, 0.015)):
    names = ("__bg__", "crack", "spall")[: len(shares)]
    return CollapseWatch(names, shares, SelfTrainingSettings(pseudo_label_rule=rule))


def report(crack, confident=0.9, **others):
    return {"pseudo_label/confident_share": confident, "pseudo_label/share/1": crack, **others}


def said(watching, reports):
    return [watching.look(one) for one in reports]


def test_class_that_vanishes_is_named_once_with_its_shares_and_the_remedy():
    [_, _, [sentence], *later] = said(watch(), [report(0.0002)] * 6)
    assert "losing crack (0.02% of the pixels, 1.5% in the source)" in sentence
    assert "self_training_start" in sentence and "class_balanced" in sentence
    assert not any(later)


def test_healthy_shares_and_short_dips_say_nothing():
    reports = [report(0.03), report(0.0001), report(0.0001), report(0.015), report(0.0001), report(0.005), report(0.05)]
    assert not any(said(watch(), reports))


def test_class_that_spreads_is_named_and_again_when_it_comes_back():
    reports = [report(0.1)] * 3 + [report(0.02)] + [report(0.1)] * 3
    sentences = said(watch(rule="class_balanced"), reports)
    assert [bool(s) for s in sentences] == [False, False, True, False, False, False, True]
    assert "overrun by crack (10% of the pixels" in sentences[2][0]
    assert "balance_source" in sentences[2][0]


def test_published_rule_that_weighs_everything_by_nothing_is_reported_alone():
    [*_, [sentence]] = said(watch("published"), [report(0.0, confident=0.002)] * 3)
    assert "0.2% of the target's pixels reach self_training.pseudo_label_threshold (0.968)" in sentence
    assert not any(said(watch("per_class"), [report(0.015, confident=0.002)] * 3))


def test_several_classes_share_a_sentence():
    reports = [report(0.0, **{"pseudo_label/share/2": 0.0})] * 3
    [*_, [sentence]] = said(watch(shares=(0.9, 0.05, 0.05)), reports)
    assert "losing crack (0% of the pixels, 5% in the source), spall (0%" in sentence


@pytest.mark.parametrize("scalars", [{"loss/source": 1.0}, {}])
def test_nothing_is_said_before_self_training_starts(scalars):
    assert not any(said(watch(), [scalars] * 5))


def test_class_that_the_source_lacks_may_be_lacking():
    reports = [report(0.05, **{"pseudo_label/share/2": 0.0})] * 4
    assert not any(said(watch(shares=(0.95, 0.05, 0.0)), reports))
