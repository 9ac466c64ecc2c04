"""A run from the command line, compared with one without target photos: what it ends with and what it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.hrda import load_checkpoint
from sandbox.synthetic.projects import write_project
from serve.batch.local import settings_of_words
from serve.model.settings import read_settings
from train.__main__ import main
from train.run.folder import RunFolder
from train.run.scores import Scores, table, verdict

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = 6
SETTINGS = {
    "iterations": 2,
    "batch_size": 1,
    "log_interval": 1,
    "self_training_start": 0.0,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 8, "attention_channels": 8},
    "optimizer": {"warmup_iterations": 0},
    "data": {"scale": {"long_edge": None, "short_edge": None}, "workers": 0},
    "pretrained": "none",
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    for seed, (role, domain, count) in enumerate(
        (("source", "source", 3), ("target", "real_like", 3), ("val", "real_like", PHOTOS))
    ):
        write_project(root / role, domain, count, seed=seed, size=(64, 96), workers=1)
    (root / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    words = [word for role in ("source", "target", "val") for word in (f"--{role}", str(root / role))]
    return [*words, "--settings", str(root / "settings.yaml"), "--out", str(root / "run"), "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(arguments):
    """The folder of a run that was compared, and what the command printed."""
    done = subprocess.run(
        [sys.executable, "-m", "train", *arguments, "--compare"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(Path(arguments[arguments.index("--out") + 1])), done.stdout


def test_terminal_ends_with_table_verdict_and_next_command(finished):
    folder, output = finished
    scores, control = Scores.read(folder.scores), Scores.read(RunFolder(folder.control).scores)
    ending = output[output.index("2 iterations.\n") :].splitlines()
    [row] = table(scores)
    assert ["crack", row.threshold, *row.cells] == re.split(r"\s{2,}", ending[4])
    assert re.fullmatch(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", row.cells[0]), "6 photos are enough for an interval"
    assert f"mIoU {100 * scores.photos.mean_iou().value:.1f}" in output
    assert verdict(scores, control) in ending
    assert f"Best checkpoint: {folder.best}" in ending
    assert f"Curves and pictures: tensorboard --logdir {folder.out / 'tensorboard'}" in ending
    [following] = [line.removeprefix("Next: ") for line in ending if line.startswith("Next: ")]
    words = shlex.split(following)
    settings = read_settings(settings_of_words(words[words.index("--settings") + 1 :]))
    assert settings.thresholds == {"crack": round(load_checkpoint(folder.best).best_thresholds["crack"], 2)}


def test_control_is_the_same_run_but_for_the_target(finished):
    folder, _ = finished
    ours, theirs = (yaml.safe_load(one.settings.read_text()) for one in (folder, RunFolder(folder.control)))
    assert (ours.pop("mode"), theirs.pop("mode")) == ("uda", "control")
    ours["data"].pop("cache_dir"), theirs["data"].pop("cache_dir")
    assert ours == theirs


def test_worst_photos_are_drawn_with_found_missed_and_invented_in_colour(finished):
    folder, _ = finished
    photos = Scores.read(folder.scores).photos
    worst = photos.worst(PHOTOS)
    assert {path.name for path in folder.errors.iterdir()} == {
        f"{number}_{kind}.jpg" for number in range(1, len(worst) + 1) for kind in ("photo", "errors")
    }
    assert worst, "two iterations make no perfect model"
    plain, drawn = (np.array(Image.open(folder.errors / f"1_{kind}.jpg")).astype(int) for kind in ("photo", "errors"))
    assert np.abs(plain - drawn).max() > 60


def test_card_tells_data_scores_licence_and_how_to_load_it(finished):
    folder, _ = finished
    card = folder.card.read_text()
    scores, control = Scores.read(folder.scores), Scores.read(RunFolder(folder.control).scores)
    [row] = table(scores)
    assert f"| crack | {row.threshold} | {' | '.join(row.cells)} |" in card
    assert verdict(scores, control) in card
    for part in ("| source | 3 |", "| target | 3 |", f"| validation | {PHOTOS} |", "random weights", "Intended use"):
        assert part in card
    assert "(errors/1_errors.jpg)" in card


def test_lines_of_the_card_predict_a_photo_without_the_sdk(finished, tmp_path):
    folder, _ = finished
    card = folder.card.read_text()
    [program] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(program.splitlines()) <= 21
    (tmp_path / "hrda").symlink_to(ROOT)
    (tmp_path / "checkpoints").symlink_to(folder.checkpoints)
    Image.fromarray(np.full((80, 100, 3), 128, np.uint8)).save(tmp_path / "photo.jpg")
    check = "\nassert not {'supervisely', 'train', 'serve'} & sys.modules.keys()\n"
    (tmp_path / "program.py").write_text(program + check)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mask = np.array(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (80, 100)
    assert set(np.unique(mask)) <= {0, 1}


def test_finished_run_is_compared_without_being_trained_again(finished, arguments, capsys):
    folder, _ = finished
    before = folder.last.stat().st_mtime_ns, RunFolder(folder.control).last.stat().st_mtime_ns
    assert main([*arguments, "--compare"]) == 0
    output = capsys.readouterr().out
    assert "holds a finished run" in output
    assert verdict(Scores.read(folder.scores), Scores.read(RunFolder(folder.control).scores)) in output
    assert (folder.last.stat().st_mtime_ns, RunFolder(folder.control).last.stat().st_mtime_ns) == before


def test_comparison_of_what_does_not_adapt_is_refused_before_anything_is_trained(arguments, tmp_path, capsys):
    changed = [str(tmp_path / "run") if word == arguments[-3] else word for word in arguments]
    assert main([*changed, "--compare", "--mode", "source-only"]) == 2
    assert "Only a run in mode uda has target photos" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main([*changed, "--compare", "--changes"])


def test_damaged_scores_are_no_scores(finished, tmp_path):
    folder, _ = finished
    plain = json.loads(folder.scores.read_text())
    for broken in ("{", "[]", json.dumps(plain | {"counts": [[[1]]]}), json.dumps(plain | {"more": 1})):
        (tmp_path / "scores.json").write_text(broken)
        assert Scores.read(tmp_path / "scores.json") is None
