"""What the page has of ours besides the SDK's cards: the thresholds of the deployed model, and the way back to 0.5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

from supervisely.app.widgets import Card, Container, Switch, Text

from common.web.guide import LINK
from serve.model.settings import said

_NONE = "The training of this model measured no thresholds: the most probable class counts, as at 0.5."


class ThresholdsCard:
    """Says the thresholds that were best in the model's validation, and switches them off.

    Args:
        changed: called when that changed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.uses_best = True
        """Whether they count."""
        self.text = Text("")
        self.switch = Switch(switched=True, on_text="best", off_text="0.5", width=70)
        self.card = Card(
            title="Thresholds",
            description="From which probability a pixel takes a class, where a request does not say it.",
            content=Container([self.switch, self.text]),
            content_top_right=Text(LINK),
        )
        self.card.hide()
        self._changed = changed
        self._best: dict[str, float] = {}
        self.switch.value_changed(self.choose)

    def show(self, best: Mapping[str, float]) -> None:
        """Tell the thresholds by class name of the model that is deployed; those of another model count at first."""
        if best and best == self._best:
            # A model that wakes up is deployed again: it stays as it was chosen.
            return
        self._best = dict(best)
        self.card.show()
        if best:
            self.switch.on()
            self.switch.show()
        else:
            self.switch.hide()
        self.choose(True)

    def choose(self, use_best: bool) -> None:
        """Let the best thresholds count, or the most probable class."""
        self.uses_best = use_best
        if not self._best:
            self.text.text = _NONE
        elif use_best:
            self.text.text = f"Best in this model's validation, and used: {said(self._best)}."
        else:
            self.text.text = f"The most probable class counts, as at 0.5. Best in validation was: {said(self._best)}."
        self._changed()


class TryCard:
    """A photo tried in the browser, and how scripts and the labelling tool do the same."""

    def __init__(self) -> None:
        self._frame = Text("", widget_id="try_frame")
        self.card = Card(
            title="Try a photo",
            description="With a threshold to move, and the lines by which scripts and tools ask this very service.",
            content=self._frame,
            content_top_right=Text(LINK),
        )
        self.card.hide()

    def show(self, model: str) -> None:
        """Show the page to try a photo, anew for another model."""
        # Relative to the page, which may lie below a path of the instance.
        self._frame.text = (
            f'<iframe src="try?model={quote(model)}" title="Try a photo" '
            'style="width: 100%; height: 900px; border: 0"></iframe>'
        )
        self.card.show()
