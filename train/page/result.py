"""The card with the result of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from supervisely import Api
from supervisely.app.widgets import Button, Card, Container, Field, Flexbox, Text
from supervisely.nn.training.gui.training_artifacts import TrainingArtifacts

from common.data.choice import BACKGROUND
from common.metrics.unlabelled import MEASURE
from common.paths import is_file
from common.web.guide import LINK
from train.page.live import put, send
from train.page.previews import SUFFIXES
from train.run.errors import COLOURS, WORST
from train.run.scores import HEADINGS, Row, Scores, below_table, compared, is_comparable, table
from train.run.unlabelled import CHOSEN_WITHOUT_LABELS

ROUTE = "errors"
"""Where the app answers with the pictures of errors, relative to the page."""
CLASSES_SHOWN = 10
CLASSES_EXPLAINED = 3
"""With more classes than this only the IoU of each is listed; the experiment has the rest."""
EXPLAINED = {
    "f1_2px": "F1 within 2 px",
    "boundary_f1_2px": "Boundary F1 within 2 px",
    "cldice": "clDice",
}


class ResultCard(TrainingArtifacts):
    """Best checkpoint and its scores, links to experiment and report, and what to do with them.

    Args:
        api: of the instance.
        app_options: of the SDK.
    """

    title = "Result"
    description = "The experiment in Team Files"
    lock_message = "The result is here once a training is done"

    def __init__(self, api: Api, app_options: dict[str, Any]) -> None:
        super().__init__(api, app_options)
        self.success_message_text = "The training is done and its experiment is in Team Files."
        self._ended = ""
        self.best_text = Text("", widget_id="best_checkpoint")
        self.best_field = Field(self.best_text, "Best checkpoint", "Measured on the validation photos")
        self.table_text = Text("", widget_id="result_table")
        self.table_field = Field(
            self.table_text, "Scores", "On the validation photos, in %, each class at its best threshold"
        )
        self.errors_text = Text("", widget_id="result_errors")
        self.errors_field = Field(
            self.errors_text,
            "The photos with the most errors",
            "A click opens the picture; what lies within 2 px of its place counts as found",
        )
        self.compare_button = Button("Compare without target photos", show_loading=False, widget_id="compare_button")
        self.end_button = Button("End the app", plain=True, show_loading=False, widget_id="end_app")
        self.compare_text = Text("", widget_id="compare_text")
        self.compare_table = Text("", widget_id="compare_table")
        buttons = Flexbox([self.compare_button, self.end_button], widget_id="compare_buttons")
        self.compare_field = Field(
            Container([self.compare_text, self.compare_table, buttons], gap=8),
            "What the target photos brought",
            "Known once the same settings are trained without target photos too, which takes as long again",
        )
        self.next_text = Text("", widget_id="open_in_serve")
        self.next_field = Field(self.next_text, "Open in Serve HRDA")
        ours = (self.best_field, self.table_field, self.compare_field, self.errors_field)
        for field in (*ours, self.next_field):
            field.hide()
        shown = list(self.display_widgets)
        self.display_widgets = [shown[0], *ours, *shown[1:], self.next_field]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            lock_message=self.lock_message,
            content_top_right=Text(LINK),
        )
        self.card.lock()

    def show_scores(self, scores: Scores, control: Scores | None, ended: str, pictures: Path, version: str) -> None:
        """Show table, verdict and the worst photos.

        Args:
            scores: of the run's best measurement.
            control: of the run without target photos, where there is one.
            ended: how the run ended, such as 'stopped at 540 of 600 iterations'.
            pictures: folder with the pictures of errors.
            version: tells this run's pictures from another's of the same name, for the browser's memory.
        """
        self._ended = f", {ended}"
        parts = [html_table(table(scores)), f"<div>{below_table(scores)}</div>"]
        if control is not None and is_comparable(scores, control):
            self.compare_table.set(html_table(compared(scores, control)), "text")
        self.table_text.set("".join(parts), "text")
        self.table_field.show()
        drawn = html_errors(scores, pictures, version)
        self.errors_text.set(drawn, "text")
        if drawn:
            self.errors_field.show()
        self.card.unlock()

    def say_of_comparison(self, sentence: str, kind: str = "info") -> None:
        """Say how the comparison stands."""
        put(self.compare_text, text=escape(sentence, quote=False), status=kind)
        put(self.compare_field, hide=False)
        send()

    def offer_comparison(self, *, may_begin: bool, may_end: bool) -> None:
        """Show the buttons by which the comparison is begun and the app ended."""
        put(self.compare_field, hide=False)
        put(self.compare_button, disabled=not may_begin, hide=not may_begin)
        put(self.end_button, disabled=not may_end, hide=not may_end)
        send()

    def show_result(self, experiment: str, checkpoint: str, metrics: Mapping[str, float]) -> None:
        """Show what came out.

        Args:
            experiment: its name.
            checkpoint: file name of the best checkpoint.
            metrics: its scores from 0 to 1, such as `mIoU` and `iou/crack`; empty if nothing was measured.
        """
        has_table = bool(self.table_text.text)
        best = f"{checkpoint}{self._ended}" if has_table else describe(checkpoint, metrics)
        self.best_text.set(escape(best, quote=False), "text")
        self.next_text.set(
            "Start the app Serve HRDA, open its tab Custom models, choose the experiment "
            f"'{escape(experiment, quote=False)}' with the "
            f"checkpoint {checkpoint}, and press Serve.",
            "text",
        )
        for field in (self.best_field, self.next_field):
            field.show()


def html_table(rows: Sequence[Row]) -> str:
    """The table as the page shows it."""
    cell = "padding: 4px 16px 4px 0; white-space: nowrap; border: 0"
    head = "".join(f'<th style="{cell}; text-align: left">{escape(title)}</th>' for title in HEADINGS)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{cell}">{escape(one)}</td>' for one in (row.title, row.threshold, *row.cells))
        + "</tr>"
        for row in rows
    )
    table = f'<table style="border-collapse: collapse"><tr>{head}</tr>{body}</table>'
    return f'<div style="overflow-x: auto">{table}</div>'


def html_errors(scores: Scores, pictures: Path, version: str) -> str:
    """The worst photos with their errors in colour, side by side, each a link to its large picture."""
    photos = scores.photos
    shown = []
    for number, place in enumerate(photos.worst(WORST), start=1):
        if not is_file(pictures / f"{number}_errors.jpg"):
            continue
        # Relative to the page, which may lie below a path of the instance.
        errors, photo = (f"{ROUTE}/{number}_{kind}.jpg?run={version}" for kind in ("errors", "photo"))
        name = escape(photos.names[place])
        shown.append(
            f'<div><a href="{errors}" target="_blank"><img src="{errors}" alt="errors in {name}" '
            f'style="width: 100%; cursor: zoom-in"></a><div style="overflow-wrap: anywhere">{name} '
            f'(<a href="{photo}" target="_blank">the photo</a>)</div></div>'
        )
    if not shown:
        return ""
    colours = " ".join(
        f'<span style="color: rgb{colour}">&#9632;</span> {what}&emsp;' for what, colour in COLOURS.items()
    )
    grid = "display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px"
    return f'<div>{colours}</div><div style="{grid}">{"".join(shown)}</div>'


def error_picture(folder: Path, name: str) -> Path | None:
    """The picture of errors that a browser asks for; None for whatever is not one, wherever the name leads."""
    if Path(name).name != name or Path(name).suffix.lower() not in SUFFIXES:
        return None
    path = (folder / name).resolve()
    return path if is_file(path) and path.is_relative_to(folder.resolve()) else None


def describe(checkpoint: str, metrics: Mapping[str, float]) -> str:
    """A checkpoint and its scores in a sentence."""
    if MEASURE in metrics:
        return f"{checkpoint}. {CHOSEN_WITHOUT_LABELS}"
    if "mIoU" not in metrics:
        return f"{checkpoint}. It was not measured."
    classes = [name for name in metrics if name.startswith("iou/")]
    scores = [f"{_shown(name.removeprefix('iou/'))} {100 * metrics[name]:.1f}%" for name in classes[:CLASSES_SHOWN]]
    more = f" and {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else ""
    by_class = f" IoU: {', '.join(scores)}{more}." if scores else ""
    of_thin = _explained(metrics) if len(classes) <= CLASSES_EXPLAINED + 1 else ""
    return f"{checkpoint}. mIoU {100 * metrics['mIoU']:.1f}%.{by_class}{of_thin}"


def _explained(metrics: Mapping[str, float]) -> str:
    """Sentences with the scores for thin objects and with the thresholds that suit each class best."""
    sentences = []
    for score, title in EXPLAINED.items():
        values = [
            f"{_shown(name.removeprefix(f'{score}/'))} {100 * value:.1f}%"
            for name, value in metrics.items()
            if name.startswith(f"{score}/")
        ]
        if values:
            sentences.append(f" {title}: {', '.join(values)}.")
    thresholds = []
    for name, threshold in metrics.items():
        if name.startswith("best_threshold/"):
            of_class = name.removeprefix("best_threshold/")
            iou = metrics[f"best_iou/{of_class}"]
            thresholds.append(f"{_shown(of_class)} {threshold:.2f} (IoU {100 * iou:.1f}%)")
    if thresholds:
        sentences.append(f" Best threshold: {', '.join(thresholds)}.")
    return "".join(sentences)


def _shown(name: str) -> str:
    return "background" if name == BACKGROUND else name
