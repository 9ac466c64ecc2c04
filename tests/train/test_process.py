"""Training in a child process: what reaches the parent, however the child or the parent ends."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.data.project import ProjectError
from common.hrda import SettingsError
from sandbox.synthetic.projects import write_project
from train import process
from train.__main__ import parse
from train.process import run_in_process
from train.run.folder import resumable
from train.run.preparation import Domains
from train.run.request import RunRequest, read_classes
from train.run.state import Progressed, Started, TrainingError, TrainingState
from train.settings.training import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = TrainSettings().with_overrides(
    [
        "mode=source-only",
        "iterations=1000",
        "batch_size=1",
        "log_interval=1",
        "model.encoder=mit_b0",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=16",
        "model.attention_channels=16",
        "optimizer.warmup_iterations=0",
        "data.scale={long_edge: null, short_edge: null}",
        "data.workers=1",
        "validation.max_images=1",
        "checkpoint.interval=2",
    ]
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for seed, name in enumerate(("cracks", "val")):
        write_project(root / name, "source", 2, seed=seed, size=(64, 64), workers=1)
    return Domains(str(root / "cracks"), None, str(root / "val"))


def train(domains, out, state, *, settings=SETTINGS, stop=None, watch=None, **options):
    stop = stop or threading.Event()
    options = {"device": "cpu"} | options
    return run_in_process(RunRequest(settings, domains, out, **options), state=state, stop=stop, watch=watch)


def children():
    """Numbers of this process's children, of which other tests may have left some."""
    return {int(number) for path in Path("/proc/self/task").glob("*/children") for number in path.read_text().split()}


@pytest.fixture
def fake(monkeypatch):
    """Lets Python text stand in for the training process."""

    def use(text):
        prelude = "import os, signal, sys, time\nsys.path.insert(0, os.environ['PYTHONPATH'].split(os.pathsep)[0])\n"
        lines = "from train.run.state import *\ndef say(change): print(encode(change), flush=True)\n"
        script = prelude + lines + textwrap.dedent(text)
        monkeypatch.setattr(process, "_command", lambda *_: [sys.executable, "-c", script])

    return use


