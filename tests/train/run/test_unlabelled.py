"""Runs without labelled photos to measure on: how they choose, and what they say of it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.hrda import SettingsError, load_checkpoint
from common.metrics.unlabelled import MEASURE
from sandbox.synthetic.projects import write_project
from serve.model.deployment import Deployment
from train.__main__ import main
from train.page.result import describe
from train.run.domains import Domains
from train.run.engine import run
from train.run.preparation import NO_VALIDATION, prepare
from train.run.request import RunRequest
from train.run.state import Said, TrainingState, Validated
from train.run.unlabelled import CHOSEN_WITHOUT_LABELS
from train.run.validation import Measurement
from train.settings.training import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    "iterations=4",
    "batch_size=1",
    "model.encoder=mit_b0",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "optimizer.warmup_iterations=0",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "validation={interval: 2, previews: 1}",
]


def settings(*overrides):
    return TrainSettings().with_overrides([*SMALL, *overrides])


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, domain, count, size in (("source", "source", 3, (64, 80)), ("target", "real_like", 3, (72, 64))):
        write_project(root / name, domain, count, seed=len(name), size=size, workers=1)
    return Domains(str(root / "source"), str(root / "target"), None)


def heard_of(request):
    changes, state = [], TrainingState()
    state.subscribe(lambda _, change: changes.append(change))
    return run(request, state=state), changes


@pytest.mark.parametrize("mode", ["uda", "control"])
def test_run_without_validation_chooses_by_the_target_and_says_so(domains, tmp_path, mode):
    result, changes = heard_of(RunRequest(settings(f"mode={mode}"), domains, tmp_path / "run", device="cpu"))
    said = [change.text for change in changes if isinstance(change, Said)]
    assert NO_VALIDATION in said and said.count(CHOSEN_WITHOUT_LABELS) == 1
    measured = [change.metrics for change in changes if isinstance(change, Validated)]
    assert len(measured) == 2
    scores = [metrics[f"{model}/{MEASURE}"] for metrics in measured for model in ("student", "teacher")]
    best = load_checkpoint(result.best)
    assert best.score == max(scores) == result.metrics[f"{'teacher' if best.serve_teacher else 'student'}/{MEASURE}"]
    assert best.iteration == (2 if scores.index(max(scores)) < 2 else 4)
    assert 0 < best.best_thresholds["crack"] < 1
    assert Deployment.from_file(result.best, "cpu").best_thresholds == best.best_thresholds
    pictures = [preview for change in changes if isinstance(change, Validated) for preview in change.previews]
    assert {preview.kind for preview in pictures} == ({"target"} if mode == "uda" else set())
    assert describe("best.pth", {MEASURE: 0.5, "best_threshold/crack": 0.4}) == f"best.pth. {CHOSEN_WITHOUT_LABELS}"


def test_photos_of_the_target_are_compared_in_their_labels_absence_only(domains, tmp_path):
    given = dataclasses.replace(domains, val=domains.target)
    alone = prepare(settings("mode=control"), domains, None, tmp_path, lambda _: None)
    assert (len(alone.unlabelled), alone.validation, alone.target) == (3, [], [])
    adapted = prepare(settings(), domains, None, tmp_path, lambda _: None)
    assert adapted.unlabelled == adapted.target
    labelled = prepare(settings(), given, None, tmp_path, lambda _: None)
    assert (labelled.unlabelled, len(labelled.validation)) == ([], 3)


@pytest.mark.parametrize(
    ("mode", "lacking", "needed"),
    [
        ("source-only", "target", "Name labelled photos as validation, or a target"),
        ("supervised", "val", "Name labelled photos as validation."),
    ],
)
def test_nothing_to_measure_on_is_refused(domains, tmp_path, mode, lacking, needed):
    given = dataclasses.replace(domains, **{lacking: None})
    with pytest.raises(SettingsError, match=f"nothing to measure on. {needed}"):
        prepare(settings(f"mode={mode}"), given, None, tmp_path / "masks", lambda _: None)


def test_measure_without_labels_does_not_outrank_one_with_labels():
    """A run may go on with or without labelled photos; the scores are not of one kind."""
    labelled = Measurement(5, 0.4, False, {"student/mIoU": 0.4})
    without = Measurement(9, 0.3, False, {f"student/{MEASURE}": 0.3})
    better = dataclasses.replace(without, score=0.31)
    assert without.beats(labelled) and labelled.beats(without)
    assert better.beats(without) and not without.beats(better) and not labelled.beats(labelled)


def test_same_run_chooses_the_same(domains, tmp_path):
    both = [
        run(RunRequest(settings("data.skip_broken=true"), domains, tmp_path / str(number), device="cpu"))
        for number in range(2)
    ]
    assert both[0].metrics == both[1].metrics
    weights = [torch.load(one.best, weights_only=True)["state_dict"] for one in both]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_command_line_trains_without_val_and_suggests_what_to_label(domains, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    (tmp_path / "settings.yaml").write_text(settings().to_yaml())
    monkeypatch.chdir(Path(domains.source).parent)
    arguments = ["--source", "source", "--target", "target:ds0", "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--settings", str(tmp_path / "settings.yaml")]) == 0
    assert CHOSEN_WITHOUT_LABELS in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["suggest", "--run", str(out), "--count", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(",") for line in (out / "suggest.csv").read_text().splitlines()]
    assert rows[0] == ["rank", "photo", "uncertainty", "distance", "path"]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    assert float(rows[1][2]) == max(float(row[2]) for row in rows[1:]) and rows[1][3] == "" and float(rows[2][3]) > 0
    assert len({row[1] for row in rows[1:]}) == 2
    for row in rows[1:]:
        assert row[1] in printed and np.fromfile(row[4], np.uint8).size > 0
