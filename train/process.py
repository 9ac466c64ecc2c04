"""Training in a process of its own, so that a crash of it or its work does not reach who watches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisely import logger

from common.data.project import ProjectError
from common.hrda.checks import SettingsError
from train.run.folder import RunFolder, resumable
from train.run.launched import SECONDS_TO_SAVE, torchrun
from train.run.processes import EndedElsewhere
from train.run.request import RunRequest
from train.run.state import Failed, Finished, RunResult, TrainingError, TrainingState, decode
from train.settings.training import TrainSettings

ROOT = Path(__file__).parents[1]
_ERRORS = {error.__name__: error for error in (SettingsError, ProjectError, TrainingError)}
_SECONDS_BETWEEN_LOOKS = 0.2
# A person waits for this process's answers and nobody for the child's next iteration, should they share cores.
_NICENESS = 5
# How torchrun tells that one of its processes was ended by a signal.
_SIGNAL_IN_LOG = re.compile(r"exitcode\s*: -(\d+)")


class ProcessWatch:
    """Whether the end of a training process is noticed by the app that shows the training.

    Args:
        limit_s: longest time from that end until the app has noticed, in seconds.
        clock: seconds, ever rising.
    """

    def __init__(self, limit_s: float = 120, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._child: int | None = None
        self._gone_since: float | None = None

    @contextmanager
    def watching(self, child: int) -> Iterator[None]:
        """Within it, the training is shown that the process of number `child` does."""
        self._child, self._gone_since = child, None
        try:
            yield
        finally:
            self._child = None

    def trouble(self) -> str | None:
        """What is wrong, for a monitor; None while the process runs, and while there is none."""
        child, now = self._child, self._clock()
        if child is None or _runs(child):
            return None
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since <= self._limit_s:
            return None
        return (
            f"The training process ended {now - self._gone_since:.0f} seconds ago, and the app still shows a training. "
            "Start the app anew: its page offers to continue the run from the last checkpoint."
        )


def _runs(child: int) -> bool:
    """Whether a process that this one has started has not ended."""
    try:
        # Its end is looked at without taking note of it, which is up to who has started it.
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def run_in_process(
    request: RunRequest, *, state: TrainingState, stop: threading.Event, watch: ProcessWatch | None = None
) -> RunResult:
    """Do what `train.run.engine.run` does, in a child process that runs `python -m train --changes`.

    The child's changes are applied to `state` in the calling thread. What it logs goes to `training.log` in the run's
    folder and to the app's log. When this process ends, however it does, the child saves and ends.

    Args:
        request: what is asked for.
        state: is told of every change.
        stop: once set, the child saves after its current iteration and ends normally.
        watch: is told of the child.

    Raises:
        SettingsError, ProjectError: as `train.run.engine.run`, before any training.
        TrainingError: training cannot go on, or its process was killed or has crashed.
    """
    folder = RunFolder(request.out)
    try:
        folder.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"The run's folder {request.out} cannot be made: {error.strerror}.") from error
    end: Finished | Failed | None = None
    with tempfile.TemporaryDirectory(prefix="hrda-") as scratch:
        settings_file = Path(scratch) / "settings.yaml"
        settings_file.write_text(request.settings.to_yaml(), encoding="utf-8")
        with (
            _child(_command(request, settings_file), folder.log, stop) as (child, log),
            (watch or ProcessWatch()).watching(child.pid),
        ):
            for line in child.stdout:
                # A child that is killed may leave half a line.
                if line.endswith("\n"):
                    change = decode(line)
                    if isinstance(end, Failed):
                        # Of several processes the first that fails has the cause; others fail for want of it.
                        continue
                    state.apply(change)
                    end = change if isinstance(change, Finished | Failed) else end
    if isinstance(end, Finished):
        return RunResult.from_change(end)
    if not isinstance(end, Failed) or (end.kind == EndedElsewhere.__name__ and log.signal):
        end = Failed(_reason(-log.signal or child.returncode, log.last_line, folder, request.settings))
        state.apply(end)
    raise _ERRORS.get(end.kind, TrainingError)(end.reason)


def _command(request: RunRequest, settings_file: Path) -> list[str]:
    devices = request.device.split(",")
    python = torchrun(len(devices)) if len(devices) > 1 else [sys.executable, "-m"]
    return [*python, "train", "--changes", *request.command_arguments(settings_file)]


@contextmanager
def _child(
    command: list[str], log: Path, stop: threading.Event
) -> Iterator[tuple[subprocess.Popen[str], _LogFollower]]:
    """Run a command whose standard output the block reads to its end; leave no process behind.

    Args:
        command: ends when its standard input says anything or is closed.
        log: what the command writes to its standard error is added to this file.
        stop: makes the command end.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The child writes to the file itself: a pipe would break with this process, and the child must still save.
    with log.open("a", encoding="utf-8") as file:
        start = file.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            encoding="utf-8",
            # The handler says in the log where a crash in native code happened.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"},
            # A terminal's Ctrl-C is this process's to handle.
            start_new_session=True,
        )
    os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
    ended = threading.Event()
    follower = _LogFollower(log, start, ended)
    helpers = [follower, threading.Thread(target=_watch, args=(child, stop, ended), name="watch-training")]
    for helper in helpers:
        helper.start()
    try:
        yield child, follower
    except BaseException:
        _ask_to_stop(child)
        # A pipe that nobody empties would hold the child up.
        child.stdout.close()
        if not ended.wait(SECONDS_TO_SAVE):
            child.kill()
        raise
    finally:
        for helper in helpers:
            helper.join()
        for pipe in (child.stdin, child.stdout):
            pipe.close()


