"""The demo's settings and refusals; the demo as a whole is in tests/test_end_to_end.py."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.data.project import open_project
from sandbox.demo import arms, domains, page, progress, report
from sandbox.demo import demonstration as demo
from sandbox.demo.processes import DemoError
from sandbox.synthetic.projects import write_project
from train.settings.training import TrainSettings


def test_every_arm_trains_with_the_demos_settings() -> None:
    text = demo.SETTINGS.read_text()
    for mode in (*arms.COMPARED_MODES, "uda"):
        settings = TrainSettings.from_yaml(text).with_overrides([f"mode={mode}", "seed=2"])
        assert settings.model.encoder == "mit_b0"
        assert settings.self_training.pseudo_label_rule != "published", "it starves thin classes"


def test_the_app_gets_the_same_settings_as_the_command_line() -> None:
    domain = domains.Domain("unused", 5, [7])
    state = arms.app_state(dict.fromkeys(("source", "target", "val"), domain), ["crack"], demo.SETTINGS, seed=2)
    given = yaml.safe_load(demo.SETTINGS.read_text()) | {"mode": "uda", "seed": 2}
    assert TrainSettings.from_yaml(state["hyperparameters"]) == TrainSettings.from_yaml(yaml.safe_dump(given))
    assert state["input"]["validation"] == {"project_id": 5, "dataset_ids": [7]}


def test_folders_of_the_users_are_checked_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert demo.main(["--out", str(out), "--target", str(tmp_path / "missing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "missing" in error
    assert not (out / "projects").exists()


def test_a_folder_that_the_demo_did_not_make_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_domains_without_a_common_class_are_refused(tmp_path: Path) -> None:
    write_project(tmp_path / "a", "source", 1, size=(64, 64))
    write_project(tmp_path / "b", "source", 1, size=(64, 64))
    meta = tmp_path / "b" / "meta.json"
    meta.write_text(meta.read_text().replace('"crack"', '"joint"'))
    with pytest.raises(DemoError, match="share no class: crack against joint"):
        demo.shared_classes({"source": str(tmp_path / "a"), "val": str(tmp_path / "b")})


RESULTS = {
    "source-only": report.ArmResult(29.0, 29.5, 0.48, 59.0, 60.0, 58.0),
    "HRDA": report.ArmResult(32.0, 32.5, 0.52, 64.0, 66.0, 62.0),
}


class Outside(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched, self.text = [], ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        names = {"src", "href", "xlink:href", "data", "srcset"}
        self.fetched += [value for name, value in attrs if name in names and not value.startswith(("data:", "#"))]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    shown = page.Page(tmp_path / "index.html", "HRDA <demo>")
    shown.show(
        is_whole=False,
        now=page.now("being trained"),
        first=page.picture("First look", "after 300 iterations", tmp_path / "a.png"),
    )
    early = shown.path.read_text()
    assert "First look" in early and "data:image/jpeg;base64," in early
    assert 'http-equiv="refresh"' in early, "what comes later appears by itself"
    shown.show(
        is_whole=True,
        now=page.now("Done."),
        first="",
        comparison=page.comparison(RESULTS, report.gain(RESULTS), tmp_path / "a.png"),
        curves=page.curves("Curves", {"Loss": {"HRDA": [(25, 0.5), (50, 0.4)], "control": []}, "empty": {"HRDA": []}}),
        next=page.what_next("python", tmp_path / "hrda.pth", tmp_path / "guide.md"),
    )
    (tmp_path / "a.png").unlink()
    assert 'http-equiv="refresh"' not in shown.path.read_text()
    seen = Outside()
    seen.feed(shown.path.read_text())
    assert seen.fetched == []
    assert "HRDA at threshold 0.5: +3.0 points of IoU against source-only." in seen.text
    assert "First look" not in seen.text and "being trained" not in seen.text
    for value in ("29.0", "32.5 at 0.52", "64.0", "Loss", "make app", f"--model {tmp_path / 'hrda.pth'}"):
        assert value in seen.text
    assert shown.path.read_text().count("<svg") == 1, "a chart without points is left out"


def test_first_pictures_are_those_of_the_first_validation_that_is_told_whole(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    assert progress.first_look(history) is None, "the run has not begun"
    files = {}
    for role, value in zip(progress.ROLES, (10, 20, 30), strict=True):
        files[role] = str(tmp_path / f"{role}.png")
        Image.fromarray(np.full((64, 48, 3), value, np.uint8)).save(files[role])
    target = {"kind": "target", "name": "t.jpg", "pictures": {"photo": files["photo"]}}
    lines = [
        json.dumps({"change": "Progressed", "iteration": 25, "scalars": {}}),
        json.dumps(
            {
                "change": "Validated",
                "iteration": 300,
                "metrics": {},
                "previews": [target, {"kind": "validation", "name": "v.jpg", "pictures": files}],
            }
        ),
    ]
    history.write_text("\n".join(lines)[:-9])
    assert progress.first_look(history) is None, "its line is being written"
    history.write_text("\n".join(lines))
    look = progress.first_look(history)
    assert (look.iteration, len(look.rows)) == (300, 1)
    look.draw(tmp_path / "first.png")
    drawn = np.asarray(Image.open(tmp_path / "first.png"))[report.CAPTION_HEIGHT :]
    assert [int(drawn[100, x, 0]) for x in (10, 180, 350)] == [10, 20, 30]


def test_what_comes_when_is_what_the_page_of_the_demo_says() -> None:
    said = demo.what_comes_when(demo.parse([]))
    [row] = re.findall(r"(?m)^\| (\d+) \| (\d+) \| (\d+) \|", (demo.ROOT / "docs/demo.md").read_text())
    assert [int(minutes) for minutes in row] == list(demo.MINUTES.values())
    assert all(f"after {minutes} minutes" in said for minutes in row)
    assert "comparison with" not in demo.what_comes_when(demo.parse(["--no-compare"]))


def test_page_says_from_the_beginning_what_comes_when(tmp_path: Path, monkeypatch) -> None:
    given = demo.parse(["--out", str(tmp_path / "out")])

    def not_yet(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(domains, "generate", not_yet)
    with pytest.raises(KeyboardInterrupt):
        demo.demonstrate(given)
    seen = Outside()
    seen.feed((tmp_path / "out" / "index.html").read_text())
    assert demo.what_comes_when(given) in seen.text


@pytest.mark.parametrize(("compare", "left_out"), [("", False), ("COMPARE=0", True), ("COMPARE=1", False)])
def test_make_passes_on_what_is_left_out(compare: str, left_out: bool) -> None:
    command = ["make", "--dry-run", "--assume-old=.venv/ready", "demo", *filter(None, [compare])]
    done = subprocess.run(command, cwd=demo.ROOT, capture_output=True, text=True, check=True)
    assert ("--no-compare" in done.stdout) is left_out


def test_folders_in_other_formats_are_imported(tmp_path: Path) -> None:
    write_project(tmp_path / "project", "source", 2, size=(64, 64), workers=1)
    photos = sorted((tmp_path / "project" / "ds0" / "img").iterdir())
    for place in ("target", "val/images"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "val" / "masks").mkdir()
    for photo in photos:
        (tmp_path / "target" / photo.name).write_bytes(photo.read_bytes())
        (tmp_path / "val" / "images" / photo.name).write_bytes(photo.read_bytes())
        Image.new("L", (64, 64), 1).save(tmp_path / "val" / "masks" / f"{photo.stem}.png")
    (tmp_path / "val" / "masks" / "classes.txt").write_text("background\ncrack\n")
    chosen = {"source": str(tmp_path / "project"), "target": str(tmp_path / "target"), "val": str(tmp_path / "val")}
    for spec in chosen.values():
        domains.require_photos(spec)
    specs = domains.generate(tmp_path / "out", chosen, lambda text: None)
    assert specs["source"] == chosen["source"]
    assert demo.shared_classes(specs) == ["crack"]
    assert [record.annotation_path for record in open_project(specs["target"])] == [None, None]
    (tmp_path / "val" / "masks" / f"{photos[0].stem}.png").write_bytes(b"no mask")
    with pytest.raises(DemoError, match="Cannot read the mask"):
        domains.generate(tmp_path / "again", chosen, lambda text: None)
