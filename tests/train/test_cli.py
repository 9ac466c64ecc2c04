import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from sandbox.synthetic.projects import write_project
from train.__main__ import main
from train.run import engine
from train.run.learner import Learner
from train.run.readers import ChangeLines
from train.run.state import Said, TrainingState, decode
from train.settings.training import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SMALL = {
    "mode": "source-only",
    "iterations": 1000,
    "batch_size": 1,
    "log_interval": 1,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 8, "attention_channels": 8},
    "optimizer": {"warmup_iterations": 0},
    "data": {"scale": {"long_edge": None, "short_edge": None}, "workers": 1},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for seed, (name, count) in enumerate({"cracks": 3, "val": 2}.items()):
        write_project(root / name, "source", count, seed=seed, size=(64, 64), workers=1)
    return root / "cracks"


@pytest.fixture
def arguments(project, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SMALL))
    out = tmp_path / "run"
    return [
        "--source",
        f"{project}:ds0",
        "--val",
        str(project.parent / "val"),
        "--out",
        str(out),
        "--settings",
        str(settings),
    ]


def refused(arguments, capsys):
    """What stands on stderr when the command is refused."""
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    return errors


def test_help_is_quick_and_needs_neither_torch_nor_the_sdk():
    code = (
        "import sys; from train.__main__ import parse\n"
        "try: parse(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'supervisely', 'mmseg', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for option in ("--source", "--target", "--val", "--out", "--set", "--resume", "supervised"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["--set", "iterations"], "key=value"),
        (["--mode", "uda"], "no target"),
        (["--mode", "udda"], "did you mean 'uda'"),
        (["--classes", "crak"], "did you mean 'crack'"),
        (["--classes", ""], "--classes must be names"),
        (["--classes", "crack,,moss"], "--classes must be names"),
        (["--classes", "crack\nmoss"], "--classes must be names"),
        (["--classes", '"crack, moss'], "--classes must be names"),
        (["--init", __file__], "There is nothing to start from"),
        (["--source", "nowhere"], "Received: nowhere"),
        (["--val", "nowhere:ds0"], "Received: nowhere:ds0"),
        (["--settings", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--settings", "/dev/zero"], "expected YAML of at most"),
        (["--init", "nowhere.pth"], "nowhere.pth"),
        (["--device", "gpu"], "'gpu'"),
        (["--resume"], "no run to resume"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(arguments, more, message, capsys):
    errors = refused([*arguments, *more], capsys)
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_missing_folders_are_told_before_weights_are_fetched(arguments, capsys, monkeypatch):
    """Without internet the fetch takes minutes to fail."""
    monkeypatch.setattr(engine, "choose_start", lambda *_, **__: pytest.fail("weights are fetched first"))
    assert "Received: nowhere" in refused([*arguments, "--source", "nowhere"], capsys)
    assert "no source" in refused(without(arguments, "--source"), capsys)


def test_comparison_needs_labelled_photos_to_measure_on(arguments, capsys):
    """It was found out after the whole first training."""
    errors = refused([*without(arguments, "--val"), "--target", "nowhere", "--compare", "--mode", "uda"], capsys)
    assert "Name such photos as validation, or leave the comparison out" in errors


def without(arguments, name):
    """The arguments less one and its value."""
    at = arguments.index(name)
    return [*arguments[:at], *arguments[at + 2 :]]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e300", "long"])
def test_time_to_wait_is_a_number_of_minutes(arguments, minutes, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--timeout", minutes])
    assert ended.value.code == 2
    assert "--timeout" in capsys.readouterr().err


def test_measuring_on_the_source_is_refused_in_a_sentence(arguments, project, capsys):
    errors = refused([*arguments, "--val", str(project)], capsys)
    assert "3 source photos are validation photos too, such as ds0/" in errors
    assert len(errors.splitlines()) == 1


def test_output_that_is_a_file_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert "cannot be made" in refused(arguments, capsys)


def test_ctrl_c_saves_and_resume_goes_on_with_the_same_settings(arguments, tmp_path, monkeypatch, capsys):
    learn = Learner.learn

    def interrupted(learner, batch, done):
        if done == 2:
            # As a terminal does it: to all processes of the group, the workers included.
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                os.kill(process.pid, signal.SIGINT)
        return learn(learner, batch, done)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", interrupted)
        assert main([*arguments, "--device", "cpu"]) == 0
    output, errors = capsys.readouterr()
    assert errors.count("Stopping") == 1
    assert "Stopped after iteration 3 of 1000." in output
    assert "Stopped at 3 of 1000 iterations. The same command with --resume goes on from there." in output
    assert (tmp_path / "run" / "checkpoints" / "last.pth").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    [source, folder, val, val_folder, out, out_folder, *_] = arguments
    again = [source, folder, val, val_folder, out, out_folder, "--resume", "--device", "cpu", "--set", "iterations=4"]
    assert main(again) == 0
    kept = TrainSettings.from_yaml((tmp_path / "run" / "settings.yaml").read_text())
    assert kept == TrainSettings.from_dict(SMALL | {"iterations": 4, "pretrained": "none"}), "as it came out"


def test_output_that_nobody_reads_any_more_does_not_spoil_the_end(arguments, tmp_path, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([*arguments, "--device", "cpu", "--set", "iterations=1"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last.pth").is_file()


def test_changes_have_the_standard_output_for_themselves(arguments, capfd):
    before = os.fstat(1)
    # What is said meanwhile goes to pytest's own standard output, which is none of the process's.
    assert main([*arguments, "--changes", "--classes", "crak", "--set", "pretrained=none"]) == 2
    output, errors = capfd.readouterr()
    *_, failed = [decode(line) for line in output.splitlines()]
    assert failed.kind == "ProjectError"
    assert "did you mean 'crack'" in failed.reason
    assert f"error: {failed.reason}" in errors
    assert os.path.samestat(os.fstat(1), before)


def test_training_is_told_to_stop_when_nobody_reads_its_changes(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    stop = threading.Event()
    state = TrainingState()
    with os.fdopen(writing, "w") as stream:
        state.subscribe(ChangeLines(stream, stop.set))
        state.apply(Said("is anyone there?"))
        assert stop.is_set()
        state.apply(Said("no"))
