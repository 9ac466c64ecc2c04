"""A training killed at any moment goes on as if nothing had happened, to the last bit."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch

from common.hrda import load_checkpoint
from sandbox.synthetic.projects import write_project
from train.run.engine import run
from train.run.folder import RunFolder, resumable
from train.run.preparation import Domains
from train.run.request import RunRequest
from train.run.state import CheckpointWritten, Started, TrainingState, Validated
from train.settings.training import TrainSettings

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = TrainSettings().with_overrides(
    [
        "iterations=36",
        "batch_size=1",
        "log_interval=4",
        "model.encoder=mit_b0",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=8",
        "model.attention_channels=8",
        "optimizer.lr=1e-3",
        "optimizer.warmup_iterations=4",
        "data.scale={long_edge: null, short_edge: null}",
        "data.workers=0",
        "validation={interval: 17, max_images: 1, previews: 0}",
        "checkpoint={interval: 3, keep: 20}",
        "self_training_start=0.1",
        "self_training.pseudo_label_rule=per_class",
    ]
)
START, CHECK = 15, 21
"""Iterations done in the state that children start from, and when what came of them is compared."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, domain, count in (("source", "source", 4), ("target", "real_like", 3), ("val", "real_like", 1)):
        write_project(root / name, domain, count, seed=len(name), size=(96, 80), workers=1)
    return Domains(*(str(root / name) for name in ("source", "target", "val")))


class Watched:
    """The state of a run, its starts, and a stop at the checkpoint of an iteration."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.state, self.stop = TrainingState(), threading.Event()
        self.starts: list[int] = []
        self._stop_at = stop_at
        self.state.subscribe(self)

    def __call__(self, state, change) -> None:
        if isinstance(change, Started):
            self.starts.append(change.iteration)
        if isinstance(change, CheckpointWritten) and not change.is_best and change.iteration == self._stop_at:
            self.stop.set()

    def resume(self, domains: Domains, out: Path) -> None:
        settings = TrainSettings.from_yaml((out / "settings.yaml").read_text())
        run(RunRequest(settings, domains, out, device="cpu", resume=True), state=self.state, stop=self.stop)


@pytest.fixture(scope="module")
def uninterrupted(domains, tmp_path_factory):
    """A run that nothing happened to, with all its states, and what was heard of it."""
    out, watched = tmp_path_factory.mktemp("runs") / "uninterrupted", Watched()
    run(RunRequest(SETTINGS, domains, out, device="cpu"), state=watched.state)
    return out, watched


@pytest.fixture(scope="module")
def train_and_be_killed():
    """Runs the function of that name in a child process, made quickly and from one without threads; gives its end."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        # Installed packages may be called tests, too; to a new process this name is its own.
        patch.syspath_prepend(Path(__file__).parent)
        target = import_module("killing").train_and_be_killed

        def end_of(*arguments) -> int:
            child = context.Process(target=target, args=arguments)
            child.start()
            child.join(120)
            return child.exitcode

        yield end_of


