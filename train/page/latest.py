"""Slow work for the page, of which only the latest order counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from supervisely import logger


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
            try:
                self._work(partial(self._is_stale, number))
            except Exception:
                # The thread must outlive a mistake in one piece of work: the next order may go well.
                logger.error("Work for the page ended with an error", exc_info=True)
            with self._changed:
                self._done = number
                self._changed.notify_all()
