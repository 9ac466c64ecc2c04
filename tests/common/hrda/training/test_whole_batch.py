"""What batch norms inside an encoder need of a batch, refused before a training starts."""

from __future__ import annotations

import pytest
import torch

from common.hrda import ModelSettings, SettingsError, build_segmentor
from common.hrda.training.whole_batch import require_normalisable
from common.hrda.windows import Box


def settings(encoder: str, side: int = 64) -> ModelSettings:
    return ModelSettings(encoder=encoder, crop_size=(side, side), decoder_channels=8, attention_channels=8)


@pytest.mark.parametrize(
    ("encoder", "crops", "side", "is_enough"),
    [
        ("efficientnet_lite0", 1, 64, False),
        ("mobilenetv4_small", 1, 64, False),
        ("efficientnet_lite0", 2, 64, True),
        ("efficientnet_lite0", 1, 128, True),
        ("pvt_v2_b0", 1, 64, True),
        ("mit_b0", 1, 64, True),
    ],
)
def test_what_cannot_be_normalised_is_refused_and_nothing_else(
    encoder: str, crops: int, side: int, is_enough: bool
) -> None:
    chosen = settings(encoder, side)
    model = build_segmentor(chosen).train()
    images, detail = torch.randn(crops, 3, side, side), Box(0, side // 2, 0, side // 2)
    if is_enough:
        require_normalisable(chosen, crops)
        model.train_logits(images, detail)
        return
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.train_logits(images, detail)
    with pytest.raises(SettingsError, match=rf"{encoder} see one value .* Raise batch_size .* to \[128, 128\]"):
        require_normalisable(chosen, crops)


def test_an_encoder_that_timm_does_not_know_is_refused_as_early() -> None:
    with pytest.raises(SettingsError, match="timm has no model of this name: did you mean pvt_v2_b1"):
        require_normalisable(settings("timm:pvt_v2_b1x"), 6)
