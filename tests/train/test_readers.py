import io

from train.readers import ProgressLines, duration
from train.state import CheckpointWritten, Progressed, Said, Started, TrainingState, Validated


def test_lines_name_iteration_losses_rate_scores_files_and_time_left():
    text = io.StringIO()
    state = TrainingState()
    state.subscribe(ProgressLines(text))
    for change in (
        Said("Reading the training photos."),
        Started(0, 1000),
        Progressed(50, {"loss/source": 0.25, "lr": 1e-5}, None),
        Progressed(100, {"loss/source": 0.125, "lr": 1e-4}, 180.0),
        Validated(100, {"student/iou/crack": 0.5, "student/mIoU": 0.625, "student/recall_4px/crack": 0.7}),
        Validated(100, {"teacher/f1_2px/road/wet": 1.0}),
        CheckpointWritten("run/best.pth", 100, is_best=True),
    ):
        state.apply(change)
    assert text.getvalue().splitlines() == [
        "Reading the training photos.",
        "  50/1000  loss/source 0.250  lr 1.00e-05",
        " 100/1000  loss/source 0.125  lr 1.00e-04  3:00 left",
        "validation at 100, in %:",
        "  student  crack: iou 50.0",
        "  student  mean: mIoU 62.5",
        "validation at 100, in %:",
        "  teacher  road/wet: f1_2px 100.0",
        "saved run/best.pth",
    ]


def test_durations_are_read_as_a_clock():
    assert [duration(seconds) for seconds in (4.6, 750, 3723)] == ["0:05", "12:30", "1:02:03"]
