"""Whether an interrupted run can go on with what is chosen on the page."""

from dataclasses import replace

import pytest

from common.hrda import SettingsError
from train.page.gui import describe_run, require_fit
from train.run.folder import Resumable
from train.settings.training import TrainSettings

RUN = Resumable(iteration=40, total_iterations=200, classes=("crack", "joint"), encoder="mit_b0", mode="uda")
SETTINGS = TrainSettings.from_yaml("iterations: 200\noptimizer: {warmup_iterations: 1}\nmodel: {encoder: mit_b0}")


def test_interrupted_run_is_described_and_fits_its_own_settings():
    assert describe_run(RUN) == "iteration 40 of 200; mit_b0; crack, joint"
    require_fit(RUN, SETTINGS, ["crack", "joint"])


@pytest.mark.parametrize(
    ("changes", "classes", "message"),
    [
        ({}, ["crack"], "The interrupted run learns crack, joint, and crack is chosen now"),
        (
            {"model": replace(SETTINGS.model, encoder="mit_b2")},
            ["crack", "joint"],
            "trains mit_b0, and mit_b2 is chosen",
        ),
        ({"iterations": 40}, ["crack", "joint"], "is at iteration 40 and would end at 40"),
    ],
)
def test_run_that_no_longer_fits_is_refused_with_what_to_do(changes: dict, classes: list[str], message: str):
    with pytest.raises(SettingsError, match=message) as refusal:
        require_fit(RUN, replace(SETTINGS, **changes), classes)
    assert 'untick "Continue the interrupted run"' in str(refusal.value)