def _watch(child: subprocess.Popen[str], stop: threading.Event, ended: threading.Event) -> None:
    """Pass `stop` on to the child, wait for its end, and end what it has left running."""
    asked = False
    # The child's number, which is the group's too, is not another's before its end is taken note of.
    while _runs(child.pid):
        if asked:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        elif stop.wait(_SECONDS_BETWEEN_LOOKS):
            _ask_to_stop(child)
            asked = True
    # Processes that prepare batches outlive a killed child by seconds, with its pipe and its memory.
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    ended.set()


def _ask_to_stop(child: subprocess.Popen[str]) -> None:
    # Not a signal: one that comes before the child is ready for it would end it at once.
    try:
        child.stdin.write("\n")
        child.stdin.flush()
    except (BrokenPipeError, ValueError):
        logger.debug("The training process has ended before it was asked to.")


class _LogFollower(threading.Thread):
    """Repeats in the app's log what is added to the child's, until the child has ended."""

    def __init__(self, log: Path, start: int, ended: threading.Event) -> None:
        super().__init__(name="follow-training-log")
        self._log, self._start, self._ended = log, start, ended
        self.last_line = ""
        self.signal = 0
        """The first signal that ended one of torchrun's processes, as torchrun says; 0 for none."""

    def run(self) -> None:
        with self._log.open(encoding="utf-8", errors="replace", newline="\n") as file:
            file.seek(self._start)
            incomplete = ""
            is_last = False
            while not is_last:
                is_last = self._ended.wait(_SECONDS_BETWEEN_LOOKS)
                *lines, incomplete = (incomplete + file.read()).split("\n")
                for line in lines + [incomplete] * is_last:
                    self._repeat(line)

    def _repeat(self, line: str) -> None:
        # Progress bars begin their line anew; only their last state is of interest.
        text = line.rstrip().rpartition("\r")[2]
        if text:
            self.last_line = text.strip()
            if not self.signal and (found := _SIGNAL_IN_LOG.search(text)):
                self.signal = int(found[1])
            logger.info(text)


def _reason(returncode: int, last_line: str, folder: RunFolder, settings: TrainSettings) -> str:
    """Why a child ended without a word, and what to do."""
    kept = resumable(folder.out)
    goes_on = f"'Continue' goes on from iteration {kept.iteration}." if kept else "Nothing was saved: start again."
    if returncode == -signal.SIGKILL:
        data = settings.data
        sizes = {"data.workers": data.workers, "data.memory_cache_mb": data.memory_cache_mb}
        # What can be no lower is not advised.
        lower = [f"{name} ({size})" for name, size in sizes.items() if size]
        lower += [f"batch_size ({settings.batch_size})" if settings.batch_size > 1 else "model.crop_size"]
        return (
            "The training process was ended by the system (signal 9), most often because main memory ran out. Lower "
            f"{' or '.join(lower)}. {goes_on}"
        )
    if returncode < 0:
        name = signal.strsignal(-returncode)
        return f"The training process crashed (signal {-returncode}, {name}); {folder.log} says where. {goes_on}"
    cause = (last_line or f"exit code {returncode}").rstrip(".")
    return f"The training process ended with an error: {cause}. All of it is in {folder.log}. {goes_on}"
