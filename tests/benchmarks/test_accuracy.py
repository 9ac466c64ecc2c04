"""The accuracy protocol: no photo is learnt from or chosen on and reported too, and the table says what it is."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.arms import ALL, ARMS, FIRST_PHASES, FOLDS, FROM_RANDOM, Training, first_phases, trainings
from benchmarks.accuracy.photos import Folds, labelled_photos, write_part
from benchmarks.accuracy.protocol import Protocol
from benchmarks.accuracy.scores import Elsewhere, Figures, Predicted, best_threshold, by_threshold, table, verdict
from common.data.project import open_project
from sandbox.synthetic.projects import write_project
from train.settings.training import TrainSettings

SMALL = ("pretrained=none", "iterations=1", "batch_size=1", "model.crop_size=[64, 64]", "optimizer.warmup_iterations=0")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 12 labelled photos, and one without labels in another dataset."""
    folder = tmp_path_factory.mktemp("real")
    write_project(folder, "real_like", 12, size=(64, 96), dataset="labelled", workers=1)
    write_project(folder, "real_like", 2, seed=1, size=(64, 96), dataset="bare", labelled=False, workers=1)
    return folder


def deal(real: Path) -> Folds:
    return Folds.deal(labelled_photos(f"{real}:labelled"), FOLDS)


def keys(folds: tuple) -> list[str]:
    return [record.key for fold in folds for record in fold]


def test_halves_are_apart_and_hold_all_photos(real: Path):
    folds = deal(real)
    assert sorted(keys(folds.choosing) + keys(folds.reporting)) == sorted(r.key for r in labelled_photos(str(real)))
    assert len(keys(folds.choosing)) == len(keys(folds.reporting)) == 6


def test_photos_without_a_crack_are_left_out(real: Path):
    assert labelled_photos(f"{real}:bare") == []


def test_each_photo_is_learnt_from_in_all_folds_but_its_own(real: Path):
    folds = deal(real)
    for number in range(FOLDS):
        learnt = {record.key for record in folds.left_in(number)}
        left_out = {record.key for half in (folds.choosing, folds.reporting) for record in half[number]}
        assert learnt.isdisjoint(left_out)
        assert len(learnt) + len(left_out) == 12


def test_order_of_the_files_does_not_matter(real: Path):
    photos = labelled_photos(str(real))
    assert Folds.deal(photos[::-1], FOLDS) == Folds.deal(photos, FOLDS)


def test_part_of_a_project_is_a_project_of_the_same_photos(real: Path, tmp_path: Path):
    photos = deal(real).left_in(0)
    for _ in range(2):  # The second time finds the links of the first.
        write_part(tmp_path / "part", photos, real / "meta.json")
    part = open_project(str(tmp_path / "part"))
    assert [record.image_path.read_bytes() for record in part] == [record.image_path.read_bytes() for record in photos]
    written = [json.loads(record.annotation_path.read_text()) for record in part]
    assert written == [json.loads(record.annotation_path.read_text()) for record in photos]


