"""Runs that something happens to at a chosen moment, each in a process of its own."""

import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from supervisely.nn.training.train_app import TrainApp

from common.data import reading
from train import __main__ as command_line
from train.leaving import Leaving
from train.run import preparation
from train.run.state import PhaseChanged, Progressed, TrainingState
from train.sdk.app import DomainTrainApp

PHOTOS = ("source", "val")


def run(arguments: list[str], phase: str, way: str, words: Path) -> None:
    """Train, with something happening, and end with the command line's exit code.

    Args:
        arguments: of `python -m train`.
        phase: when it happens: 'preparing', 'training', 'measuring' or 'saving'; '' for never.
        way: what happens, see `happen`.
        words: file that gets what the process says.
    """
    _speak_into(words)
    # As a process of its own does, on Linux and this Python.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    given = command_line.parse(arguments)
    folder = Path(given.source).parent
    _at(phase, lambda: happen(way, given.out, [folder / name for name in PHOTOS]))
    sys.exit(command_line.main(arguments))


def upload(way: str, folder: Path, words: Path) -> None:
    """Upload as the app does, with something happening half way, and end as the app does.

    Args:
        way: what happens.
        folder: of the app; what is uploaded lands in its `team_files`.
        words: file that gets what the process says.
    """
    _speak_into(words)
    out, done = folder / "run", threading.Event()

    def sent(_app: object, _experiment: dict, _is_again: bool = False) -> None:
        happen(way, out, [folder / name for name in PHOTOS])
        (folder / "team_files").mkdir(exist_ok=True)
        for path in out.glob("*.pth"):
            (folder / "team_files" / path.name).write_bytes(path.read_bytes())

    TrainApp._finalize = sent
    app = object.__new__(DomainTrainApp)
    app._somebody_watches = False
    app.has_work_left, app.is_leaving, app._retry = True, False, threading.Event()
    app.uploaded = done.set
    Leaving(lambda: app.has_work_left, lambda: DomainTrainApp.save_and_leave(app)).install()
    uploading = threading.Thread(target=app._finalize, args=({},))
    uploading.start()
    while uploading.is_alive():
        uploading.join(0.05)
    sys.exit(0 if done.is_set() else 3)


def happen(way: str, out: Path, projects: list[Path]) -> None:
    """What happens: names of signals, or what befalls the files."""
    photos = [path for project in projects for path in project.glob("*/img/*")]
    if way == "photo":
        for photo in photos:
            # A folder without any file would be that of a disk which is not mounted.
            photo.with_name("note.txt").touch()
            photo.unlink()
    elif way == "cut photo":
        for photo in photos:
            photo.write_bytes(photo.read_bytes()[:100])
    elif way == "other photo":
        for photo in photos:
            cv2.imwrite(str(photo), cv2.resize(cv2.imread(str(photo)), (80, 96)))
    elif way == "one photo":
        photos[0].unlink()
    elif way in ("share", "share for a while"):
        # Long enough, also on a busy machine, for a share that comes back.
        reading.PAUSES_S = (0.1,) * (60 if way == "share for a while" else 10)
        for project in projects:
            project.rename(project.with_suffix(".away"))
        if way == "share for a while":
            threading.Timer(1.0, lambda: [one.with_suffix(".away").rename(one) for one in projects]).start()
    elif way == "cache":
        for mask in out.rglob("masks/*.png"):
            mask.write_bytes(b"")
    elif way == "read-only":
        _mount_read_only(out)
    else:
        for name in way.split():
            os.kill(os.getpid(), getattr(signal, name))
            # Told by another thread, the main one obeys when its turn comes; equal signals at once are one.
            time.sleep(0 if threading.current_thread() is threading.main_thread() else 0.2)


def _at(phase: str, act: Callable[[], None]) -> None:
    """Have `act` called once, when the phase is reached."""
    left = [act]

    def once() -> None:
        if left:
            left.pop()()

    def hear(state: TrainingState, change: object) -> None:
        apply(state, change)
        if phase == "training" and isinstance(change, Progressed) and change.iteration == 1:
            once()
        if phase == "measuring" and isinstance(change, PhaseChanged) and change.phase == "validating":
            once()

    def prepare(*arguments: object, **options: object) -> object:
        # Photos are listed, and none has been read.
        once()
        return draw(*arguments, **options)

    def save_last(content: object, file: io.BufferedWriter) -> None:
        is_it = phase == "saving" and Path(file.name).name.startswith(".last.pth")
        save(content, Acting(file, once) if is_it else file)

    apply, TrainingState.apply = TrainingState.apply, hear
    save, torch.save = torch.save, save_last
    if phase == "preparing":
        draw, preparation.prepare_labelled = preparation.prepare_labelled, prepare


class Acting:
    """A file that does something in the middle of the weights, where torch's writer calls it."""

    def __init__(self, file: io.BufferedWriter, act: Callable[[], None]) -> None:
        self._file, self._act = file, act
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        """As a file does."""
        if len(data) > 1000:
            self._act()
        return self._file.write(data)


def _mount_read_only(folder: Path) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if "r" not in mode and path.is_relative_to(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *arguments, **options)

    Path.open = refuse


def _speak_into(words: Path) -> None:
    with words.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
