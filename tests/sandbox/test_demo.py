"""The demo's settings and refusals; the demo as a whole is in tests/test_end_to_end.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sandbox.demo import arms, domains
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
