"""A labelled part of the target and sampling by class, from folders to a finished run."""

import dataclasses

import numpy as np
import pytest
import torch

from common.hrda import SettingsError
from sandbox.synthetic.projects import write_project
from train.run.engine import run
from train.run.preparation import Domains, build_batches, prepare
from train.run.request import RunRequest
from train.run.state import Progressed, Said, TrainingState
from train.settings.training import TrainSettings

SMALL = [
    "iterations=2",
    "batch_size=4",
    "log_interval=1",
    "model.encoder=mit_b0",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "optimizer.warmup_iterations=0",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "data.rare_class_sampling.mode=auto",
    "validation.interval=2",
    "validation.previews=0",
]
COUNTS = {"source": 4, "target": 3, "val": 2, "labelled": 2}


def settings(*overrides):
    return TrainSettings().with_overrides([*SMALL, *overrides])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_project(
            root / name, "source" if name == "source" else "real_like", count, seed=seed, size=(96, 80), workers=1
        )
    return Domains(*(str(root / name) for name in COUNTS))


@pytest.fixture(scope="module")
def prepared(domains, tmp_path_factory):
    said = []
    return prepare(settings(), domains, None, tmp_path_factory.mktemp("masks"), said.append), said


def test_choice_of_sampling_is_said_in_a_line_for_each_labelled_domain(prepared):
    data, said = prepared
    lines = [line for line in said if line.startswith("Rare class sampling")]
    assert ["source crops" in line or "labelled target crops" in line for line in lines] == [True, True]
    assert all("crack 75%" in line and "at temperature" in line and "\n" not in line for line in lines)
    assert "4 labelled photos, 2 labelled target photos, 3 target photos, 2 validation photos" in said[-1]
    assert [len(photos) for photos in (data.source, data.labelled_target, data.target)] == [4, 2, 3]


def test_labelled_target_photos_are_in_the_batches_of_a_run(prepared):
    data, _ = prepared
    mixed = build_batches(settings("iterations=8"), data)
    without = build_batches(settings("iterations=8"), dataclasses.replace(data, labelled_target=[]))
    other = [[not torch.equal(a, b) for a, b in zip(mixed[k][0], without[k][0], strict=True)] for k in range(8)]
    assert np.array(other).mean(axis=0).tolist() == [0, 0, 0, 1], "the last of each batch of four"


def test_run_with_a_labelled_part_of_the_target_learns_from_it(domains, tmp_path):
    heard = []
    state = TrainingState()
    state.subscribe(lambda _, change: heard.append(change))
    result = run(RunRequest(settings(), domains, tmp_path, device="cpu"), state=state)
    assert result.iteration == 2
    assert any(isinstance(change, Said) and "labelled target crops" in change.text for change in heard)
    assert all(np.isfinite(list(change.scalars.values())).all() for change in heard if isinstance(change, Progressed))


@pytest.mark.parametrize("change", ["mode=supervised", "data.labelled_target_share=0"])
def test_labelled_part_that_is_not_learnt_from_is_not_read(domains, tmp_path, change):
    said = []
    given = dataclasses.replace(domains, target=domains.labelled_target, labelled_target=str(tmp_path / "nowhere"))
    data = prepare(settings(change), given, None, tmp_path, said.append)
    assert data.labelled_target == []
    assert data.labelled_target_sampler is None


def test_measuring_on_the_labelled_part_of_the_target_is_refused_before_anything_is_read(domains, tmp_path):
    same = dataclasses.replace(domains, labelled_target=domains.val)
    with pytest.raises(SettingsError, match="2 labelled target photos are validation photos too, such as ds0/"):
        prepare(settings(), same, None, tmp_path / "masks", lambda _: None)
    assert not (tmp_path / "masks").exists()