@pytest.fixture
def log():
    """Lines of the app's log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    process.logger.addHandler(handler)
    yield lines
    process.logger.removeHandler(handler)


def test_killed_training_goes_on_from_its_last_checkpoint(domains, tmp_path):
    others = children()

    def kill(_state, change):
        if isinstance(change, Progressed) and change.iteration == 3:
            [child] = children() - others
            os.kill(child, signal.SIGKILL)

    state = TrainingState()
    state.subscribe(kill)
    with pytest.raises(TrainingError, match=r"signal 9.*data\.workers \(1\).*'Continue' goes on from iteration 2"):
        train(domains, tmp_path, state)
    assert state.phase == "failed"
    assert state.failure.startswith("The training process was ended by the system")
    kept = resumable(tmp_path)
    assert (kept.iteration, kept.total_iterations, kept.classes) == (2, 1000, ("crack",))
    assert (kept.encoder, kept.mode) == ("mit_b0", "source-only")

    half = tmp_path / "checkpoints" / ".last.pth.0123"
    half.touch()
    state, starts = TrainingState(), []
    state.subscribe(lambda _, change: starts.append(change) if isinstance(change, Started) else None)
    rest = SETTINGS.with_overrides(["iterations=4"])
    result = train(domains, tmp_path, state, settings=rest, classes=kept.classes, resume=True)
    assert starts == [Started(2, 4)]
    assert [iteration for iteration, _ in state.curves["loss/source"]] == [3, 4]
    assert (result.iteration, state.phase, state.result.metrics) == (4, "finished", result.metrics)
    assert [written.path for written in state.checkpoints] == [str(path) for path in result.checkpoints]
    assert all(path.is_file() for path in result.checkpoints)
    assert not half.exists()


def test_training_saves_and_ends_when_who_watches_is_killed(domains, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.with_overrides(["checkpoint.interval=1000", "log_interval=3"]).to_yaml())
    out = tmp_path / "run"
    command = ["-m", "train", "--changes", "--source", domains.source, "--val", domains.val, "--device", "cpu"]
    # A parent that holds both pipes, passes on what it reads and is killed without a chance to tell the child.
    parent = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "for line in child.stdout: sys.stdout.buffer.write(line); sys.stdout.flush()\n"
    )
    arguments = [sys.executable, "-c", parent, *command, "--out", str(out), "--settings", str(settings)]
    with (tmp_path / "errors.txt").open("w") as errors:
        watching = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    child = int(watching.stdout.readline())
    try:
        for line in watching.stdout:
            if '"Progressed"' in line:
                break
        watching.kill()
        watching.wait()
        until = time.monotonic() + 120
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert not Path(f"/proc/{child}").exists()
    finally:
        watching.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    text = (tmp_path / "errors.txt").read_text()
    assert "Stopped after iteration" in text
    assert "Traceback" not in text
    assert resumable(out).iteration >= 3


@pytest.mark.parametrize("kind", [SettingsError, ProjectError, TrainingError])
def test_failure_of_the_child_arrives_as_the_same_error(domains, tmp_path, fake, log, kind):
    fake(f"print('error: Odd.', file=sys.stderr)\nsay(Failed('Odd.', '{kind.__name__}'))\nsys.exit(2)")
    state = TrainingState()
    with pytest.raises(kind, match=r"^Odd\.$"):
        train(domains, tmp_path, state)
    assert (state.phase, state.failure) == ("failed", "Odd.")
    assert "error: Odd." in log


def test_folder_that_cannot_be_made_is_refused_without_a_child(domains, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made"):
        train(domains, tmp_path / "file" / "run", TrainingState())


def test_arguments_of_the_child_are_those_of_the_parent(domains, tmp_path):
    names = ["crack, wet", 'a "b"', "c", " d "]
    domains = replace(domains, labelled_target="labelled:a,b")
    start = tmp_path / "best.pth"
    request = RunRequest(SETTINGS, domains, tmp_path / "-out", tuple(names), "cuda:1", True, start)
    command = process._command(request, tmp_path / "s.yaml")
    given = parse(command[command.index("train") + 1 :])
    assert (given.source, given.target, given.val) == (domains.source, None, domains.val)
    assert given.labelled_target == "labelled:a,b"
    assert (given.out, given.settings, given.init) == (tmp_path / "-out", tmp_path / "s.yaml", start)
    assert (given.device, given.resume, given.changes) == ("cuda:1", True, True)
    assert read_classes(given.classes) == names
    assert read_classes("crack, wet road") == ["crack", "wet road"]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(signal 11, Segmentation fault\).*start again"),
        ("raise ValueError('shapes differ')", r"ended with an error: ValueError: shapes differ\. All of it is in"),
        ("sys.exit(3)", "ended with an error: exit code 3"),
        (
            "print('failed (exitcode: -9) local_rank: 1', file=sys.stderr)\nsys.exit(1)",
            r"ended by the system \(signal 9\)",
        ),
    ],
)
def test_end_without_a_result_is_a_failure_with_its_cause(domains, tmp_path, fake, end, message):
    fake(f"say(Said('begun'))\nprint('{{\"change\": \"Sa', end='')\nsys.stdout.flush()\n{end}")
    state = TrainingState()
    with pytest.raises(TrainingError, match=message) as caught:
        train(domains, tmp_path, state)
    assert str(caught.value) == state.failure
    assert "Traceback" not in state.failure


def test_of_several_processes_the_first_that_fails_says_why(domains, tmp_path, fake):
    fake("say(Failed('Out of memory.'))\nsay(Failed('Another has ended.', 'EndedElsewhere'))\nsys.exit(1)")
    state = TrainingState()
    with pytest.raises(TrainingError, match=r"^Out of memory\.$"):
        train(domains, tmp_path, state, device="cpu,cpu")
    assert state.failure == "Out of memory."


def test_process_that_the_system_has_ended_is_the_reason_though_another_tells(domains, tmp_path, fake):
    fake(
        """
        print("failed (exitcode: -9) local_rank: 1 (pid: 77) of binary: python", file=sys.stderr)
        say(Failed("Another has ended.", "EndedElsewhere"))
        sys.exit(1)
        """
    )
    with pytest.raises(TrainingError, match=r"\(signal 9\).*data\.workers"):
        train(domains, tmp_path, TrainingState(), device="cpu,cpu")


def test_stop_reaches_the_child_once_and_its_result_comes_back(domains, tmp_path, fake, log):
    fake(
        """
        print("10%\\r20%\\nbusy", file=sys.stderr)
        say(Said(str(os.getpriority(os.PRIO_PROCESS, 0))))
        say(Progressed(7, {}, None))
        asked = os.read(0, 1), os.read(0, 1) if select.select([0], [], [], 0.5)[0] else b""
        say(Said(repr(asked)))
        say(Finished(True, 7, "last.pth", ("last.pth",), {}))
        """.replace("print", "import select\n        print", 1)
    )
    stop, state = threading.Event(), TrainingState()
    state.subscribe(lambda _, change: stop.set() if isinstance(change, Progressed) else None)
    result = train(domains, tmp_path, state, stop=stop)
    assert list(state.messages) == [str(os.getpriority(os.PRIO_PROCESS, 0) + 5), r"(b'\n', b'')"]
    assert (result.iteration, result.best, state.phase) == (7, Path("last.pth"), "stopped")
    assert [line for line in log if line in ("10%", "20%", "busy")] == ["20%", "busy"]
    assert (tmp_path / "training.log").read_text().endswith("busy\n")


def test_error_of_a_reader_leaves_no_process_behind(domains, tmp_path, fake):
    fake("say(Said('begun'))\nos.read(0, 1)\nsay(Said('too late'))")
    others = children()
    state = TrainingState()

    def break_down(_state, _change):
        raise RuntimeError("the page is gone")

    state.subscribe(break_down)
    with pytest.raises(RuntimeError, match="the page is gone"):
        train(domains, tmp_path, state)
    assert children() == others


def test_processes_of_a_killed_child_do_not_outlive_it(domains, tmp_path, fake):
    fake("if not os.fork(): time.sleep(60)\nos.kill(os.getpid(), signal.SIGKILL)")
    began = time.monotonic()
    with pytest.raises(TrainingError, match="signal 9"):
        train(domains, tmp_path, TrainingState())
    assert time.monotonic() - began < 20


def test_monitor_is_told_of_a_training_whose_process_is_gone_unnoticed(fake, tmp_path, domains):
    """Something in the app hangs when the process is killed, so that the page goes on to show a training."""
    hangs, goes_on, now = threading.Event(), threading.Event(), [0.0]

    def hang(_state, change):
        if isinstance(change, Progressed):
            hangs.set()
            assert goes_on.wait(120)

    fake("say(Started(0, 9)); say(Progressed(1, {}, None)); os.kill(os.getpid(), signal.SIGKILL)")
    state, watch = TrainingState(), process.ProcessWatch(limit_s=60, clock=lambda: now[0])
    state.subscribe(hang)
    assert watch.trouble() is None, "nothing trains"
    training = threading.Thread(
        target=lambda: pytest.raises(TrainingError, train, domains, tmp_path, state, watch=watch)
    )
    training.start()
    assert hangs.wait(120)
    while watch.trouble() is None:
        now[0] += 10
        time.sleep(0.05)
        assert now[0] < 10_000
    assert now[0] > 60, "the page has a while to notice"
    assert "still shows a training. Start the app anew" in watch.trouble()
    goes_on.set()
    training.join(120)
    assert watch.trouble() is None and state.failure.startswith("The training process was ended by the system")
