"""How the demos end: on every signal that asks for it, without a traceback and without a process left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request of another process, and a terminal that was closed."""


def ending_at_once() -> None:
    """From now on a signal ends the process: as long as nothing is begun, there is nothing to clean up."""
    for number in SIGNALS:
        # Not by an exception, which modules that are being imported may turn into others.
        signal.signal(number, lambda *_: os._exit(0))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A signal ends the block by KeyboardInterrupt; further ones are left alone, so that it can clean up."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        os.write(2, b"\nEnding; a training in the app is saved first.\n")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
