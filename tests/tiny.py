"""The smallest network that the catalogue's rules allow, for tests that read thousands of files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.hrda import CheckpointBundle, HRDASegmentor, ModelSettings, build_segmentor, save_checkpoint
from common.hrda.catalogue import ENCODERS

CLASSES = ("__bg__", "crack", "patch")
PALETTE = ((0, 0, 0), (220, 20, 60), (30, 60, 200))
SETTINGS = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=4, attention_channels=4)


@contextmanager
def tiny_encoder() -> Iterator[None]:
    """Within it, mit_b0 has one block a stage and channels from 8: a tenth of a megabyte of weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "mit_b0", replace(ENCODERS["mit_b0"], embed_dims=8, depths=(1, 1, 1, 1)))
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
