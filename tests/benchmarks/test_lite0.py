"""EfficientNet-Lite0's real ImageNet weights: converted strictly, and computing what their own package computes."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from benchmarks.lite0 import main, published, under_timms_names
from common.hrda.network import from_timm
from common.hrda.network.encoder_weights import load_encoder, read_encoder
from common.hrda.network.encoders import build_encoder
from common.hrda.pixels import IMAGENET_MEAN, IMAGENET_STD

STAGES = (3, 5, 11, 16)
"""Blocks of the package's network after which maps have strides 4, 8, 16 and 32."""


@pytest.fixture(scope="module")
def theirs() -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(published())
    return network.eval()


def test_the_written_file_gives_an_encoder_with_the_packages_features(theirs, tmp_path, monkeypatch):
    path = tmp_path / "weights" / "lite0.pth"
    monkeypatch.setattr("sys.argv", ["lite0", str(path)])
    assert main() == 0
    encoder = build_encoder("efficientnet_lite0").eval()
    load_encoder(encoder, read_encoder(path, "efficientnet_lite0"))
    photo = torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(0)).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        ours = encoder((photo - mean) / std)
        # Normalised as timm states it of the weights.
        x, wanted = theirs._swish(theirs._bn0(theirs._conv_stem((photo - 127.5) / 127.5))), []
        for block in theirs._blocks:
            x = block(x)
            wanted.append(x)
    for found, place in zip(ours, STAGES, strict=True):
        scale = wanted[place - 1].abs().max()
        torch.testing.assert_close(found / scale, wanted[place - 1] / scale, atol=1e-4, rtol=0)


def test_the_whole_network_classifies_as_the_packages(theirs):
    ours = from_timm.timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(under_timms_names(published()))
    photos = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(photos), theirs(photos), atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_are_refused():
    state = published()
    state["_blocks.3._bn1.weight"] = torch.zeros(7)
    with pytest.raises(ValueError, match="not those of EfficientNet-Lite0"):
        under_timms_names(state)
    with pytest.raises(ValueError, match="not those of EfficientNet-Lite0"):
        under_timms_names(dict(list(published().items())[:-1]))
