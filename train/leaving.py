"""What happens when the platform ends the app: a running training is saved and uploaded first."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from supervisely import logger

from train.stopping import SIGNALS


class Leaving:
    """Holds back the end of the process while there is work to save; asked a second time, it ends at once.

    The SDK's route for shutting down ends in a signal to its own process too.

    Args:
        is_busy: whether a training runs or is being uploaded.
        save: has it saved and uploaded; must return at once. Whoever uploads ends the process afterwards.
    """

    def __init__(self, is_busy: Callable[[], bool], save: Callable[[], None]) -> None:
        self.is_asked = False
        """Whether the process is to end as soon as the work is saved."""
        self._is_busy, self._save = is_busy, save
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over from the server that the app runs in; only the main thread can."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal."""
        if not self._is_busy():
            before = self._before[number]
            if callable(before):
                before(number, frame)
            elif before == signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.is_asked and number == signal.SIGHUP:
            # Of a closed terminal it comes more than once.
            return
        if self.is_asked:
            # Not zero: the agent then keeps the files. The child process sees that its parent is gone.
            os._exit(1)
        self.is_asked = True
        # A handler interrupts the server's thread wherever it is, and must not wait for what that thread may hold.
        threading.Thread(target=self._leave, name="leaving", daemon=True).start()

    def _leave(self) -> None:
        logger.info("The app was told to end: the training is saved and uploaded first. Once more ends it at once.")
        self._save()


def end_well() -> None:
    """Have the process end with 0 once nothing is left to do.

    Python would first end the page's threads wherever they are; in native code that aborts the process, and a task
    whose experiment is in Team Files would count as failed.
    """
    atexit.register(_exit_with_zero)


def _exit_with_zero() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
