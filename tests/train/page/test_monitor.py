"""The card of a running training: what it shows, and that a training never waits for it."""

import threading
import time
from pathlib import Path

import pytest
from supervisely.app import DataJson

from train.page import monitor as module
from train.page.history import RunHistory
from train.page.monitor import Monitor, MonitorCard
from train.run.state import (
    Change,
    PhaseChanged,
    Preview,
    Progressed,
    Started,
    StepsSkipped,
    TrainingState,
    Validated,
)

# The thread that shows the changes must not end by an error, of which nobody else would hear.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def history(tmp_path: Path) -> RunHistory:
    return RunHistory(tmp_path)


def curves(card: MonitorCard, key: str) -> dict[str, list[tuple[float, float]]]:
    series = DataJson()[card.charts[key].widget_id]["series"]
    return {one["name"]: [(point["x"], point["y"]) for point in one["data"]] for one in series}


def test_charts_hold_losses_rate_confidence_and_scores(card: MonitorCard, history: RunHistory):
    statuses: list[tuple[str, str]] = []
    state, stop = TrainingState(), threading.Event()
    classes = {f"teacher/iou/class {number}": 0.5 for number in range(12)}
    with Monitor(card, lambda *status: statuses.append(status), stop, history, ["crack"]) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
        for change in (PhaseChanged("training"), PhaseChanged("validating")):
            state.apply(change)
        scalars = {"loss/source": 0.5, "loss/target": 0.25, "lr": 6e-5, "pseudo_label/confident_share": 0.75}
        scalars |= {"pseudo_label/share/0": 0.98, "pseudo_label/share/1": 0.02}
        state.apply(PhaseChanged("training"))
        state.apply(Progressed(2, scalars, 75.0, 37.5))
        scores = {"student/mIoU": 0.4, "teacher/mIoU": 0.5, "student/iou/class 0": 0.1, "teacher/iou/__bg__": 1.0}
        thin = {"student/mclDice": 0.1, "teacher/mclDice": 0.25, "teacher/mF1_2px": 0.5}
        thin |= {"student/mBestIoU": 0.3, "teacher/mBestIoU": 0.125, "teacher/mBestF1_2px": 0.5}
        state.apply(Validated(2, {**scores, **classes, **thin}))
    assert curves(card, "loss") == {"source": [(2, 0.5)], "target": [(2, 0.25)]}
    assert curves(card, "lr") == {"learning rate": [(2, 6e-5)]}
    assert curves(card, "confident") == {"confident": [(2, 75.0)]}
    assert curves(card, "share") == {"crack": [(2, 2.0)]}, "beside the confidence, without the background"
    assert curves(card, "best") == {"IoU": [(2, 12.5)], "F1 at 2 px": [(2, 50.0)]}, "of the better"
    assert curves(card, "miou") == {"student": [(2, 40.0)], "teacher": [(2, 50.0)]}
    assert curves(card, "iou") == {f"class {number}": [(2, 50.0)] for number in range(10)}, "of the better, ten classes"
    assert curves(card, "thin") == {"F1 within 2 px": [(2, 50.0)], "clDice": [(2, 25.0)]}, "of the better"
    expected = "Training: iteration 2 of 4, 38 s an iteration, 1:15 left."
    expected += " Loss source 0.5. Loss target 0.25. "
    expected += "Foreground IoU 12.5%, F1 at 2 px 50.0% at the best threshold, mIoU 50.0% at iteration 2."
    assert statuses[-1] == (expected, "info")
    assert DataJson()[card.progress_bar_main.widget_id]["percent"] == 50


def test_next_run_begins_with_empty_charts(card: MonitorCard, history: RunHistory):
    with Monitor(card, lambda *status: None, threading.Event(), history):
        pass
    assert curves(card, "loss") == curves(card, "iou") == {}


def test_page_that_hangs_or_fails_does_not_hold_up_the_training(
    card: MonitorCard, history: RunHistory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_UPDATES", 0.01)
    entered, may_go_on = threading.Event(), threading.Event()

    def show(sentence: str, kind: str) -> None:
        entered.set()
        may_go_on.wait(10)
        raise ConnectionError("the browser has gone away")

    state = TrainingState()
    with Monitor(card, show, threading.Event(), history) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 1000))
        assert entered.wait(10)
        before = time.perf_counter()
        for iteration in range(1, 1001):
            state.apply(Progressed(iteration, {"loss/source": 1.0}, None))
        assert time.perf_counter() - before < 0.5
        may_go_on.set()
    points = curves(card, "loss")["source"]
    assert points[-1][0] == 1000, "the page has caught up"
    assert len(points) <= 201


