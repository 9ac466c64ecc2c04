"""Skipped iterations are counted and may end the run; degenerate pseudo-labels are reported, once, when they last."""

import pytest
import torch

from common.hrda import SelfTrainingSettings
from train.run.state import TrainingError
from train.run.watch import CollapseWatch, SkipCounts, StepGuard
from train.settings.sections import OptimizerSettings

SETTINGS = OptimizerSettings(lr=0.003, warmup_iterations=50, skip_limit=3)
YES, NO = torch.tensor(True), torch.tensor(False)
LOSSES = {"loss/source": torch.tensor(float("nan")), "loss/mixed": torch.tensor(0.5)}


class OnAnotherDevice:
    """A flag that costs a wait to read, and tells when it was read."""

    device = torch.device("cuda")


def guard(*flags, settings=SETTINGS, losses=LOSSES):
    made = StepGuard(settings)
    for done, flag in enumerate(flags, 1):
        made.add(done, flag, losses)
    return made


def test_skipped_iterations_are_counted_in_all_and_in_a_row():
    assert guard(YES, NO, NO, YES, NO).counts == SkipCounts(total=3, in_a_row=1)
    assert guard(NO, NO, YES).counts == SkipCounts(total=2, in_a_row=0)


def test_limit_ends_the_run_with_cause_numbers_and_remedy():
    with pytest.raises(TrainingError) as caught:
        guard(YES, NO, NO, NO)
    assert str(caught.value) == (
        "Training has diverged: from iteration 2 to 4 loss/source was no finite number. None of these 3 iterations was "
        "learnt from. Lower optimizer.lr (0.003) or lengthen optimizer.warmup_iterations (50)."
    )
    with pytest.raises(TrainingError, match=r"1 to 3 a gradient was.* weights that it started from are damaged\.$"):
        guard(NO, NO, NO, losses={"loss/source": torch.tensor(0.5)})


def test_no_other_device_is_waited_for_until_it_is_asked():
    made = StepGuard(SETTINGS)
    for done in range(1, 6):
        made.add(done, OnAnotherDevice(), {})
    assert made.counts == SkipCounts()


def test_news_are_told_once_and_again_after_an_interruption():
    made = guard(YES, NO)
    assert [made.take_news(), made.take_news()] == [True, False]
    made.add(3, NO, LOSSES)
    assert made.take_news()
    again = StepGuard(SETTINGS)
    again.restore(made.to_plain())
    assert again.counts == SkipCounts(total=2, in_a_row=2)
    assert again.take_news()


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
