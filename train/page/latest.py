"""Slow work for the page, of which only the latest order counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from supervisely import logger

_ATTEMPTS = 3
_PAUSE_S = 0.2


class LatestOnly:
    """Does a piece of work in a thread of its own whenever it is ordered; a new order ends the old work early."""

    def __init__(self, work: Callable[[Callable[[], bool]], None], name: str) -> None:
        """Start the thread, which waits for orders and ends with the program.

        Args:
            work: called with a function that says whether a newer order has come, so that it may stop.
            name: of the thread.
        """
        self._work = work
        self._changed = threading.Condition()
        self._ordered = self._done = 0
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def order(self) -> None:
        """Have the work done, anew if it is being done; returns at once."""
        with self._changed:
            self._ordered += 1
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that was ordered is done; False if that took more than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._done == self._ordered, timeout)

    def _is_stale(self, number: int) -> bool:
        return self._ordered > number

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done < self._ordered)
                number = self._ordered
            self._attempt(partial(self._is_stale, number))
            with self._changed:
                self._done = number
                self._changed.notify_all()

    def _attempt(self, is_stale: Callable[[], bool]) -> None:
        for _ in range(_ATTEMPTS):
            try:
                self._work(is_stale)
            except Exception:
                # The thread outlives every mistake. Another attempt may go well: the SDK copies all that the page
                # shows after each change, and fails when widgets are added meanwhile, as while the app starts.
                logger.error("Work for the page ended with an error", exc_info=True)
                time.sleep(_PAUSE_S)
            else:
                return
