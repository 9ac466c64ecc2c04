"""The card with the result of a training."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from supervisely import Api
from supervisely.app.widgets import Card, Container, Field, Text
from supervisely.nn.training.gui.training_artifacts import TrainingArtifacts

from common.data.choice import BACKGROUND
from common.metrics.unlabelled import MEASURE
from common.web.guide import LINK
from train.run.unlabelled import CHOSEN_WITHOUT_LABELS

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
        self.best_text = Text("", widget_id="best_checkpoint")
        self.best_field = Field(self.best_text, "Best checkpoint", "Measured on the validation photos")
        self.next_text = Text("", widget_id="open_in_serve")
        self.next_field = Field(self.next_text, "Open in Serve HRDA")
        for field in (self.best_field, self.next_field):
            field.hide()
        shown = list(self.display_widgets)
        self.display_widgets = [shown[0], self.best_field, *shown[1:], self.next_field]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            lock_message=self.lock_message,
            content_top_right=Text(LINK),
        )
        self.card.lock()

    def show_result(self, experiment: str, checkpoint: str, metrics: Mapping[str, float]) -> None:
        """Show what came out.

        Args:
            experiment: its name.
            checkpoint: file name of the best checkpoint.
            metrics: its scores from 0 to 1, such as `mIoU` and `iou/crack`; empty if nothing was measured.
        """
        self.best_text.set(escape(describe(checkpoint, metrics), quote=False), "text")
        self.next_text.set(
            "Start the app Serve HRDA, open its tab Custom models, choose the experiment "
            f"'{escape(experiment, quote=False)}' with the "
            f"checkpoint {checkpoint}, and press Serve.",
            "text",
        )
        for field in (self.best_field, self.next_field):
            field.show()


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
