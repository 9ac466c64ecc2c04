"""The card from which a training is started."""

from types import SimpleNamespace

import pytest

from common.hrda import SettingsError
from train.page.start import StartCard
from train.settings.training import TrainSettings


def chosen(names: list[str], *overrides: str) -> str:
    settings = TrainSettings().with_overrides(["batch_size=4", *overrides])
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


def test_a_batch_that_the_encoder_cannot_learn_from_is_refused_before_any_download():
    wanted = "model.encoder=efficientnet_lite0", "model.crop_size=[64, 64]"
    with pytest.raises(SettingsError, match="Batch norms of the encoder efficientnet_lite0 .* Raise batch_size"):
        chosen(["cpu"], *wanted, "batch_size=1")
    with pytest.raises(SettingsError, match="Batch norms"):
        chosen(["cuda:0"], *wanted, "compute.accumulate=4")
    assert chosen(["cuda:0", "cuda:1"], *wanted) == "cuda:0,cuda:1"


def test_layer_decay_of_an_encoder_without_layers_is_refused_before_any_download():
    with pytest.raises(SettingsError, match="layer_decay is for vision transformers"):
        chosen(["cpu"], "model.encoder=mit_b0", "optimizer.layer_decay=0.8")
    assert chosen(["cpu"], "model.encoder=dinov2_small", "optimizer.layer_decay=0.8") == "cpu"
