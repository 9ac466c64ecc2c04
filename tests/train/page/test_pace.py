"""The estimate of an iteration's time: measured by what trains, in a process of its own."""

import pytest

from train.page.pace import PaceUnknown, measure
from train.settings.training import TrainSettings

SMALL = [
    "batch_size=1",
    "model.encoder=mit_b0",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "class_weights={crack: 3}",
]


def test_an_iteration_is_measured_whatever_classes_the_settings_name():
    assert 0 < measure(TrainSettings().with_overrides([*SMALL, "mode=source-only"])) < 60


def test_what_cannot_be_computed_here_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr("train.page.pace.LIMIT_S", 0.01)
    with pytest.raises(PaceUnknown, match="a few iterations take longer"):
        measure(TrainSettings().with_overrides(SMALL))
