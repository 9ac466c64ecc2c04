"""Counting skipped iterations: when a run has to end, and what is said of it."""

import pytest
import torch

from train.result import TrainingError
from train.run.watch import SkipCounts, StepGuard
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
