"""Checkpoints on encoders of timm: served like all others, with what is known of the weights that they started from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, load_checkpoint, save_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.network import encoders
from common.hrda.prediction.runtime import export_checkpoint
from serve.model.deployment import ONNXRUNTIME, Deployment
from serve.model.settings import ServeSettings
from tests.serve.conftest import serving
from tests.serve.requests_of_clients import post

CLASSES, PALETTE = ("__bg__", "crack"), ((0, 0, 0), (255, 0, 0))
ORIGIN = {"source": "the file mine.safetensors", "licence": "of the file"}


def checkpoint(path: Path, encoder: str, **settings: object) -> Path:
    model = ModelSettings(encoder=encoder, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    torch.manual_seed(0)
    network = build_segmentor(model).eval()
    torch.nn.init.normal_(network.decode_head.head.conv_seg.weight, std=1)
    save_checkpoint(path, CheckpointBundle(network, CLASSES, PALETTE, settings={"model": model.to_dict(), **settings}))
    return path


def test_a_checkpoint_and_its_export_predict_alike_and_say_what_they_started_from(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth", "efficientnet_lite0", encoder_weights=ORIGIN)
    photo = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
    served = Deployment.from_file(path, "cpu")
    export_checkpoint(path, tmp_path / "best.onnx")
    exported = Deployment.from_file(tmp_path / "best.onnx", "cpu", ONNXRUNTIME)
    for deployment in (served, exported):
        assert deployment.encoder == "efficientnet_lite0"
        assert deployment.weights_origin.to_dict() == ORIGIN
    found = [each.predict([photo], ServeSettings(), probabilities=True) for each in (served, exported)]
    ours, theirs = (one.probabilities for [one] in found)
    np.testing.assert_allclose(theirs.astype(float), ours.astype(float), atol=2e-3)
    assert ours.astype(float).std() > 1e-3


def test_a_session_tells_source_and_licence_of_what_its_model_started_from(make_checkpoint, no_instance) -> None:
    with serving(make_checkpoint("mine.pth", encoder_weights=ORIGIN)) as running:
        assert post(running, "get_session_info").json()["encoder_weights"] == ORIGIN


def test_any_model_of_timm_is_served_by_its_name(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth", "timm:test_vit3.r160_in1k")
    [found] = Deployment.from_file(path, "cpu").predict([np.zeros((70, 90, 3), np.uint8)], ServeSettings())
    assert found.labels.shape == (70, 90)
    assert load_checkpoint(path).metadata.weights_origin is None


@pytest.mark.parametrize(
    ("encoder", "wrong"),
    [
        ("timm:../x", r"settings\.model\.encoder must be one of .* or timm:<name in timm>"),
        ("timm:hf-hub:someone/model", r"settings\.model\.encoder must be one of"),
        ("timm:no_such_model", "timm has no model of this name"),
    ],
)
def test_encoders_that_are_none_are_refused_without_repeating_them(tmp_path: Path, encoder: str, wrong: str) -> None:
    path = checkpoint(tmp_path / "best.pth", "mit_b0")
    content = torch.load(path, weights_only=True)
    content["settings"]["model"]["encoder"] = encoder
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=wrong) as refused:
        Deployment.from_file(path, "cpu")
    assert encoder.removeprefix("timm:") not in str(refused.value)


@pytest.mark.parametrize(
    "origin", ["text", {"source": "x"}, {"source": "x", "licence": "y" * 400}, {"source": 1, "licence": "y"}]
)
def test_what_a_file_says_of_its_start_is_checked(tmp_path: Path, origin: object) -> None:
    path = checkpoint(tmp_path / "best.pth", "mit_b0", encoder_weights=origin)
    with pytest.raises(CheckpointError, match=r"settings\.encoder_weights"):
        Deployment.from_file(path, "cpu")


def test_without_timm_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "best.pth", "efficientnet_lite0")
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="_lite0 needs the package timm, which is not installed. Run: pip"):
        Deployment.from_file(path, "cpu")