def protocol(real: Path, out: Path, *overrides: str) -> Protocol:
    return Protocol(
        out=out,
        settings=TrainSettings().with_overrides([*SMALL, *overrides]),
        source="source",
        target=f"{real}:bare",
        meta=real / "meta.json",
        folds=deal(real),
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize("name", ALL)
def test_arms_differ_in_what_they_say(real: Path, tmp_path: Path, name: str):
    made = protocol(real, tmp_path)
    training, *others = trainings([name], [7])
    settings = made.settings_of(training)
    assert (settings.mode, settings.seed) == (ALL[name].mode, 7)
    length = [f"{key}={ALL[name].length}" for key in ("iterations", "validation.interval")]
    goes_on = ALL[name].goes_on_from is not None
    own = [*length, *ALL[name].changes, f"mode={ALL[name].mode}", "seed=7"]
    assert settings == made.settings.with_overrides(own if goes_on else [FROM_RANDOM, *own])
    from_a_file = protocol(real, tmp_path, "pretrained=/weights/lite0.pth")
    kept = "pretrained=none" if goes_on else "pretrained=/weights/lite0.pth"
    # Weights of a file are not unsettled by the rate of drawn ones.
    assert from_a_file.settings_of(training) == made.settings.with_overrides([*own, kept])
    if not ALL[name].suggested:
        domains = made.domains(training)
        assert ("target" in domains) == (settings.mode == "uda")
        assert (domains["source"] == "source") == (name != "supervised")
        assert ("labelled-target" in domains) == (ALL[name].labels > 0)
    assert len(others) == (FOLDS - 1 if name == "supervised" else 0)


def test_arms_that_are_compared_with_each_other_go_on_from_the_same_network():
    assert [first.name for first in first_phases(["control", "HRDA", "supervised"], [0, 1])] == [
        "first_phase/seed0",
        "first_phase/seed1",
    ]
    assert first_phases(["source-only"], [0]) == []
    for arm in ALL.keys() - FIRST_PHASES.keys():
        # As many iterations in all.
        before = ALL[arm].goes_on_from
        assert ALL[arm].length + (FIRST_PHASES[before].length if before else 0) == 5


@pytest.mark.parametrize("name", [name for name, arm in ALL.items() if arm.goes_on_from])
def test_what_goes_on_has_the_network_and_the_scale_of_its_first_phase(real: Path, tmp_path: Path, name: str):
    made = protocol(real, tmp_path)
    before, after = (made.settings_of(Training(arm, 0)) for arm in (ALL[name].goes_on_from, name))
    if name != "HRDA + late fine branch":
        assert before.model == after.model
    assert before.data.scale == after.data.scale


def test_labels_are_few_among_many_drawn_by_the_seed_and_not_chosen_on(real: Path, tmp_path: Path):
    made = protocol(real, tmp_path)
    few, many = (made.labelled(Training(arm, 0)) for arm in ("HRDA + 5 labels", "HRDA + 24 labels"))
    assert few == many[:5]
    assert len(many) == 6
    assert made.labelled(Training("HRDA + 5 labels", 1)) != few
    left = [record.key for fold in made.left_to_choose_on(Training("HRDA + 5 labels", 0)) for record in fold]
    assert sorted([*left, *(record.key for record in few)]) == sorted(keys(made.folds.choosing))
    # Nothing is left to choose on: the training chooses without labels.
    assert "val" not in made.domains(Training("HRDA + 24 labels", 0))


def test_nothing_that_is_reported_is_chosen_on_or_learnt_from(real: Path, tmp_path: Path):
    made = protocol(real, tmp_path)
    made.write_parts()
    for training in trainings([*ARMS, "HRDA + 5 labels"], [0]):
        made.write_labelled(training)
        seen = {role: spec for role, spec in made.domains(training).items() if role != "target" and spec != "source"}
        used = {path.resolve() for spec in seen.values() for path in (Path(spec) / "ds" / "img").iterdir()}
        reported = [
            record.image_path.resolve()
            for number, fold in enumerate(made.folds.reporting)
            for record in fold
            if training.fold in (None, number)
        ]
        assert reported
        assert used.isdisjoint(reported)


def test_threshold_is_chosen_on_the_one_half_and_measured_on_the_other():
    truth = np.zeros((32, 32), np.uint8)
    truth[10:12] = 1
    sure, unsure = np.where(truth, 0.9, 0.1), np.where(truth, 0.45, 0.25)
    choosing, reporting = [Predicted(truth, unsure)], [Predicted(truth, sure)]
    figures = Figures.at(best_threshold(choosing), reporting)
    assert 0.25 < figures.threshold <= 0.45
    assert figures.iou == figures.iou_at_half == figures.cldice == 100
    other = Figures.at(best_threshold(reporting), choosing)
    assert other.threshold == 0.5
    assert other.iou == other.recall == 0


def test_false_positives_are_what_lies_far_from_every_crack_in_a_megapixel():
    truth = np.zeros((100, 100), np.uint8)
    truth[10:12] = 1
    crack = np.where(truth, 0.9, 0.1)
    crack[12:14, :50] = 0.9  # Beside the crack: within two pixels.
    crack[60, :7] = 0.9
    elsewhere = Elsewhere.at(0.5, by_threshold([Predicted(truth, crack)]), truth.size)
    assert elsewhere.invented == Figures.at(0.5, [Predicted(truth, crack)]).invented == 700
    assert elsewhere.best_f1_2px == pytest.approx(elsewhere.f1_2px)
    bare = Predicted(np.zeros((100, 100), np.uint8), crack)
    assert Elsewhere.at(0.5, by_threshold([bare]), truth.size).invented == 10 * (200 + 100 + 7) * 10


def test_table_gives_mean_and_deviation_and_the_verdict_compares_seed_by_seed():
    def figures(*hits: int) -> list[Figures]:
        """Of 6 photos with 100 pixels of crack, of which so many are found and no others."""
        counts = np.zeros((6, 2, 10), np.int64)
        made = []
        for hit in hits:
            counts[:, 1] = (hit, hit, 100, hit, hit, hit, 100, 0, 0, 0)
            made.append(Figures(hit - 1, 0.5, hit, 50, 50, 60, 70, 0.0, counts.copy()))
        return made

    results = {"control": figures(30, 34), "HRDA": figures(33, 36), "supervised": figures(40, 40)}
    assert "| HRDA | 33.5 ± 2.1 | 34.5 ± 2.1 | 0.50 ± 0.00 |" in table(results)
    # All photos are alike, so that the interval is the value.
    assert verdict(results) == [
        "HRDA: crack IoU +2.5 ± 0.7 at 0.5, +2.5 ± 0.7 at the chosen threshold (2.5 to 2.5) to the control; 31% "
        "(31 to 31) of the gap closed."
    ]


def test_protocol_from_photos_to_table_and_what_is_done_is_not_repeated(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("benchmarks.accuracy.photos.SOURCE_PHOTOS", 3)
    monkeypatch.setattr("benchmarks.accuracy.photos.SOURCE_SIDE", 64)
    changes = [f"--set={change}" for change in (*SMALL, "inference.stride=[64, 64]")]
    command = [f"--target={real}:bare", f"--labelled={real}:labelled", f"--out={tmp_path}", *changes]
    command += ["--arms", "control", "HRDA", "HRDA + 5 suggested labels", "--seeds", "0", f"--also={real}:labelled"]
    assert main([*command, "--jobs=2"]) == 0
    out = capfd.readouterr().out
    assert "HRDA/seed0 is trained." in out
    started = "first_phase/seed0/checkpoints/best.pth"
    assert all(started in (tmp_path / "runs" / arm / "seed0" / "log.txt").read_text() for arm in ("control", "HRDA"))
    assert "HRDA: crack IoU +" in out or "HRDA: crack IoU -" in out
    assert f"On {real}:labelled:" in out
    assert "| control | " in (tmp_path / "table.md").read_text()
    assert (tmp_path / "picture.png").stat().st_size > 1000

    assert main(command) == 0
    assert "is trained" not in capfd.readouterr().out
    assert main([*command, "--set=batch_size=2"]) == 2
    assert "holds a run with other settings: choose another --out" in capfd.readouterr().err


def test_missing_photos_are_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nowhere = tmp_path / "nowhere"
    assert main([f"--labelled={nowhere}", f"--out={tmp_path / 'out'}"]) == 2
    assert str(nowhere) in capsys.readouterr().err


def test_failed_training_is_told_with_its_own_words(real: Path, tmp_path: Path):
    made = protocol(real, tmp_path)
    with pytest.raises(RuntimeError, match=r"source-only/seed0 did not come to its end(.|\n)*source"):
        made.run(trainings(["source-only"], [0])[0])
