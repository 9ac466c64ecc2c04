"""The rearranged and the exported network against the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.hrda import HRDASegmentor, InferenceSettings, ModelSettings, build_segmentor
from common.hrda.catalogue import MIT_SHAPES
from common.hrda.checks import CheckpointError, SettingsError
from common.hrda.prediction.runtime import OnnxNetwork, RuntimeUnavailableError, TorchNetwork, export_onnx
from common.hrda.settings import PRESETS
from common.hrda.sliding import sliding_logits

CLASSES = ("__bg__", "crack", "patch")
SETTINGS = {"model": {"crop_size": [128, 128], "encoder": "mit_b0"}, "input": {"short_edge": 64, "long_edge": 96}}


@pytest.fixture(scope="module")
def model() -> HRDASegmentor:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # One block a stage: exporting takes as long as there are blocks.
        patch.setitem(MIT_SHAPES, "mit_b0", (32, (1, 1, 1, 1)))
        return _model()


def _model(**changes: bool) -> HRDASegmentor:
    settings = ModelSettings(
        encoder="mit_b0", num_classes=3, crop_size=(128, 128), decoder_channels=16, attention_channels=8, **changes
    )
    model = build_segmentor(settings).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # As they stand after training: untouched ones would hide a wrong folding.
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (72, 128)])
def test_folding_changes_no_logits(model: HRDASegmentor, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    network = TorchNetwork(model, "cpu")
    with torch.no_grad():
        logits, attention = model.context_logits(x)
    torch.testing.assert_close(network.detail_logits(x), logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(network.context_logits(x)[0], logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(network.context_logits(x)[1], attention, atol=1e-5, rtol=0)


def test_folding_leaves_the_model_as_it_is(model: HRDASegmentor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    TorchNetwork(model, "cpu", "bfloat16")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
        assert value.dtype == before[name].dtype
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_stays_near_and_answers_in_float32(model: HRDASegmentor) -> None:
    x = torch.randn(1, 3, 128, 128)
    logits = TorchNetwork(model, "cpu", "bfloat16").detail_logits(x)
    exact = TorchNetwork(model, "cpu").detail_logits(x)
    assert logits.dtype == torch.float32
    assert float((logits - exact).abs().mean() / exact.std()) < 0.05


def test_precisions_that_the_device_does_not_have_are_refused(model: HRDASegmentor) -> None:
    with pytest.raises(SettingsError, match="float16 needs a GPU"):
        TorchNetwork(model, "cpu", "float16")
    with pytest.raises(SettingsError, match="did you mean 'bfloat16'"):
        TorchNetwork(model, "cpu", "bfloat")


@pytest.fixture(scope="module")
def exported(model: HRDASegmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    export_onnx(model, path, classes=CLASSES, palette=palette, settings=SETTINGS, best_thresholds={CLASSES[1]: 0.4})
    return path


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64, 64), (2, 72, 96)])
def test_onnx_gives_the_same_logits_for_any_batch_and_window(
    model: HRDASegmentor, exported: Path, size: tuple[int, int, int]
) -> None:
    x = torch.randn(size[0], 3, *size[1:])
    network = OnnxNetwork(exported)
    with torch.no_grad():
        logits, attention = model.context_logits(x)
    torch.testing.assert_close(network.detail_logits(x), logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(network.context_logits(x)[1], attention, atol=1e-3, rtol=0)


def test_whole_images_are_the_same_in_onnx_runtime(model: HRDASegmentor, exported: Path) -> None:
    x = torch.randn(1, 3, 150, 230)
    network = OnnxNetwork(exported)
    expected = sliding_logits(model, x, InferenceSettings())
    torch.testing.assert_close(sliding_logits(network, x, InferenceSettings()), expected, atol=1e-3, rtol=0)
    assert network.metadata.classes == CLASSES
    assert network.metadata.settings == SETTINGS
    assert network.metadata.best_thresholds == {CLASSES[1]: 0.4}


def test_serving_refines_as_training_does_at_all_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine branch folded, exported, and in windows of whole photos."""
    monkeypatch.setitem(MIT_SHAPES, "mit_b0", (32, (1, 1, 1, 1)))
    torch.manual_seed(1)
    model = _model(fine_branch=True)
    nn.init.normal_(model.decode_head.head.fine.conv_seg.weight, std=0.3)
    settings = {"model": {**SETTINGS["model"], "fine_branch": True}}
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    export_onnx(model, tmp_path / "fine.onnx", classes=CLASSES, palette=palette, settings=settings, best_thresholds={})
    networks = {"folded": (TorchNetwork(model, "cpu"), 1e-4), "exported": (OnnxNetwork(tmp_path / "fine.onnx"), 1e-3)}
    window, photo = torch.randn(2, 3, 72, 96), torch.randn(1, 3, 150, 230)
    with torch.no_grad():
        detail, context = model.detail_logits(window), model.context_logits(window)
    assert detail.shape[-2:] == (36, 48)
    for name, (network, tolerance) in networks.items():
        torch.testing.assert_close(network.detail_logits(window), detail, atol=tolerance, rtol=0)
        for found, wanted in zip(network.context_logits(window), context, strict=True):
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
        for preset in PRESETS:
            # Random weights are never sure: at a third the context is trusted in some windows.
            settings = InferenceSettings(preset=preset, trust_context=0.34 if preset == "balanced" else None)
            expected = sliding_logits(model, photo, settings)
            found = sliding_logits(network, photo, settings)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=f"{name}, {preset}")


def test_what_is_no_export_of_ours_is_refused_with_a_sentence(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(CheckpointError, match=r"text.onnx is not a network exported by this app"):
        OnnxNetwork(tmp_path / "text.onnx")
    with pytest.raises(CheckpointError, match=r"no exported network at .*none.onnx"):
        OnnxNetwork(tmp_path / "none.onnx")
    with pytest.raises(RuntimeUnavailableError, match="Install onnxruntime-gpu and TensorRT"):
        OnnxNetwork(exported, "tensorrt")