def test_status_says_that_a_stop_is_on_its_way(card: MonitorCard, history: RunHistory):
    statuses: list[str] = []
    state, stop = TrainingState(), threading.Event()
    stop.set()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), stop, history) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
    assert statuses[-1].startswith("Stopping")


def test_status_says_how_many_iterations_were_skipped(card: MonitorCard, history: RunHistory):
    statuses: list[str] = []
    state = TrainingState()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), threading.Event(), history) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
        state.apply(StepsSkipped(2, 1))
        state.apply(Progressed(2, {"loss/source": 0.5}, None))
    assert statuses[-1].endswith("1 iteration was skipped because a loss or gradient was no finite number.")


def told(card: MonitorCard, history: RunHistory, *changes: Change) -> list[str]:
    """What a run's changes make the status say; the monitor ends without an end of the run, as in a crash."""
    statuses: list[str] = []
    state = TrainingState()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), threading.Event(), history) as monitor:
        state.subscribe(monitor)
        for change in changes:
            state.apply(change)
    return statuses


def measured(iteration: int) -> Validated:
    picture = Preview("validation", "a.jpg", {"photo": f"/run/previews/{iteration:06d}/photo.jpg"})
    return Validated(iteration, {"student/mIoU": iteration / 100}, (picture,))


def test_continued_run_goes_on_with_curves_and_measurements_up_to_where_it_goes_on(
    card: MonitorCard, history: RunHistory, tmp_path: Path
):
    points = [Progressed(iteration, {"loss/source": float(iteration)}, None) for iteration in (10, 20, 30)]
    told(card, history, Started(0, 60), points[0], measured(10), points[1], measured(20), points[2], measured(30))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"change": "Progre')
    # As after a restart of the app: nothing but the folder knows of the run.
    before = told(card, RunHistory(tmp_path), PhaseChanged("preparing"))
    assert curves(card, "loss") == {"source": [(10, 10.0), (20, 20.0), (30, 30.0)]}
    assert DataJson()["preview_caption"]["text"] == "Validation 3 of 3, after iteration 30"
    assert before[-1].endswith("mIoU 30.0% at iteration 30.")
    again = Progressed(30, {"loss/source": 5.0}, None)
    after = told(card, RunHistory(tmp_path), Started(20, 60), again)
    assert curves(card, "loss") == {"source": [(10, 10.0), (20, 20.0), (30, 5.0)]}
    assert curves(card, "miou") == {"student": [(10, 10.0), (20, 20.0)]}
    assert DataJson()["preview_caption"]["text"] == "Validation 2 of 2, after iteration 20"
    assert DataJson()["preview_slider"]["min"] == -1
    assert after[-1].endswith("mIoU 20.0% at iteration 20.")
    assert [change.iteration for change in RunHistory(tmp_path).changes()] == [10, 10, 20, 20, 30]


def test_run_that_begins_anew_forgets_what_the_folder_held(card: MonitorCard, history: RunHistory):
    told(card, history, Started(0, 60), Progressed(10, {"loss/source": 1.0}, None), measured(10))
    told(card, history, Started(0, 60))
    assert (curves(card, "loss"), curves(card, "miou"), history.changes()) == ({}, {}, [])
    assert DataJson()["previews"]["hide"]


def test_part_that_fails_holds_up_neither_the_others_nor_what_follows(
    card: MonitorCard, history: RunHistory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_UPDATES", 0.01)
    failed = threading.Event()
    draw = card.charts["loss"].set_series

    def draw_or_fail(*arguments: object, **options: object) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("dictionary changed size during iteration")
        draw(*arguments, **options)

    monkeypatch.setattr(card.charts["loss"], "set_series", draw_or_fail)
    monkeypatch.setattr(card.previews, "add", lambda *arguments: 1 / 0)
    statuses: list[str] = []
    state = TrainingState()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), threading.Event(), history) as monitor:
        assert failed.wait(10)
        state.subscribe(monitor)
        state.apply(Started(0, 60))
        state.apply(Progressed(10, {"loss/source": 1.0, "lr": 0.5}, None))
        state.apply(measured(10))
    assert curves(card, "loss") == {"source": [(10, 1.0)]}
    assert (curves(card, "lr"), curves(card, "miou")) == ({"learning rate": [(10, 0.5)]}, {"student": [(10, 10.0)]})
    assert "iteration 10 of 60" in statuses[-1]
