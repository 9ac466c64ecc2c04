"""The card from which a training is started."""

from types import SimpleNamespace

import pytest

from common.hrda import SettingsError
from train.page.start import StartCard
from train.settings.training import TrainSettings


def chosen(names: list[str], batch_size: int = 4) -> str:
    settings = TrainSettings().with_overrides([f"batch_size={batch_size}"])
    return StartCard.chosen_devices(SimpleNamespace(get_devices=lambda: names), settings)


def test_several_cards_are_passed_on_together():
    assert chosen(["cuda:1"]) == "cuda:1"
    assert chosen(["cuda:2", "cuda:0"]) == "cuda:2,cuda:0"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "Choose a device"),
        (["cuda:0", "cpu"], "not both"),
        (["cuda:0", "cuda:1", "cuda:2"], r"all 3 training processes.*Set it to 3\. Received: 4"),
    ],
)
def test_devices_that_cannot_train_together_are_refused(names, message):
    with pytest.raises(SettingsError, match=message):
        chosen(names)
