"""The network by itself, without the reference's fixtures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.hrda import HRDASegmentor, ModelSettings, build_segmentor
from common.hrda.catalogue import ENCODERS
from common.hrda.network.heads import resize
from common.hrda.network.mit import HRDAMixVisionTransformer
from common.hrda.network.segmentor import draw_detail_box, segmentation_loss
from common.hrda.training.memory import count_parameters
from common.hrda.windows import Box

SMALL = {"encoder": "mit_b0", "num_classes": 3, "crop_size": (64, 128), "decoder_channels": 16, "attention_channels": 8}


@pytest.fixture(scope="module")
def model() -> HRDASegmentor:
    torch.manual_seed(0)
    return build_segmentor(ModelSettings(**SMALL)).eval()


# SegFormer's table of encoders (Xie et al., table 6), in millions of parameters.
PUBLISHED_MILLIONS = {"mit_b0": 3.3, "mit_b1": 13.2, "mit_b2": 24.2, "mit_b3": 44.1, "mit_b4": 60.8, "mit_b5": 81.4}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_catalogue_has_the_published_encoders(name: str) -> None:
    encoder = HRDAMixVisionTransformer(name).eval()
    features = encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(f.shape[1] for f in features) == ENCODERS[name].channels
    assert round(count_parameters(encoder) / 1e6, 1) == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize(("classwise", "fine"), [(True, False), (False, False), (True, True)])
def test_forward_backward_reaches_every_parameter(classwise: bool, fine: bool) -> None:
    torch.manual_seed(0)
    model = build_segmentor(ModelSettings(**SMALL, attention_classwise=classwise, fine_branch=fine)).train()
    images, labels = torch.randn(2, 3, 64, 128), torch.randint(0, 3, (2, 64, 128))
    logits = model.train_logits(images, Box(16, 48, 40, 104))
    finer = 2 if fine else 1
    assert logits.fused.shape == (2, 3, 16 * finer, 32 * finer)
    assert logits.detail.shape == (2, 3, 8 * finer, 16 * finer)
    sum(model.losses(logits, labels).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_detail_counts_only_inside_its_box(model: HRDASegmentor) -> None:
    """Outside the sub-crop the fused logits are the context's alone, inside they follow the detail."""
    images = torch.randn(1, 3, 64, 128)
    box = Box(16, 48, 32, 96)
    with torch.no_grad():
        before = model.train_logits(images, box)
        context = resize(model.decode_head(before.context_features), (16, 32))
    outside = torch.ones(16, 32, dtype=torch.bool)
    # One cell of the low resolution, two of the fused one, is mixed by the bilinear upsampling.
    outside[4 - 2 : 12 + 2, 8 - 2 : 24 + 2] = False
    torch.testing.assert_close(before.fused[..., outside], context[..., outside])
    assert not torch.allclose(before.fused[..., ~outside], context[..., ~outside], atol=1e-4)


def test_detail_box_is_drawn_from_all_places_of_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = {draw_detail_box((64, 128), generator) for _ in range(600)}
    assert {b.top for b in boxes} == {0, 8, 16, 24, 32}
    assert {b.left for b in boxes} == set(range(0, 65, 8))
    assert {(b.bottom - b.top, b.right - b.left) for b in boxes} == {(32, 64)}


def test_loss_counts_ignored_pixels_in_the_mean_only() -> None:
    logits = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (1, 4, 4))
    labels[0, 0] = 255
    weights = torch.rand(1, 4, 4, dtype=torch.float64)
    class_weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = 0.0
    log_probabilities = logits.log_softmax(1)
    for y in range(4):
        for x in range(4):
            label = int(labels[0, y, x])
            if label != 255:
                expected -= weights[0, y, x] * class_weights[label] * log_probabilities[0, label, y, x]
    torch.testing.assert_close(segmentation_loss(logits, labels, weights, class_weights), expected / 16)


def test_crop_inference_equals_the_formula(model: HRDASegmentor) -> None:
    """fused = up2((1 − att) ⊙ s_LR) + up2(att) ⊙ mean of the nine decoded windows, written out in float64."""
    model = model.double()
    x = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        context_features = model.backbone(torch.nn.functional.avg_pool2d(x, 2))
        attention = torch.sigmoid(model.decode_head.scale_attention(context_features))
        total, count = torch.zeros(2, 3, 16, 32, dtype=torch.float64), torch.zeros(16, 32, dtype=torch.float64)
        for top in (0, 16, 32):
            for left in (0, 32, 64):
                piece = model.decode_head(model.backbone(x[..., top : top + 32, left : left + 64]))
                total[..., top // 4 : top // 4 + 8, left // 4 : left // 4 + 16] += piece
                count[top // 4 : top // 4 + 8, left // 4 : left // 4 + 16] += 1
        context = (1 - attention) * model.decode_head(context_features)
        expected = up2(context) + up2(attention) * total / count
        parts = model.crop_parts(x)
    model.float()
    # Scale 0.5, bilinear, corners not aligned: the mean of 2×2 pixels.
    torch.testing.assert_close(parts.fused, expected)


def test_fine_branch_refines_the_detail_and_leaves_the_context_as_it_is() -> None:
    torch.manual_seed(0)
    model = build_segmentor(ModelSettings(**SMALL, fine_branch=True)).eval()
    x = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        coarse, start = model.decode_head(model.backbone(x)), model.detail_logits(x)
        before = model.crop_parts(x)
        torch.nn.init.normal_(model.decode_head.head.fine.conv_seg.weight)
        after = model.crop_parts(x)
        total, count = torch.zeros(1, 3, 32, 64), torch.zeros(32, 64)
        for top in (0, 16, 32):
            for left in (0, 32, 64):
                total[..., top // 2 : top // 2 + 16, left // 2 : left // 2 + 32] += model.detail_logits(
                    x[..., top : top + 32, left : left + 64]
                )
                count[top // 2 : top // 2 + 16, left // 2 : left // 2 + 32] += 1
    torch.testing.assert_close(start, up2(coarse))
    assert torch.equal(before.context, after.context) and torch.equal(before.attention, after.attention)
    assert not torch.allclose(before.detail, after.detail, atol=1e-2)
    torch.testing.assert_close(after.detail, total / count, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        after.fused, up4((1 - after.attention) * after.context) + up4(after.attention) * after.detail
    )


def up4(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


def up2(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
