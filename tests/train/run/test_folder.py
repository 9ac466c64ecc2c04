"""What a run's folder keeps: the last states, no matter what happens to one of them."""

import errno
import fcntl
import multiprocessing
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from common.hrda import CheckpointBundle, ModelSettings, SettingsError, build_segmentor, load_checkpoint
from common.hrda.files import WriteError
from common.hrda.network.encoder_weights import RANDOM_WEIGHTS
from sandbox.synthetic.projects import write_project
from tests.full_disk import SmallDisk
from train.run.folder import Resumable, RunFolder, resumable
from train.settings.training import TrainSettings

MODEL = ModelSettings(encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
STUDENT = build_segmentor(MODEL)


def bundle(iteration: int) -> CheckpointBundle:
    return CheckpointBundle(
        student=STUDENT,
        teacher=STUDENT,
        classes=("__bg__", "crack"),
        palette=((0, 0, 0), (220, 20, 60)),
        settings={"model": MODEL.to_dict()},
        metrics={"student/mIoU": 0.5},
        score=0.5,
        iteration=iteration,
    )


def save(folder: RunFolder, iteration: int, keep: int = 2) -> None:
    folder.save_state(bundle(iteration), {"learner": {"x": torch.ones(2)}, "progress": {"best": None}}, keep)


def claim(folder: RunFolder, *, resume: bool = False, say=print):
    with folder.claimed(resume=resume, say=say) as state:
        return state


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path)
    assert claim(made) is None
    return made


def test_last_states_are_kept_and_each_is_a_checkpoint_too(folder):
    for iteration in (0, 5, 10, 15):
        save(folder, iteration)
    assert list(folder.kept) == [15, 10]
    save(folder, 20, keep=3)
    assert list(folder.kept) == [20, 15, 10]
    save(folder, 25, keep=1)
    assert list(folder.kept) == [25]
    assert load_checkpoint(folder.kept[25]).iteration == 25
    state = claim(folder, resume=True)
    assert (state.iteration, state.classes, state.progress) == (25, ("__bg__", "crack"), {"best": None})


def test_damaged_state_gives_way_to_the_one_before_and_is_forgotten(folder):
    said: list[str] = []
    save(folder, 5)
    save(folder, 10)
    path = folder.kept[10]
    path.write_bytes(path.read_bytes()[:1000])
    assert claim(folder, resume=True, say=said.append).iteration == 5
    assert said == [f"{path} is damaged: the run cannot go on from iteration 10."]
    save(folder, 8)
    assert list(folder.kept) == [8, 5], "what is newest is the way that the run has taken"


