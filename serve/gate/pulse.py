"""Whether what computes gets on: a process whose model is stuck still answers, and must be started anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pulse:
    """Notes each batch of windows that begins.

    Args:
        limit_s: longest time between two of them, or to the end, in seconds.
        clock: seconds, ever rising.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._at_work, self._last = 0, 0.0
        self._lock = threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it, something is predicted or waits for its turn."""
        with self._lock:
            if self._at_work == 0:
                self._last = self._clock()
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
                self._last = self._clock()

    def after(self, asked: Callable[[], None]) -> Callable[[], None]:
        """What is to be called before each batch: `asked`, and then this is told."""

        def beat() -> None:
            asked()
            self._last = self._clock()

        return beat

    def trouble(self) -> str | None:
        """What is wrong, for a monitor; None while predictions get on or there are none."""
        with self._lock:
            silence = self._clock() - self._last
            if self._at_work == 0 or silence <= self._limit_s:
                return None
        return f"The model has finished no batch of windows for {silence:.0f} seconds. Start the service anew."
