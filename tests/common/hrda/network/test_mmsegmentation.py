"""The network beside mmsegmentation's own modules, and in its tools."""

from __future__ import annotations

import subprocess
import sys

import torch
from mmengine.structures import PixelData

from common.hrda.catalogue import ENCODERS
from common.hrda.network import mmsegmentation  # noqa: F401, registers the network
from common.hrda.network.encoders import build_encoder
from common.hrda.network.heads import ConvBNReLU, SeparableConvBNReLU

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip


def test_encoder_equals_mmsegmentations_own() -> None:
    torch.manual_seed(1)
    ours = build_encoder("mit_b0").eval()
    plain = plain_encoder().eval()
    plain.load_state_dict(ours.state_dict(), strict=True)
    for theirs in plain.modules():
        if isinstance(theirs, torch.nn.LayerNorm):
            theirs.eps = 1e-6
    for module in ours.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    x = torch.randn(2, 3, 96, 64)
    for a, b in zip(ours(x), plain(x), strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


def plain_encoder() -> torch.nn.Module:
    return MODELS.build(
        {"type": "MixVisionTransformer", "embed_dims": 32, "num_heads": [1, 2, 5, 8], "num_layers": [2] * 4}
    )


def test_encoder_is_drawn_from_mmsegmentations_distributions() -> None:
    torch.manual_seed(3)
    ours, plain = build_encoder("mit_b0").state_dict(), plain_encoder()
    plain.init_weights()
    for name, theirs in plain.state_dict().items():
        close = 0.1 * theirs.std() + 1e-12 if theirs.numel() > 2000 else theirs.abs().max() + 1e-12
        assert (ours[name].std() - theirs.std()).abs() <= close, name
        assert (ours[name].mean() - theirs.mean()).abs() <= close, name
        assert name.endswith("in_proj_weight") or (theirs.std() == 0) == (ours[name].std() == 0), name


def test_decoder_layers_are_drawn_and_computed_as_mmcvs() -> None:
    norm = {"type": "BN", "requires_grad": True}
    torch.manual_seed(4)
    ours = [ConvBNReLU(torch.nn.Conv2d(8, 6, 1, bias=False)), SeparableConvBNReLU(8, 6, dilation=6)]
    torch.manual_seed(4)
    theirs = [
        ConvModule(8, 6, 1, norm_cfg=norm),
        DepthwiseSeparableConvModule(8, 6, 3, dilation=6, padding=6, norm_cfg=norm),
    ]
    x = torch.randn(2, 8, 20, 16)
    for a, b in zip(ours, theirs, strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        for name, value in b.state_dict().items():
            assert torch.equal(a.state_dict()[name], value), name
        torch.testing.assert_close(a(x), b(x), atol=1e-5, rtol=1e-5)


def test_the_apps_do_without_its_zoo() -> None:
    code = "import sys, common.hrda, common.hrda.training.self_training; sys.exit('mmseg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_is_built_and_run_from_an_mmsegmentation_config() -> None:
    channels = ENCODERS["mit_b0"].channels
    model = MODELS.build(
        {
            "type": "HRDASegmentor",
            "backbone": {"type": "HRDAMixVisionTransformer", "arch": "mit_b0"},
            "decode_head": {"type": "HRDAHead", "in_channels": channels, "num_classes": 3, "channels": 16},
            "crop_size": (64, 64),
        }
    )
    images = torch.randn(2, 3, 64, 64)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 64, 64)))) for _ in images]
    losses = model(images, samples, mode="loss")
    assert set(losses) == {"loss_fused", "loss_detail"}
    assert model(images, mode="tensor").shape == (2, 3, 64, 64)
    predictions = model.eval()(torch.randn(1, 3, 72, 90), mode="predict")
    assert predictions[0].pred_sem_seg.data.shape == (1, 72, 90)


def test_dafomer_head_serves_mmsegmentations_own_segmentor() -> None:
    channels = list(ENCODERS["mit_b0"].channels)
    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "backbone": {"type": "HRDAMixVisionTransformer", "arch": "mit_b0"},
            "decode_head": {"type": "DAFormerHead", "in_channels": channels, "channels": 16, "num_classes": 3},
            "test_cfg": {"mode": "whole"},
        }
    ).eval()
    assert model(torch.randn(1, 3, 64, 64), mode="tensor").shape == (1, 3, 16, 16)