def test_single_flipped_bit_counts_as_damage(folder):
    save(folder, 5)
    save(folder, 10)
    content = bytearray(folder.kept[10].read_bytes())
    content[len(content) // 2] ^= 1
    folder.kept[10].write_bytes(content)
    assert claim(folder, resume=True).iteration == 5


def test_folder_whose_states_are_all_damaged_is_refused_with_the_remedy(folder):
    save(folder, 5)
    folder.kept[5].write_bytes(b"")
    with pytest.raises(SettingsError, match=r"All of .*resume is damaged.*Start another from last\.pth"):
        claim(folder, resume=True)


def test_run_that_has_learnt_something_is_not_overwritten(folder):
    save(folder, 0)
    assert claim(folder) is None
    folder.save_best(bundle(3), keep=2)
    with pytest.raises(SettingsError, match="already holds a run"):
        claim(folder)
    folder.best.unlink()
    save(folder, 5)
    with pytest.raises(SettingsError, match="already holds a run"):
        claim(folder)


def test_halves_of_a_killed_run_are_removed(folder):
    save(folder, 5)
    halves = [
        folder.checkpoints / ".best.pth.01",
        folder.checkpoints / ".last.pth.23",
        folder.states / ".iteration_000010.pth.45",
        folder.out / ".settings.yaml.67",
    ]
    for half in halves:
        half.touch()
    (folder.checkpoints / ".kept").touch()
    claim(folder, resume=True)
    assert not any(half.exists() for half in halves)
    assert (folder.checkpoints / ".kept").exists()


def test_full_disk_takes_the_oldest_state_for_the_next_and_never_the_last(folder, monkeypatch):
    disk = SmallDisk(monkeypatch, folder.out)
    save(folder, 5)
    size = disk.used
    save(folder, 10)
    disk.capacity = 2.5 * size
    save(folder, 15)
    assert list(folder.kept) == [15, 10]
    disk.fill()
    before = folder.kept[15].read_bytes()
    folder.kept[10].unlink()
    disk.fill()
    with pytest.raises(WriteError, match=r"iteration_000020\.pth was not written: the disk is full"):
        save(folder, 20)
    assert list(folder.kept) == [15]
    assert folder.kept[15].read_bytes() == before
    with pytest.raises(WriteError, match="the disk is full"):
        save(folder, 20, keep=1)
    assert list(folder.kept) == [15]
    assert not [path for path in folder.states.iterdir() if path.name.startswith(".")]


def test_what_can_be_resumed_is_told_without_reading_weights(folder):
    assert resumable(folder.out) is None
    settings = TrainSettings().with_overrides(["mode=control", "iterations=100", "optimizer.warmup_iterations=0"])
    folder.write_settings(settings, ("__bg__", "crack", "wet"), RANDOM_WEIGHTS)
    save(folder, 0)
    assert resumable(folder.out) is None
    save(folder, 40)
    folder.kept[40].write_bytes(b"weights")
    assert resumable(folder.out) == Resumable(40, 100, ("crack", "wet"), "pvt_v2_b2", "control")
    assert TrainSettings.from_yaml(folder.settings.read_text()) == settings
    folder.facts.write_text("half of it")
    assert resumable(folder.out) is None


def hold(path: Path, ready, end) -> None:
    with RunFolder(path).claimed(resume=False, say=print):
        ready.set()
        end.wait()


@contextmanager
def held_by_another(path: Path) -> Iterator[multiprocessing.Process]:
    """Within it another process has the folder; it is killed at the end."""
    processes = multiprocessing.get_context("fork")
    ready = processes.Event()
    other = processes.Process(target=hold, args=(path, ready, processes.Event()))
    other.start()
    try:
        assert ready.wait(30)
        yield other
    finally:
        other.kill()
        other.join(30)


def test_folder_belongs_to_one_process_until_that_ends(tmp_path):
    """It names host and process, and a kill frees the folder at once."""
    with held_by_another(tmp_path) as other:
        who = re.escape(f"Another run is going on in {tmp_path}: process {other.pid} on {socket.gethostname()}. ")
        with pytest.raises(SettingsError, match=f"{who}Let it end or stop it"):
            claim(RunFolder(tmp_path))
        save(RunFolder(tmp_path), 5)
        half = tmp_path / "checkpoints" / ".last.pth.01"
        half.touch()
        with pytest.raises(SettingsError, match=who):
            claim(RunFolder(tmp_path), resume=True)
        assert half.exists(), "it is what the other one is writing"
        (tmp_path / "run.lock").write_text("{")
        with pytest.raises(SettingsError, match="which process it is could not be read"):
            claim(RunFolder(tmp_path), resume=True)
    assert claim(RunFolder(tmp_path), resume=True).iteration == 5


def test_folder_is_not_removed_while_a_process_has_it(tmp_path):
    """The training of an app that was killed saves for a while yet."""
    with held_by_another(tmp_path) as other:
        save(RunFolder(tmp_path), 5)
        with pytest.raises(SettingsError, match=f"Another run is going on in .*: process {other.pid} on"):
            RunFolder(tmp_path).remove()
        assert RunFolder(tmp_path).latest == 5
    RunFolder(tmp_path).remove()
    RunFolder(tmp_path).remove()
    assert not tmp_path.exists()


def test_state_that_cannot_be_read_for_now_does_not_give_way_to_an_older_one(folder, monkeypatch):
    save(folder, 5)
    save(folder, 10)
    opened = Path.open

    def away(path, *args, **options):
        if path.name == "iteration_000010.pth":
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", away)
        with pytest.raises(SettingsError, match=r"iteration_000010.pth cannot be read: Stale.* remove it"):
            claim(folder, resume=True)
    assert claim(folder, resume=True).iteration == 10


@pytest.mark.parametrize("inside", ["", "ds0"])
def test_folder_of_photos_is_no_folder_for_a_run(tmp_path, inside):
    write_project(tmp_path, "source", 1, size=(32, 32))
    with pytest.raises(SettingsError, match="holds a project's photos. Choose another folder"):
        claim(RunFolder(tmp_path / inside))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds0", "meta.json"]


def test_disk_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    said: list[str] = []
    claim(RunFolder(tmp_path), say=said.append)
    assert said == [f"The disk of {tmp_path} has no locks. Make sure that no other run writes to this folder."]


def test_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(SettingsError, match=r"cannot be written to: Read-only file system\.$"):
        claim(RunFolder(tmp_path))


def test_best_checkpoint_says_how_good_it_is(folder):
    assert folder.best_measurement() is None
    folder.save_best(bundle(7), keep=2)
    best = folder.best_measurement()
    assert (best.iteration, best.score, best.teacher_is_better) == (7, 0.5, False)
    assert best.metrics == {"student/mIoU": 0.5}
    folder.best.write_bytes(b"no checkpoint")
    assert folder.best_measurement() is None
