"""Sliding prediction by others: windows, labels and the time limit."""

import numpy as np
import pytest
import torch

from benchmarks.peers import MAKERS, NEEDED, OURS, WAYS, Clock, Enough
from common.hrda import ModelSettings, build_segmentor
from common.hrda.prediction.runtime import TorchNetwork


@pytest.fixture(scope="module")
def network() -> TorchNetwork:
    torch.manual_seed(0)
    tiny = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    return TorchNetwork(build_segmentor(tiny).eval(), "cpu")


@pytest.mark.parametrize("way", [way for way in WAYS if way != OURS])
def test_peers_lay_the_same_windows_and_give_the_same_labels(network, way):
    pytest.importorskip(NEEDED[way])
    image = np.random.default_rng(0).integers(0, 256, (136, 160, 3), dtype=np.uint8)
    clock = Clock(100, 4 * 4)
    with torch.inference_mode():
        labels = MAKERS[way](network)(image, clock)
        np.testing.assert_array_equal(labels, MAKERS[OURS](network)(image, Clock(100, 1)))
        assert clock.share == 1
        with pytest.raises(Enough):
            MAKERS[way](network)(image, Clock(-1, 1))
