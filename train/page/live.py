"""Updates of the page that stay cheap while a training runs.

After every change the SDK copies and compares all that the page shows, lists point by point with an edit distance: two
curves of 200 points cost a second in which no click is answered. Values here are replaced whole, and several of them
are sent at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Self

from fastapi import HTTPException
from supervisely import logger
from supervisely.app import DataJson
from supervisely.app.widgets import Button, Text, Widget


class Frozen(tuple):
    """What never changes once it is shown: neither copied nor compared item by item. JSON has it as a list."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Curve:
    """Points (x, y) of a curve, evenly thinned out as it grows.

    Args:
        limit: most points kept, the last one besides.
    """

    def __init__(self, limit: int = 200) -> None:
        self._limit = limit
        self._kept: list[tuple[float, float]] = []
        self._last: tuple[float, float] | None = None
        self._stride = 1
        self._count = 0

    def add(self, x: float, y: float) -> None:
        """Take a point in; no finite number is no point."""
        if not math.isfinite(y):
            return
        self._last = (x, y)
        if self._count % self._stride == 0:
            self._kept.append(self._last)
            if len(self._kept) > self._limit:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._count += 1

    def points(self) -> list[tuple[float, float]]:
        """The points to draw, the last one always among them."""
        if self._last is None or self._kept[-1] == self._last:
            return list(self._kept)
        return [*self._kept, self._last]


class BackgroundButton(Button):
    """A button whose click is answered at once, while its work goes on in a thread.

    Args:
        text: on the button.
        is_awaited: the process ends only when the work is done.
        options: further ones of the SDK's button.
    """

    def __init__(self, text: str, *, is_awaited: bool = False, **options: Any) -> None:
        self._is_awaited = is_awaited
        super().__init__(text, show_loading=False, **options)

    def click(self, func: Callable[[], None]) -> Callable[[], None]:
        """Do `func` in a thread of its own after each click."""

        def work() -> None:
            try:
                func()
            except HTTPException as refusal:
                logger.info(f"{self.text}: {refusal.detail}")

        def start() -> None:
            threading.Thread(target=work, name=self.widget_id, daemon=not self._is_awaited).start()

        return super().click(start)


def put(widget: Widget, **values: Any) -> None:
    """Change what a widget shows; `send` makes it seen."""
    DataJson()[widget.widget_id].update(values)


def send() -> None:
    """Send all that was put to the browsers."""
    DataJson().send_changes()


def forget_error(text: Text) -> None:
    """Take back what was said of a mistake, once a person has changed what it was said of; all else stays."""
    if text.status == "error" and not text.is_hidden():
        text.hide()
