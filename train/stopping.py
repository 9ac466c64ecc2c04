"""How the process of a command line is told to stop, and where its words go. Needs neither torch nor the SDK."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from train.run.launched import SECONDS_TO_SAVE, Launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end: a person at the terminal, a scheduler, a terminal that was closed."""


@dataclass
class Asked:
    """What signals have asked for so far."""

    to_stop: bool = False
    """To save and end."""
    insists: bool = False
    """To end at once, whatever is going on."""


@contextmanager
def stopping_on_signals(stop: threading.Event, launched: Launched) -> Iterator[Asked]:
    """Within the block, signals set `stop`; a second Ctrl-C or SIGTERM raises KeyboardInterrupt.

    A closed terminal never counts as a second one: the shell and the kernel each send SIGHUP. A process that was
    started to survive it (nohup) does. Under torchrun no second signal counts: one may come from the terminal or the
    scheduler and from torchrun too, which also ends the processes when they take too long.
    """
    asked = Asked()
    counted = False

    def handle(number: int, _frame: object) -> None:
        nonlocal counted
        if number != signal.SIGHUP:
            if counted and launched.is_alone:
                asked.insists = True
                raise KeyboardInterrupt
            counted = True
        if not asked.to_stop and launched.is_first:
            again = "; once more ends without saving" if launched.is_alone else ""
            # A terminal that is gone takes no words; nor does a stream that this handler has interrupted.
            with suppress(OSError, RuntimeError):
                print(f"Stopping after this iteration{again}.", file=sys.stderr, flush=True)
        asked.to_stop = True
        stop.set()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch_input(stop: threading.Event) -> None:
    """Set `stop` when the pipe at the standard input says anything or ends, as it does when who holds it is gone."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        os.read(0, 1)
        stop.set()

    threading.Thread(target=wait, name="watch-input", daemon=True).start()


def watch_torchrun(stop: threading.Event) -> None:
    """Set `stop` when torchrun is gone, which alone could end this process if it hung; end it when that takes long."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        stop.set()
        time.sleep(SECONDS_TO_SAVE)
        os._exit(1)

    threading.Thread(target=wait, name="watch-torchrun", daemon=True).start()


@contextmanager
def output_for_changes() -> Iterator[TextIO]:
    """The standard output for the block alone: what else is written to it goes to the standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        try:
            yield stream
        finally:
            sys.stdout.flush()
            os.dup2(stream.fileno(), 1)


def open_closed_streams() -> None:
    """Lead standard streams that were closed before the start to nowhere.

    The next file to be opened would otherwise get the number of one, and with it what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def tell(text: str, stream: TextIO | None) -> bool:
    """Print a line to `stream`, if there is one; whether that worked. What nobody takes is no reason to lose work.

    A line may go to a file on a full disk, to a terminal that was closed, to a pipe that nobody reads any more.
    """
    try:
        if stream is not None:
            print(text, file=stream, flush=True)
    except OSError as error:
        _drop(stream, for_good=error.errno != errno.ENOSPC)
        return False
    return True


def _drop(stream: TextIO, *, for_good: bool) -> None:
    """Get rid of what a stream could not pass on: whoever flushes it next, as each fork does, would fail likewise.

    Args:
        stream: nothing is done to one that is no file's.
        for_good: whether all that follows is dropped too.
    """
    try:
        number = stream.fileno()
    except OSError:
        return
    nowhere, before = os.open(os.devnull, os.O_WRONLY), os.dup(number)
    os.dup2(nowhere, number)
    stream.flush()
    if not for_good:
        os.dup2(before, number)
    os.close(nowhere)
    os.close(before)
