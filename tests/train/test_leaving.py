"""Told to end, the app saves first; told twice, it ends."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from train.leaving import Leaving
from train.stopping import SIGNALS


class Work:
    """Stands for a training."""

    def __init__(self) -> None:
        self.is_busy = False
        self.saved = threading.Event()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """How the process was ended, if it was."""
    ways: list[str] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: ways.append(signal.Signals(number).name))
    monkeypatch.setattr(os, "_exit", lambda code: ways.append(f"exit {code}"))
    yield ways
    for number, handler in before.items():
        signal.signal(number, handler)


def test_idle_app_ends_as_its_server_does(ended: list[str]):
    work = Work()
    Leaving(lambda: work.is_busy, work.saved.set).install()
    signal.raise_signal(signal.SIGTERM)
    assert ended == ["SIGTERM"]
    assert not work.saved.is_set()


@pytest.mark.parametrize("number", SIGNALS)
def test_training_is_saved_before_the_app_ends(ended: list[str], number: int):
    work = Work()
    work.is_busy = True
    leaving = Leaving(lambda: work.is_busy, work.saved.set)
    leaving.install()
    signal.raise_signal(number)
    assert work.saved.wait(10)
    assert (ended, leaving.is_asked) == ([], True)
    work.is_busy = False
    signal.raise_signal(signal.SIGINT)
    assert ended == ["SIGINT"], "uploaded: now the SDK's own shutdown gets through"


def test_closed_terminal_counts_once_and_ends_an_idle_app(ended: list[str]):
    work = Work()
    work.is_busy = True
    leaving = Leaving(lambda: work.is_busy, work.saved.set)
    leaving.install()
    for _ in range(3):
        signal.raise_signal(signal.SIGHUP)
    assert work.saved.wait(10)
    assert ended == []


def test_app_that_is_to_outlive_its_terminal_does(ended: list[str]):
    """As nohup starts it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Leaving(lambda: False, int).install()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_second_signal_ends_the_app_at_once(ended: list[str]):
    """Not with zero, so that the agent keeps the files."""
    work = Work()
    work.is_busy = True
    Leaving(lambda: work.is_busy, work.saved.set).install()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert ended == ["exit 1"]
