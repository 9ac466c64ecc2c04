"""The card that shows a training as it goes: status, progress, curves and previews."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from supervisely import logger
from supervisely.app.widgets import Card, Container, LineChart, Text
from supervisely.nn.training.gui.training_logs import TrainingLogs

from common.data.choice import BACKGROUND
from common.web.guide import LINK
from train.page.history import RunHistory
from train.page.live import Curve, Frozen, send
from train.page.previews import PreviewBoard
from train.run.readers import THIN, megabytes, pace_and_rest, skipped
from train.run.state import ENDED, Change, Progressed, Started, StepsSkipped, TrainingState, Validated

CLASSES_SHOWN = 10
SECONDS_BETWEEN_UPDATES = 1.0
MODELS = ("student", "teacher")
CONFIDENT = "pseudo_label/confident_share"
CHARTS = {
    # key: title, digits after the point, size of a point, unit
    "best": ("Foreground at the best threshold, %, of the better model", 1, 4, 100),
    "loss": ("Losses", 3, 0, None),
    "lr": ("Learning rate", 7, 0, None),
    "confident": ("Confident pseudo-labels, % of pixels", 1, 0, 100),
    "share": ("Pseudo-labels by class, % of pixels", 2, 0, 100),
    "miou": ("Validation mIoU, %", 1, 4, 100),
    "iou": ("Validation IoU by class, %, of the better model", 1, 4, 100),
    "thin": ("Thin objects: means over the classes, %, of the better model", 1, 4, 100),
}
BEST = {
    "mBestIoU": "IoU",
    "mBestF1_2px": "F1 at 2 px",
    "mBestPrecision": "precision",
    "mBestRecall": "recall",
}
"""Means over the classes but the background, each at its best threshold: what tells most of thin classes."""
SHARE = "pseudo_label/share/"
PHASES = {
    "preparing": "Preparing: reading the photos",
    "training": "Training",
    "validating": "Measuring on the validation photos",
    "saving": "Saving",
    "finished": "Training is done",
    "stopped": "Stopped and saved",
    "failed": "Error",
}


Points = Sequence[tuple[float, float]]


class NoViewer:
    """Takes the place of the button that opens the saved curves, on instances without the app that shows them."""

    payload: dict | None = None

    def set_check_existing_task_cb(self, code: str) -> None:
        """There is no task to look for."""

    def enable(self) -> None:
        """There is nothing to press."""

    def show(self) -> None:
        """There is nothing to show."""


class MonitorCard(TrainingLogs):
    """The card of a running training.

    Args:
        app_options: of the SDK.
    """

    title = "Progress"
    description = "Curves and previews of the running training"

    def __init__(self, app_options: dict[str, Any]) -> None:
        super().__init__(app_options)
        viewer = [self.tensorboard_offline_button]
        if self.tensorboard_offline_button is None:
            # The SDK fails after the upload on instances that lack the viewer of curves.
            self.tensorboard_offline_button, viewer = NoViewer(), []
        self.charts = {
            key: LineChart(
                title,
                series=[],
                stroke_curve="straight",
                markers_size=marker,
                decimalsInFloat=digits,
                xaxis_title="iteration",
                height=260,
            )
            for key, (title, digits, marker, _) in CHARTS.items()
        }
        # Each in a container, whose id a chart's constructor does not take.
        self.frames = {key: Container([chart], widget_id=f"chart_{key}") for key, chart in self.charts.items()}
        self.previews = PreviewBoard()
        pairs = [
            Container([self.frames[left], self.frames[right]], direction="horizontal", fractions=[1, 1])
            for left, right in (("best", "miou"), ("iou", "thin"), ("confident", "share"), ("loss", "lr"))
        ]
        self.display_widgets = [
            self.validator_text,
            self.progress_bar_main,
            self.progress_bar_secondary,
            *viewer,
            *pairs,
            self.previews.container,
        ]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            lock_message=self.lock_message,
            content_top_right=Text(LINK),
        )
        self.card.lock()

    def show_curves(self, key: str, curves: Mapping[str, Points]) -> None:
        """Put curves into a chart; `send` makes them seen."""
        scale = CHARTS[key][3] or 1
        series = Frozen(
            {"name": name, "data": Frozen({"x": x, "y": y * scale} for x, y in points)}
            for name, points in curves.items()
        )
        self.charts[key].set_series(series, send_changes=False)


class Monitor:
    """Shows a run: a reader of its state that never waits for the page, the browser or the instance.

    What a change means is noted in the thread that applies it; a thread of the monitor's own shows it, at most once a
    second. Within its `with` block it shows; at the end of the block it has shown the last state. A run that is
    continued goes on with the curves and measurements up to the iteration that it goes on from.

    Args:
        card: shows curves and previews.
        show_status: shows a sentence on the page and in `/train_status`; takes it and its kind.
        stop: set once the run is to be saved and ended.
        history: of the run; empty if the run is a new one.
        classes: names by index, without the background.
    """

    def __init__(
        self,
        card: MonitorCard,
        show_status: Callable[[str, str], None],
        stop: threading.Event,
        history: RunHistory,
        classes: Sequence[str] = (),
    ) -> None:
        self._classes = tuple(classes)
        self._card, self._show_status, self._stop, self._history = card, show_status, stop, history
        self._version = f"{time.time():.0f}"
        self._lock = threading.Lock()
        self._status = ("", 0, 0)
        self._bar: Any = None
        self._changed, self._closed = threading.Event(), threading.Event()
        self._worker = threading.Thread(target=self._work, name="monitor", daemon=True)
        self._recall()

    def __enter__(self) -> Self:
        self._changed.set()
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._changed.set()
        # A page that does not answer must not hold up the end of a run.
        self._worker.join(5)

    def __call__(self, state: TrainingState, change: Change) -> None:
        """Note a change."""
        self._history.add(change)
        with self._lock:
            if isinstance(change, Started):
                self._recall()
            self._note(change)
            if state.phase not in ENDED:
                done, total = state.iteration, state.total_iterations
                self._status = (self._sentence(state), done, total)
        self._changed.set()

    def _recall(self) -> None:
        """Note what is kept of the run, and nothing else."""
        self._curves: dict[str, dict[str, Curve]] = {key: {} for key in CHARTS}
        self._touched = set(CHARTS)
        self._validated: list[Validated] = []
        self._begins_anew = True
        self._details = self._score = self._skipped = ""
        for change in self._history.changes():
            self._note(change)

    def _note(self, change: Change) -> None:
        match change:
            case Progressed(iteration, scalars):
                self._note_scalars(iteration, scalars)
            case StepsSkipped(_, total):
                self._skipped = f" {skipped(total)}."
            case Validated(iteration, metrics):
                self._note_metrics(iteration, metrics)
                self._validated.append(change)

    def _note_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        losses = {
            name.removeprefix("loss/").replace("_", " "): value
            for name, value in scalars.items()
            if name.startswith("loss/")
        }
        for name, value in losses.items():
            self._add("loss", name, iteration, value)
        if "lr" in scalars:
            self._add("lr", "learning rate", iteration, scalars["lr"])
        if CONFIDENT in scalars:
            self._add("confident", "confident", iteration, scalars[CONFIDENT])
        for name, value in scalars.items():
            index = int(name.removeprefix(SHARE)) if name.startswith(SHARE) else 0
            if 0 < index <= CLASSES_SHOWN:
                known = index <= len(self._classes)
                self._add("share", self._classes[index - 1] if known else f"class {index}", iteration, value)
        self._details = "".join(f" Loss {name} {value:.3g}." for name, value in losses.items())

    def _note_metrics(self, iteration: int, metrics: Mapping[str, float]) -> None:
        scores = {model: metrics[f"{model}/mIoU"] for model in MODELS if f"{model}/mIoU" in metrics}
        for model, score in scores.items():
            self._add("miou", model, iteration, score)
        if not scores:
            return
        better = max(scores, key=scores.__getitem__)
        best = {name: metrics[f"{better}/{name}"] for name in BEST if f"{better}/{name}" in metrics}
        for name, value in best.items():
            self._add("best", BEST[name], iteration, value)
        headline = [f"{BEST[name]} {100 * best[name]:.1f}%" for name in ("mBestIoU", "mBestF1_2px") if name in best]
        at_best = f"Foreground {', '.join(headline)} at the best threshold, " if headline else ""
        self._score = f" {at_best}mIoU {100 * scores[better]:.1f}% at iteration {iteration}."
        prefix = f"{better}/iou/"
        by_class = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        by_class.pop(BACKGROUND, None)
        for name in list(by_class)[:CLASSES_SHOWN]:
            self._add("iou", name, iteration, by_class[name])
        for name, title in THIN.items():
            if f"{better}/{name}" in metrics:
                self._add("thin", title, iteration, metrics[f"{better}/{name}"])

    def _add(self, key: str, name: str, iteration: int, value: float) -> None:
        self._curves[key].setdefault(name, Curve()).add(iteration, value)
        self._touched.add(key)

    def _sentence(self, state: TrainingState) -> str:
        left = pace_and_rest(state.seconds_per_iteration, state.seconds_left)
        place = f": iteration {state.iteration} of {state.total_iterations}" if state.total_iterations else ""
        place += f", {left}" if left else ""
        doing = "Stopping, saves and uploads" if self._stop.is_set() else _doing(state)
        return f"{doing}{place}.{self._details}{self._score}{self._skipped}"

    def _work(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._changed.clear()
            self._refresh()
            self._closed.wait(SECONDS_BETWEEN_UPDATES)
        self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            touched, self._touched = self._touched, set()
            validated, self._validated = self._validated, []
            begins_anew, self._begins_anew = self._begins_anew, False
            sentence, done, total = self._status
            curves = {key: {name: curve.points() for name, curve in self._curves[key].items()} for key in touched}
        for key, points in curves.items():
            if not self._attempt(partial(self._card.show_curves, key, points)):
                with self._lock:
                    self._touched.add(key)
        if begins_anew:
            self._attempt(self._card.previews.clear)
        for one in validated:
            self._attempt(partial(self._card.previews.add, one.iteration, one.previews, self._version))
        if sentence:
            self._attempt(partial(self._show_status, sentence, "info"))
        self._attempt(partial(self._move_bar, done, total))
        self._attempt(send)

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Show a part; what goes wrong with one part, or once, must hold up neither the others nor what follows."""
        try:
            step()
        except Exception as error:
            logger.warning(f"A part of the page was not updated: {error!r}")
            return False
        return True

    def _move_bar(self, done: int, total: int) -> None:
        if not total:
            return
        if self._bar is None:
            self._bar = self._card.progress_bar_main(message="Training", total=total, initial=done)
            self._card.progress_bar_main.show()
        self._bar.update(done - self._bar.n)


def _doing(state: TrainingState) -> str:
    if state.downloading is None:
        return PHASES[state.phase]
    coming = state.downloading
    return f"Preparing: downloading {coming.name}, {megabytes(coming.received, coming.size)}"
