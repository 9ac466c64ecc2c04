"""One tester for every encoder of the catalogue: what a network on it must do in training, on disk and in service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.hrda import (
    CheckpointBundle,
    HRDASegmentor,
    ModelSettings,
    build_segmentor,
    load_checkpoint,
    save_checkpoint,
)
from common.hrda.catalogue import ENCODERS, MIT_SHAPES
from common.hrda.network import from_timm
from common.hrda.network.segmentor import TrainLogits
from common.hrda.prediction.runtime import OnnxNetwork, TorchNetwork, export_onnx
from common.hrda.training.memory import count_parameters
from common.hrda.windows import Box

CLASSES, PALETTE = ("__bg__", "crack", "patch"), ((0, 0, 0), (255, 0, 0), (0, 255, 0))
COMPUTED = (
    "mit_b0",
    "pvt_v2_b0",
    "convnext_tiny",
    "sam2_hiera_tiny",
    "caformer_s18",
    "efficientnet_lite0",
    "mobilenetv4_small",
    "dinov2_small",
)
"""The entries that are computed: one of each family at the least. Of the others, which have more of the same blocks,
shapes and gradients are followed without values."""
EXPORTED = ("convnext_tiny", "dinov2_small")
"""What is exported each time: one with maps at all strides, and one with a pyramid. tests/serve/test_encoders.py
exports one of batch norms, and the tests of runtimes a MiT. Exporting takes a quarter of a minute each; all entries:

    EVERY_EXPORT=1 python -m pytest tests/common/hrda/network/test_every_encoder.py -k exported
"""
FEW_BLOCKS: dict[str, dict[str, Any]] = {
    "pvt": {"depths": (1, 1, 1, 1)},
    "convnext": {"depths": (1, 1, 1, 1)},
    "sam2": {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    "dinov2": {"depth": 3},
}
"""Options of timm by the beginning of an entry's name: fewer of the same blocks, as exporting takes as long as there
are blocks. The others are whole."""
ROUNDING = 2**-5
"""Share of the largest logit by which bfloat16, with its 8 bits and some tens of layers, may move one."""


def settings_of(name: str) -> ModelSettings:
    return ModelSettings(
        encoder=name, num_classes=3, crop_size=(64, 64), decoder_channels=8, attention_channels=4, drop_path=0.0
    )


def shaken(model: HRDASegmentor) -> HRDASegmentor:
    """The network as after some training: scales and biases that start at 0, 1 or next to nothing would hide a mistake
    in what they scale."""
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            with torch.no_grad():
                around = 1.0 if name.endswith("weight") or "gamma" in name else 0.0
                parameter.copy_(around + 0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module", params=COMPUTED)
def model(request: pytest.FixtureRequest) -> Iterator[HRDASegmentor]:
    torch.manual_seed(0)
    model = shaken(build_segmentor(settings_of(request.param))).eval()
    model.entry = request.param
    yield model


def images(height: int = 64, width: int = 64, count: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def loss_of(model: HRDASegmentor, logits: TrainLogits, device: str = "cpu") -> Tensor:
    labels = torch.zeros(len(logits.fused), 64, 64, dtype=torch.int64, device=device)
    labels[:, 20:40] = 1
    return sum(model.losses(logits, labels).values())


def assert_near(found: Tensor, wanted: Tensor, share: float) -> None:
    """Equal up to a share of the largest number, and of 1."""
    torch.testing.assert_close(found, wanted, atol=share * max(1.0, float(wanted.abs().max())), rtol=0)


def gradients(model: HRDASegmentor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss_of(model, model.train_logits(images(count=2), Box(16, 48, 8, 40))).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def test_every_parameter_learns_and_checkpointing_changes_no_gradient(model: HRDASegmentor) -> None:
    plain = gradients(model)
    assert [name for name, gradient in plain.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in plain.values())
    model.backbone.activation_checkpointing = True
    try:
        again = gradients(model)
    finally:
        model.backbone.activation_checkpointing = False
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_odd_sizes_give_maps_at_every_stride(model: HRDASegmentor) -> None:
    with torch.no_grad():
        maps = model.backbone(images(72, 104))
        assert model(images(72, 104)).shape == (1, 3, 72, 104)
    sizes = [(-(-72 // stride), -(-104 // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(each.shape[1:]) for each in maps] == [
        (channels, *size) for channels, size in zip(ENCODERS[model.entry].channels, sizes, strict=True)
    ]


def test_what_is_saved_is_what_is_loaded(model: HRDASegmentor, tmp_path: Path) -> None:
    settings = {"model": settings_of(model.entry).to_dict()}
    save_checkpoint(tmp_path / "a.pth", CheckpointBundle(model, CLASSES, PALETTE, settings=settings))
    loaded = load_checkpoint(tmp_path / "a.pth").model
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        assert_near(loaded(images(72, 104)), model(images(72, 104)), 1e-6)


def test_the_serving_network_is_the_trained_one_also_in_bfloat16(model: HRDASegmentor) -> None:
    x = images(96, 128)
    with torch.no_grad():
        logits, attention = model.context_logits(x)
    served = TorchNetwork(model, "cpu")
    assert_near(served.detail_logits(x), logits, 1e-4)
    torch.testing.assert_close(served.context_logits(x)[1], attention, atol=1e-4, rtol=0)
    best = logits.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > ROUNDING * logits.abs().max()
    assert clear.float().mean() > 0.25, "labels that rounding decides prove nothing"
    reduced = TorchNetwork(model, "cpu", "bfloat16").detail_logits(x)
    same = reduced.argmax(1) == logits.argmax(1)
    assert same[clear].float().mean() >= 0.999


@pytest.mark.parametrize("name", ENCODERS if os.environ.get("EVERY_EXPORT") else EXPORTED)
def test_the_exported_network_is_the_trained_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, fewer = from_timm.timm.create_model, FEW_BLOCKS.get(name.partition("_")[0], {})
    monkeypatch.setattr(from_timm.timm, "create_model", lambda *args, **options: whole(*args, **options, **fewer))
    if name in MIT_SHAPES:
        monkeypatch.setitem(MIT_SHAPES, name, (MIT_SHAPES[name][0], (1, 1, 1, 1)))
    torch.manual_seed(0)
    model = shaken(build_segmentor(settings_of(name))).eval()
    path = tmp_path / "model.onnx"
    settings = {"model": settings_of(name).to_dict()}
    export_onnx(model, path, classes=CLASSES, palette=list(PALETTE), settings=settings, best_thresholds={})
    network = OnnxNetwork(path)
    for x in (images(64, 96), images(72, 64, count=2)):
        with torch.no_grad():
            logits, attention = model.context_logits(x)
        assert_near(network.detail_logits(x), logits, 1e-3)
        torch.testing.assert_close(network.context_logits(x)[1], attention, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_catalogue_says_what_the_network_is(name: str) -> None:
    with torch.device("meta"):
        model = build_segmentor(settings_of(name)).train()
        logits = model.train_logits(torch.zeros(2, 3, 64, 64), Box(16, 48, 8, 40))
        loss_of(model, logits, "meta").backward()
    assert model.backbone.channels == ENCODERS[name].channels
    assert count_parameters(model.backbone) == ENCODERS[name].parameters
    assert [each.shape[1] for each in logits.context_features] == list(ENCODERS[name].channels)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
