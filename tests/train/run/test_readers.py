import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from common.metrics import SegmentationMetrics
from common.metrics.segmentation import MEANS
from train.run.readers import SHOWN, THIN, ProgressLines, TensorBoardScalars, duration, shown
from train.run.state import (
    CheckpointWritten,
    Preview,
    Progressed,
    Said,
    Started,
    StepsSkipped,
    Timed,
    TrainingState,
    Validated,
)


def test_lines_name_iteration_losses_rate_scores_files_and_time_left():
    text = io.StringIO()
    state = TrainingState()
    state.subscribe(ProgressLines(text))
    for change in (
        Said("Reading the training photos."),
        Started(0, 1000),
        Timed(10, 3723.0, 3.76),
        Progressed(50, {"loss/source": 0.25, "lr": 1e-5}, None),
        StepsSkipped(100, 3),
        Progressed(100, {"loss/source": 0.125, "lr": 1e-4}, 180.0, 0.2),
        Validated(100, {"student/iou/crack": 0.5, "student/mIoU": 0.625, "student/recall_4px/crack": 0.7}),
        Validated(100, {"teacher/f1_2px/road/wet": 1.0}),
        CheckpointWritten("run/best.pth", 100, is_best=True),
    ):
        state.apply(change)
    assert text.getvalue().splitlines() == [
        "Reading the training photos.",
        "10/1000  3.8 s an iteration, 1:02:03 left",
        "  50/1000  loss/source 0.250  lr 1.00e-05",
        "3 iterations were skipped because a loss or gradient was no finite number, up to iteration 100",
        " 100/1000  loss/source 0.125  lr 1.00e-04  0.2 s an iteration, 3:00 left",
        "validation at 100, in %:",
        "  student  crack: iou 50.0",
        "  student  mean: mIoU 62.5",
        "validation at 100, in %:",
        "  teacher  road/wet: f1_2px 100.0",
        "saved run/best.pth",
    ]


def test_durations_are_read_as_a_clock():
    assert [duration(seconds) for seconds in (4.6, 750, 3723)] == ["0:05", "12:30", "1:02:03"]


def test_pictures_of_a_validation_lie_beside_the_curves(tmp_path):
    paths = {role: str(tmp_path / f"{role}.png") for role in ("photo", "truth", "prediction")}
    for path in paths.values():
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(path)
    state = TrainingState()
    state.subscribe(TensorBoardScalars(tmp_path / "curves"))
    state.apply(Started(0, 10))
    state.apply(Validated(5, {"student/mIoU": 0.5}, (Preview("validation", "a.jpg", paths),)))
    curves = EventAccumulator(str(tmp_path / "curves"))
    curves.Reload()
    [drawn_at] = curves.Images("validation/0 photo, truth, prediction")
    assert (drawn_at.step, drawn_at.height, drawn_at.width) == (5, 8, 30)


def drawn(folder, name="loss"):
    curves = EventAccumulator(str(folder))
    curves.Reload()
    return [(point.step, point.value) for point in curves.Scalars(name)]


def draw(folder, begin, points, value):
    state = TrainingState()
    state.subscribe(TensorBoardScalars(folder))
    state.apply(Started(begin, 10))
    for iteration in points:
        state.apply(Progressed(iteration, {"loss": value}, None))


def test_curves_of_a_killed_run_have_no_point_twice(tmp_path):
    draw(tmp_path, 0, range(1, 6), 1.0)
    draw(tmp_path, 3, range(4, 8), 2.0)
    assert drawn(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(28, "No space left on device")


def test_full_disk_costs_lines_and_points_and_not_the_training(tmp_path, monkeypatch):
    state = TrainingState()
    state.subscribe(ProgressLines(FullDisk()))
    state.subscribe(TensorBoardScalars(tmp_path))
    state.apply(Started(0, 10))

    def fail(_writer):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "flush", fail)
        state.apply(Progressed(1, {"loss": 1.0}, None))
    state.apply(Progressed(2, {"loss": 2.0}, None))
    assert drawn(tmp_path)[-1] == (2, 2.0)


def test_line_that_a_full_disk_does_not_take_holds_up_no_other(tmp_path):
    """Python keeps what it could not write, and each fork would try again."""
    state = TrainingState()
    with Path("/dev/full").open("w") as stream:
        state.subscribe(ProgressLines(stream))
        state.apply(Said("no room"))
        stream.flush()
        (tmp_path / "log").touch()
        with (tmp_path / "log").open("w") as room:
            os.dup2(room.fileno(), stream.fileno())
        state.apply(Said("room again"))
    assert (tmp_path / "log").read_text() == "room again\n"


@pytest.mark.parametrize(("count", "text"), [(1, "1 iteration was skipped because"), (2, "2 iterations were skipped")])
def test_skipped_iterations_are_told_in_a_sentence(count, text):
    lines, state = io.StringIO(), TrainingState()
    state.subscribe(ProgressLines(lines))
    state.apply(StepsSkipped(7, count))
    assert lines.getvalue().startswith(text)


def test_every_score_that_is_shown_exists():
    truth = np.eye(30, dtype=np.uint8)
    metrics = SegmentationMetrics(("__bg__", "crack"))
    metrics.update(truth, truth, np.stack([1.0 - truth, truth]))
    scores = metrics.compute()
    assert {f"{score}/crack" for score in SHOWN} <= set(scores)
    assert set(THIN) <= set(MEANS)


def test_means_and_chosen_scores_are_shown_and_the_rest_is_not():
    scores = {"mIoU": 0.5, "iou/road/wet": 0.25, "precision_4px/crack": 1.0, "best_threshold/crack": 0.3}
    assert list(shown(scores)) == ["mIoU", "iou/road/wet", "best_threshold/crack"]
