"""A run whose disk gets full or whose losses are no numbers: what it keeps, what it says, and how it ends."""

import math

import pytest
import torch

from common.hrda import load_checkpoint
from sandbox.synthetic.projects import write_project
from tests.full_disk import SmallDisk
from train.run.engine import run
from train.run.folder import RunFolder
from train.run.learner import Learner
from train.run.preparation import Domains
from train.run.previews import PreviewWriter
from train.run.request import RunRequest
from train.run.state import Progressed, StepsSkipped, TrainingError, TrainingState
from train.run.watch import FINITE
from train.settings.training import TrainSettings

SETTINGS = TrainSettings().with_overrides(
    [
        "mode=source-only",
        "iterations=4",
        "batch_size=1",
        "log_interval=1",
        "model.encoder=mit_b0",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=8",
        "model.attention_channels=8",
        "optimizer.warmup_iterations=0",
        "data.scale={long_edge: null, short_edge: null}",
        "data.workers=0",
        "validation={interval: 99, max_images: 1, previews: 0}",
        "checkpoint.interval=1",
    ]
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for seed, name in enumerate(("photos", "val")):
        write_project(root / name, "source", 2, seed=seed, size=(64, 64), workers=1)
    return Domains(str(root / "photos"), str(root / "photos"), str(root / "val"))


def on_iteration(actions) -> TrainingState:
    """A state that does something after iterations."""
    state = TrainingState()
    state.subscribe(lambda _, change: actions.get(change.iteration, int)() if isinstance(change, Progressed) else None)
    return state


def test_run_that_cannot_be_saved_is_not_begun(domains, tmp_path, monkeypatch):
    SmallDisk(monkeypatch, tmp_path, 2**20)
    state = TrainingState()
    with pytest.raises(TrainingError, match=r"000000\.pth was not written: the disk is full \(.*needed.*make room"):
        run(RunRequest(SETTINGS, domains, tmp_path / "run", device="cpu"), state=state)
    assert state.iteration == 0


def test_run_goes_on_over_a_full_disk_and_saves_once_there_is_room(domains, tmp_path, monkeypatch):
    disk, out = SmallDisk(monkeypatch, tmp_path), tmp_path / "run"
    kept = {}

    def fill():
        kept.update({path: path.read_bytes() for path in (out / "checkpoints").iterdir()})
        kept[RunFolder(out).kept[1]] = RunFolder(out).kept[1].read_bytes()
        # What is oldest would make room for the next.
        RunFolder(out).kept[0].unlink()
        disk.fill()

    def check_and_free():
        assert all(path.read_bytes() == content for path, content in kept.items())
        assert list(RunFolder(out).kept) == [1]
        disk.free()

    state = on_iteration({2: fill, 3: check_and_free})
    result = run(RunRequest(SETTINGS, domains, out, device="cpu"), state=state)
    [sentence] = [text for text in state.messages if "disk is full" in text]
    assert "last.pth was not written: the disk is full" in sentence
    assert "The checkpoint of iteration 1 is intact" in sentence
    assert list(RunFolder(out).kept) == [4, 3]
    assert load_checkpoint(result.checkpoints[-1]).iteration == 4


def test_run_that_ends_on_a_full_disk_fails_with_the_remedy_and_can_be_resumed(domains, tmp_path, monkeypatch):
    disk, out = SmallDisk(monkeypatch, tmp_path), tmp_path / "run"

    def fill():
        RunFolder(out).kept[1].unlink()
        disk.fill()

    with pytest.raises(TrainingError, match=r"last\.pth .*disk is full.*iteration 2 is intact.*Make room.*continue"):
        run(RunRequest(SETTINGS, domains, out, device="cpu"), state=on_iteration({3: fill}))
    assert list(RunFolder(out).kept) == [2]
    assert load_checkpoint(out / "checkpoints" / "last.pth").iteration == 2
    disk.free()
    assert run(RunRequest(SETTINGS, domains, out, device="cpu", resume=True)).iteration == 4


def test_best_checkpoint_that_could_not_be_written_is_not_taken_for_the_best(domains, tmp_path, monkeypatch):
    disk, out = SmallDisk(monkeypatch, tmp_path), tmp_path / "run"
    state = on_iteration({2: disk.fill})
    measured = SETTINGS.with_overrides(["iterations=3", "validation.interval=2", "checkpoint.interval=9"])
    state.subscribe(lambda _, change: disk.free() if isinstance(change, Progressed) and change.iteration == 3 else None)
    result = run(RunRequest(measured, domains, out, device="cpu"), state=state)
    assert any("best.pth was not written" in text for text in state.messages)
    assert load_checkpoint(result.best).iteration == 3
    assert result.metrics == state.validations[-1].metrics


def test_pictures_that_cannot_be_written_do_not_end_the_run(domains, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreviewWriter, "write", fail)
    state = TrainingState()
    run(RunRequest(SETTINGS.with_overrides(["iterations=1"]), domains, tmp_path / "run", device="cpu"), state=state)
    assert any("pictures of this validation could not be written: No space left" in text for text in state.messages)
    assert state.validations[0].previews == ()


@pytest.fixture
def spoil(monkeypatch):
    """Makes the photos of some iterations, counted from 1, no numbers; gives what was learnt before and after."""

    def use(iterations, seen):
        learn = Learner.learn

        def spoilt(learner, batch, done):
            if done + 1 not in iterations:
                return learn(learner, batch, done)
            images = batch.source_images.clone()
            images[0, 0, 0, 0] = math.nan
            before = snapshot(learner)
            scalars = learn(learner, batch._replace(source_images=images), done)
            seen.append((before, snapshot(learner), scalars))
            return scalars

        monkeypatch.setattr(Learner, "learn", spoilt)

    return use


def snapshot(learner) -> dict[str, torch.Tensor]:
    """All that must not change in a skipped iteration; the teacher's weights follow the student's as always."""
    tensors = {f"student {name}": value for name, value in learner.student.state_dict().items()}
    tensors |= {f"teacher {name}": value for name, value in learner.teacher.named_buffers()}
    for number, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {number} {name}": value for name, value in state.items()}
    return {name: value.clone() for name, value in tensors.items()}


def test_iteration_that_is_no_number_changes_nothing_and_is_counted(domains, tmp_path, spoil):
    seen, changes, state = [], [], TrainingState()
    spoil({2}, seen)
    state.subscribe(lambda _, change: changes.append(change))
    run(
        RunRequest(SETTINGS.with_overrides(["mode=uda", "iterations=3"]), domains, tmp_path / "run", device="cpu"),
        state=state,
    )
    [(before, after, scalars)] = seen
    assert not torch.isfinite(scalars["loss/source"])
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert [change for change in changes if isinstance(change, StepsSkipped)] == [StepsSkipped(2, 1)]
    assert state.skipped == 1
    assert [iteration for iteration, _ in state.curves["loss/source"]] == [1, 3]
    assert [iteration for iteration, _ in state.curves["lr"]] == [1, 2, 3]
    final = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    for part in ("state_dict", "teacher_state_dict"):
        assert all(torch.isfinite(value).all() for value in final[part].values())


def test_run_that_learnt_nothing_ends_as_a_failure_however_short_it_is(domains, tmp_path, spoil):
    spoil({1, 2, 3}, [])
    with pytest.raises(TrainingError, match=r"from iteration 1 to 3 loss/source .* None of these 3 iterations was"):
        run(RunRequest(SETTINGS.with_overrides(["iterations=3"]), domains, tmp_path / "run", device="cpu"))


def test_too_many_in_a_row_end_the_run_with_its_last_good_checkpoint(domains, tmp_path, spoil):
    out = tmp_path / "run"
    several = SETTINGS.with_overrides(["iterations=9", "optimizer.skip_limit=3", "checkpoint.interval=1"])
    spoil({3, 5, 6, 7}, [])
    with pytest.raises(TrainingError) as caught:
        run(RunRequest(several, domains, out, device="cpu"))
    text = str(caught.value)
    assert text.startswith("Training has diverged: from iteration 5 to 7 loss/source")
    assert "None of these 3 iterations was learnt from. Lower optimizer.lr (0.0001)" in text
    assert text.endswith("The checkpoint of iteration 4 is intact: the run can be continued from there.")
    assert list(RunFolder(out).kept) == [4, 2], "none was written in the iterations that were skipped"
    assert load_checkpoint(out / "checkpoints" / "last.pth").iteration == 4


def test_count_of_skipped_iterations_survives_an_interruption(domains, tmp_path, monkeypatch, spoil):
    out, state = tmp_path / "run", TrainingState()
    with monkeypatch.context() as patch:
        learn = Learner.learn

        def spoilt_or_gone(learner, batch, done):
            if done == 2:
                raise KeyboardInterrupt
            scalars = learn(learner, batch, done)
            return scalars | {FINITE: torch.tensor(done != 0)}

        patch.setattr(Learner, "learn", spoilt_or_gone)
        with pytest.raises(KeyboardInterrupt):
            run(RunRequest(SETTINGS, domains, out, device="cpu"))
    run(RunRequest(SETTINGS, domains, out, device="cpu", resume=True), state=state)
    assert state.skipped == 1
