"""What the apps write comes back as it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import supervisely as sly
import yaml

from sandbox.synthetic.projects import write_project
from serve.batch.outputs import FORMATS
from serve.batch.outputs.format import OutputOptions
from serve.batch.outputs.writing import Writer
from serve.batch.result import Legend, Result, result_names
from tests.train.importing.photos import SIZE, thin_lines, training_masks, write_mask, write_photo
from tests.train.test_cli import SMALL
from train.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
LEGEND = Legend(("__bg__", "crack", "patch"), ((0, 0, 0), (220, 20, 60), (30, 60, 200)))
CLASSES = ["crack", "patch"]


def test_masks_of_a_project_come_back_through_the_command(tmp_path, capsys):
    write_project(tmp_path / "project", "source", 3, size=(96, 96), workers=1)
    before = training_masks(str(tmp_path / "project"), ["crack"], tmp_path / "cache")
    for key, mask in before.items():
        dataset, name = key.split("/")
        write_mask(tmp_path / "data" / "masks" / f"{Path(name).stem}.png", mask)
        photo = tmp_path / "project" / dataset / "img" / name
        (tmp_path / "data" / "images").mkdir(exist_ok=True)
        (tmp_path / "data" / "images" / name).write_bytes(photo.read_bytes())
    out = tmp_path / "again"
    assert main(["import", str(tmp_path / "data"), "--out", str(out), "--classes", "background,crack"]) == 0
    assert "Found photos beside masks: 3 photos, 3 with labels; classes: crack." in capsys.readouterr().out
    after = training_masks(str(out), ["crack"], tmp_path / "cache")
    assert {key: mask.tolist() for key, mask in after.items()} == {key: mask.tolist() for key, mask in before.items()}
    assert not any(path.is_symlink() for path in out.rglob("*")), "a project to keep must not depend on its source"
    assert sly.Project(str(out), sly.OpenMode.READ).total_items == 3


@pytest.mark.parametrize("name", [name for name in ("masks", "coco") if name in FORMATS])
def test_outputs_of_a_prediction_come_back(tmp_path, name):
    photos = ["a.jpg", "night/a.png", "night/b.jpg"]
    truth = {photo: thin_lines(number) for number, photo in enumerate(photos)}
    truth["night/b.jpg"][:] = 0
    writer = Writer(tmp_path / "out", [FORMATS[name]], LEGEND, OutputOptions())
    names = result_names(photos)
    for number, photo in enumerate(photos):
        image = write_photo(tmp_path / "photos" / photo, seed=number)
        assert image.is_file()
        confidences = np.full(SIZE, 0.9, np.float32)
        writer.add(Result(photo, names[photo], truth[photo], LEGEND, confidences=confidences))
    writer.finish()
    [labels] = [tmp_path / "out" / "masks"] if name == "masks" else sorted((tmp_path / "out" / "coco").glob("*.json"))
    out = tmp_path / "project"
    assert main(["import", str(tmp_path / "photos"), f"--{name}", str(labels), "--out", str(out)]) == 0
    masks = training_masks(str(out), CLASSES, tmp_path / "cache")
    found = {key.removeprefix("ds0/"): mask.tolist() for key, mask in masks.items()}
    assert found == {photo: mask.tolist() for photo, mask in truth.items()}


def test_a_training_takes_masks_and_photos_as_they_are(tmp_path):
    for place, count in (("source", 3), ("val", 2)):
        for number in range(count):
            write_photo(tmp_path / place / "images" / f"{number}.jpg", (96, 96), seed=len(place) * 10 + number)
            mask = np.zeros((96, 96), np.uint8)
            mask[30:60, number * 3 : 80] = 255
            write_mask(tmp_path / place / "masks" / f"{number}.png", mask)
    write_photo(tmp_path / "target" / "a.jpg", (96, 96), seed=99)
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        yaml.safe_dump({**SMALL, "mode": "uda", "iterations": 1, "data": {**SMALL["data"], "workers": 0}})
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "train", *(f"--{role}={tmp_path / role}" for role in ("source", "target", "val"))]
    command += [f"--out={out}", f"--settings={settings}", "--classes", "background,crack"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 labelled photos, 1 target photos, 2 validation photos; classes: crack." in done.stdout
    assert sorted(path.name.rsplit("-", 1)[0] for path in (out / "cache" / "imported").iterdir()) == [
        "source",
        "target",
        "val",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is nothing at nowhere"),
        (["{empty}"], "There is no photo in"),
        (["{project}"], "needs no import"),
        (["{photos}", "--masks", "{empty}"], "There is no mask in"),
        (["{photos}", "--classes", "crack,,moss"], "--classes must be names"),
        (["{photos}", "--coco", "{photos}"], "There is nothing at"),
        (["{photos}", "--out", "{project}"], "is there already"),
    ],
)
def test_mistakes_of_the_command_are_a_sentence(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    for number in range(3):
        write_photo(tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "meta.json").write_text("{}")
    words = [word.format(**{name: tmp_path / name for name in ("empty", "photos", "project")}) for word in arguments]
    code = main(["import", "--out", str(tmp_path / "out"), *words])
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert "Traceback" not in said.err
    assert code == 2
