"""The card of a running training: what it shows, and that a training never waits for it."""

import threading
import time

import pytest
from supervisely.app import DataJson

from train.page import monitor as module
from train.page.monitor import Monitor, MonitorCard
from train.run.state import PhaseChanged, Progressed, Started, StepsSkipped, TrainingState, Validated

# The thread that shows the changes must not end by an error, of which nobody else would hear.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def curves(card: MonitorCard, key: str) -> dict[str, list[tuple[float, float]]]:
    series = DataJson()[card.charts[key].widget_id]["series"]
    return {one["name"]: [(point["x"], point["y"]) for point in one["data"]] for one in series}


def test_charts_hold_losses_rate_confidence_and_scores(card: MonitorCard):
    statuses: list[tuple[str, str]] = []
    state, stop = TrainingState(), threading.Event()
    classes = {f"teacher/iou/class {number}": 0.5 for number in range(12)}
    with Monitor(card, lambda *status: statuses.append(status), stop) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
        for change in (PhaseChanged("training"), PhaseChanged("validating")):
            state.apply(change)
        scalars = {"loss/source": 0.5, "loss/target": 0.25, "lr": 6e-5, "pseudo_label/confident_share": 0.75}
        state.apply(PhaseChanged("training"))
        state.apply(Progressed(2, scalars, 75.0))
        scores = {"student/mIoU": 0.4, "teacher/mIoU": 0.5, "student/iou/class 0": 0.1, "teacher/iou/__bg__": 1.0}
        thin = {"student/mclDice": 0.1, "teacher/mclDice": 0.25, "teacher/mF1_2px": 0.5}
        state.apply(Validated(2, {**scores, **classes, **thin}))
    assert curves(card, "loss") == {"source": [(2, 0.5)], "target": [(2, 0.25)]}
    assert curves(card, "lr") == {"learning rate": [(2, 6e-5)]}
    assert curves(card, "confident") == {"confident": [(2, 75.0)]}
    assert curves(card, "miou") == {"student": [(2, 40.0)], "teacher": [(2, 50.0)]}
    assert curves(card, "iou") == {f"class {number}": [(2, 50.0)] for number in range(10)}, "of the better, ten classes"
    assert curves(card, "thin") == {"F1 within 2 px": [(2, 50.0)], "clDice": [(2, 25.0)]}, "of the better"
    expected = "Training: iteration 2 of 4, 1:15 left. Loss source 0.5. Loss target 0.25. mIoU 50.0% at iteration 2."
    assert statuses[-1] == (expected, "info")
    assert DataJson()[card.progress_bar_main.widget_id]["percent"] == 50


def test_next_run_begins_with_empty_charts(card: MonitorCard):
    with Monitor(card, lambda *status: None, threading.Event()):
        pass
    assert curves(card, "loss") == curves(card, "iou") == {}


def test_page_that_hangs_or_fails_does_not_hold_up_the_training(card: MonitorCard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_UPDATES", 0.01)
    entered, may_go_on = threading.Event(), threading.Event()

    def show(sentence: str, kind: str) -> None:
        entered.set()
        may_go_on.wait(10)
        raise ConnectionError("the browser has gone away")

    state = TrainingState()
    with Monitor(card, show, threading.Event()) as monitor:
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


def test_status_says_that_a_stop_is_on_its_way(card: MonitorCard):
    statuses: list[str] = []
    state, stop = TrainingState(), threading.Event()
    stop.set()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), stop) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
    assert statuses[-1].startswith("Stopping")


def test_status_says_how_many_iterations_were_skipped(card: MonitorCard):
    statuses: list[str] = []
    state = TrainingState()
    with Monitor(card, lambda sentence, kind: statuses.append(sentence), threading.Event()) as monitor:
        state.subscribe(monitor)
        state.apply(Started(0, 4))
        state.apply(StepsSkipped(2, 1))
        state.apply(Progressed(2, {"loss/source": 0.5}, None))
    assert statuses[-1].endswith("1 iteration was skipped because a loss or gradient was no finite number.")