def interrupted_copy(uninterrupted: Path, out: Path) -> Path:
    """A run that has only come to iteration `START`."""
    for name in ("settings.yaml", "resume.json", f"resume/iteration_{START:06d}.pth"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(uninterrupted / name, out / name)
    return out


def differences(ours, theirs, path: str = "") -> list[str]:
    """Where nested data differ, tensors to the last bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = {str(key): key for key in [*ours, *theirs]}
        missing = [f"{path}{key}" for key in keys.values() if (key in ours) != (key in theirs)]
        both = [key for key in keys.values() if key in ours and key in theirs]
        return missing + [d for key in both for d in differences(ours[key], theirs[key], f"{path}{key}/")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [d for k, pair in enumerate(zip(ours, theirs, strict=True)) for d in differences(*pair, f"{path}{k}/")]
    if isinstance(ours, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [path]
    return [] if ours == theirs else [path]


def assert_same_state(out: Path, other: Path, iteration: int) -> None:
    """Weights, averages, statistics, measurements and means are the same, whatever prepared the batches."""
    name = f"resume/iteration_{iteration:06d}.pth"
    ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (out, other))
    del ours["settings"], theirs["settings"]
    assert differences(ours, theirs) == []
    assert set(ours["resume"]) == {"learner", "progress"}
    assert len(ours["resume"]["learner"]["optimizer"]) > 50


@pytest.mark.parametrize(
    ("file", "moment", "left"),
    [
        ("best.pth", "done", 15),
        ("last.pth", "renamed", 15),
        ("iteration_000018.pth", "half", 15),
        ("iteration_000018.pth", "done", 18),
    ],
)
def test_kill_while_a_checkpoint_is_written_costs_nothing_but_time(
    domains, uninterrupted, train_and_be_killed, tmp_path, file, moment, left
):
    whole, _ = uninterrupted
    out = interrupted_copy(whole, tmp_path / "run")
    assert train_and_be_killed(SETTINGS.to_yaml(), domains, out, file, moment) == -signal.SIGKILL
    assert resumable(out).iteration == left
    halves = [path.name for path in out.rglob(".*.pth.*")]
    assert len(halves) == (moment != "done")
    watched = Watched(stop_at=CHECK)
    watched.resume(domains, out)
    assert watched.starts == [left]
    assert not list(out.rglob(".*.pth.*"))
    assert_same_state(out, whole, CHECK)
    assert RunFolder(out).best_measurement().iteration == 17


def test_killed_process_resumed_for_30_iterations_equals_the_run_that_was_never_interrupted(
    domains, uninterrupted, tmp_path
):
    whole, undisturbed = uninterrupted
    out = tmp_path / "run"
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.with_overrides(["data.workers=1", "checkpoint.keep=1"]).to_yaml())
    command = [sys.executable, "-m", "train", "--settings", str(settings), "--out", str(out), "--device", "cpu"]
    command += ["--source", domains.source, "--target", domains.target, "--val", domains.val]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(" 8/36"):
                process.kill()
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert list(RunFolder(out).kept) == [6]

    watched = Watched()
    watched.resume(domains, out)
    assert watched.starts == [6]
    assert_same_state(out, whole, 36)
    curves, others = watched.state.curves, undisturbed.state.curves
    assert {"lr", "loss/source", "loss/mixed", "pseudo_label/confident_share"} <= set(curves)
    for name, points in curves.items():
        assert points == [point for point in others[name] if point[0] > 6], name
    scores = [(change.iteration, change.metrics) for change in watched.state.validations]
    assert scores == [(c.iteration, c.metrics) for c in undisturbed.state.validations if c.iteration > 6]
    assert all(isinstance(change, Validated) for change in undisturbed.state.validations)
    best, other = (torch.load(folder / "checkpoints" / "best.pth", weights_only=True) for folder in (out, whole))
    del best["settings"], other["settings"]
    assert differences(best, other) == []
    assert watched.state.result.metrics == undisturbed.state.result.metrics


@pytest.mark.parametrize("encoder", ["efficientnet_lite0", "pvt_v2_b0"], ids=["batch norms", "layer norms"])
def test_a_run_on_another_encoder_goes_on_to_the_same_bits(domains, encoder, tmp_path):
    from common.hrda.network import from_timm

    start = tmp_path / "mine.pth"
    torch.save(from_timm.timm.create_model("pvt_v2_b0").state_dict(), start)
    # Batch norms need more than one value of a channel, also at stride 32 of the context.
    short = [f"model.encoder={encoder}", "iterations=6", "validation.interval=6", "batch_size=2"]
    settings = SETTINGS.with_overrides([*short, f"pretrained={start}" if encoder == "pvt_v2_b0" else "pretrained=none"])
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(RunRequest(settings, domains, whole, device="cpu"))
    for name in ("settings.yaml", "resume.json", "resume/iteration_000003.pth"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, out / name)
    watched = Watched()
    watched.resume(domains, out)
    assert watched.starts == [3]
    assert_same_state(out, whole, 6)
    wanted = {"source": "random weights", "licence": "none besides this app's"}
    if encoder == "pvt_v2_b0":
        wanted = {"source": "the file mine.pth", "licence": "of the file"}
    assert load_checkpoint(RunFolder(out).last).settings["encoder_weights"] == wanted
    said = (out / "settings.yaml").read_text().splitlines()[0]
    assert said == f"# encoder's weights: {wanted['source']}; licence: {wanted['licence']}"


def test_run_killed_before_its_first_checkpoint_starts_anew_with_the_same_weights(domains, tmp_path):
    out, watched = tmp_path / "run", Watched(stop_at=3)
    run(RunRequest(SETTINGS, domains, out, device="cpu"), state=watched.state, stop=watched.stop)
    after_three = torch.load(out / "checkpoints" / "last.pth", weights_only=True)
    # What is left if it is killed in its first iterations.
    (out / "resume" / "iteration_000003.pth").unlink()
    (out / "checkpoints" / "last.pth").unlink()
    assert list(RunFolder(out).kept) == [0]
    assert resumable(out) is None, "nothing was learnt: a person is not asked whether to go on with it"
    again = Watched(stop_at=3)
    again.resume(domains, out)
    assert again.starts == [0]
    assert differences(after_three, torch.load(out / "checkpoints" / "last.pth", weights_only=True)) == []
