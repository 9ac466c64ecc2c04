"""Pseudo-label rules and masking in a run: they go on where they ended, and are heard of."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from common.data.datasets import Batch
from sandbox.synthetic.projects import write_project
from train.run.engine import run
from train.run.initial_weights import Start
from train.run.learner import Learner
from train.run.preparation import Domains
from train.run.request import RunRequest
from train.run.state import TrainingState
from train.run.watch import CollapseWatch
from train.settings.training import TrainSettings

SETTINGS = TrainSettings().with_overrides(
    [
        "iterations=10",
        "batch_size=2",
        "model.encoder=mit_b0",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=8",
        "model.attention_channels=8",
        "optimizer.warmup_iterations=0",
        "self_training.pseudo_label_rule=class_balanced",
        "self_training.masked_weight=1",
        "self_training.alpha_start=0.5",
        "self_training.alpha_ramp_iterations=5",
    ]
)


def learner() -> Learner:
    data = SimpleNamespace(classes=["background", "crack"], source_shares=(0.9, 0.1))
    return Learner(SETTINGS, data, torch.device("cpu"), Start(), lambda text: None)


def batch(seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images, target = torch.randn(2, 2, 3, 64, 64, generator=g)
    return Batch(images, (torch.rand(2, 64, 64, generator=g) < 0.3).long(), target, torch.ones(2, 64, 64).bool())


def test_cuts_masks_and_ramp_go_on_to_the_last_bit() -> None:
    first = learner()
    for done in range(2):
        first.learn(batch(done), done)
    saved = copy.deepcopy((first.student.state_dict(), first.teacher.state_dict(), first.extra_state()))
    second = learner()
    second.student.load_state_dict(saved[0])
    second.teacher.load_state_dict(saved[1])
    second.load_extra_state(saved[2])
    assert torch.equal(second.cuts(), first.cuts())
    scalars = [one.learn(batch(2), 2) for one in (first, second)]
    assert scalars[0]["loss/masked"] > 0
    assert {name: value.item() for name, value in scalars[0].items()} == {
        name: value.item() for name, value in scalars[1].items()
    }
    assert torch.equal(second.cuts(), first.cuts())


def test_warning_reaches_log_and_state(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("source", "val")):
        write_project(tmp_path / name, "source", 1, seed=seed, size=(96, 80), workers=1)
    monkeypatch.setattr(CollapseWatch, "look", lambda self, scalars: [f"{sorted(scalars)[0]} is worth a warning."])
    settings = SETTINGS.with_overrides(
        ["mode=source-only", "iterations=1", "data.workers=0", "data.scale={long_edge: null, short_edge: null}"]
    )
    state = TrainingState()
    domains = Domains(str(tmp_path / "source"), None, str(tmp_path / "val"))
    run(RunRequest(settings, domains, tmp_path / "run", device="cpu"), state=state)
    assert "loss/source is worth a warning." in state.messages
