"""The smallest network that the catalogue's rules allow, for tests that read thousands of files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.hrda import CheckpointBundle, HRDASegmentor, ModelSettings, build_segmentor, save_checkpoint
from common.hrda.catalogue import MIT_SHAPES
from common.hrda.prediction.exported import METADATA_KEY

CLASSES = ("__bg__", "crack", "patch")
PALETTE = ((0, 0, 0), (220, 20, 60), (30, 60, 200))
SETTINGS = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=4, attention_channels=4)


@contextmanager
def tiny_encoder() -> Iterator[None]:
    """Within it, mit_b0 has one block a stage and channels from 8: a tenth of a megabyte of weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIT_SHAPES, "mit_b0", (8, (1, 1, 1, 1)))
        yield


def tiny_model(seed: int = 0) -> HRDASegmentor:
    """A network with drawn weights, in eval mode; within `tiny_encoder`."""
    torch.manual_seed(seed)
    model = build_segmentor(SETTINGS).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    return model


def tiny_checkpoint(path: Path, **content: Any) -> Path:
    """A checkpoint of it with a teacher; `content` takes the place of what it would hold."""
    bundle = CheckpointBundle(
        student=tiny_model(),
        teacher=tiny_model(1),
        classes=CLASSES,
        palette=PALETTE,
        settings={"model": SETTINGS.to_dict(), "input": {"short_edge": 64, "long_edge": 96}},
        metrics={"student/best_threshold/crack": 0.3, "student/iou/crack": 0.5},
        score=0.5,
        iteration=7,
    )
    save_checkpoint(path, bundle)
    if content:
        torch.save(torch.load(path, weights_only=True) | content, path)
    return path


def tiny_export() -> onnx.ModelProto:
    """What `export_onnx` writes, with two layers in place of the network."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["images", f"{end}.weight"], [f"{end}.maps"], kernel_shape=[4, 4], strides=[4, 4])
        for end in ("logits", "attention")
    ]
    nodes += [helper.make_node("Relu", ["logits.maps"], ["logits"])]
    nodes += [helper.make_node("Sigmoid", ["attention.maps"], ["attention"])]
    weights = [
        numpy_helper.from_array(rng.normal(size=(3, 3, 4, 4)).astype(np.float32), f"{end}.weight")
        for end in ("logits", "attention")
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, f"{name}.h", f"{name}.w"])
        for name in ("images", "logits", "attention")
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "network", ends[:1], ends[1:], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(tiny_description())})
    return model


def tiny_description() -> dict[str, Any]:
    """What it says of itself."""
    return {
        "format": 1,
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in PALETTE],
        "settings": {"model": SETTINGS.to_dict(), "input": {"short_edge": 64, "long_edge": 96}},
        "best_thresholds": {"crack": 0.3},
        "source": "0" * 64,
    }
