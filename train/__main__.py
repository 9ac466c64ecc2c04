"""`python -m train`: train on local folders, without a page and without an instance."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from train.settings import TrainSettings

# The engine needs torch and the SDK, which take seconds to import: not here, for the sake of --help.

EPILOG = """\
A folder is a Supervisely project. Name datasets after a colon, several with commas, nested ones with a slash:
  --source photos:labelled --target photos:road1,road2/night --val photos:check

modes:
  source-only   supervised on the source: the baseline
  control       the same with a second pass on strongly augmented source: what augmentation alone gives
  uda           HRDA: the second pass is on target photos mixed with source
  supervised    supervised on a labelled --target (--source is not used): the upper bound

Ctrl-C saves the last checkpoint and exits; --resume goes on from it.

With --changes, another program reads the standard output: one JSON object a line for each change of the run. When it
stops reading, or closes the pipe that is the standard input, the last checkpoint is saved and the run ends.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train HRDA on labelled source photos and adapt it to unlabelled target photos.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = "DIR[:DATASET]"
    parser.add_argument("--source", metavar=folder, help="labelled photos to learn from")
    parser.add_argument("--target", metavar=folder, help="photos to adapt to; no labels needed")
    parser.add_argument(
        "--labelled-target", metavar=folder, help="labelled photos of the target, learnt from along with the source"
    )
    parser.add_argument("--val", metavar=folder, required=True, help="labelled photos to measure on")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for checkpoints and curves")
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help='classes to train (default: all of the labelled photos); "A, B" in quotes for a comma in a name',
    )
    parser.add_argument(
        "--settings", metavar="FILE", type=Path, help="settings in YAML (see train/hyperparameters.yaml)"
    )
    parser.add_argument("--mode", metavar="MODE", help="source-only, control, uda or supervised (default: uda)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one setting, such as optimizer.lr=1e-3; may be repeated",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--init", metavar="FILE", type=Path, help="checkpoint or encoder weights to start from")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings unless others are given"
    )
    parser.add_argument(
        "--changes", action="store_true", help="print the changes of the run as JSON lines, and all else on stderr"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done or stopped, 2 refused or failed with a reason."""
    given = parse(arguments)
    stop = threading.Event()
    # From here on, and not only once the imports are done, ending is decided between two iterations.
    with stopping_on_signals(stop):
        if not given.changes:
            return train(given, stop, None)
        watch_input(stop)
        with output_for_changes() as stream:
            return train(given, stop, stream)


def train(given: argparse.Namespace, stop: threading.Event, changes: TextIO | None) -> int:
    """Train as the arguments say.

    Args:
        given: of the command line.
        stop: ends the run once it is set.
        changes: where each change goes as a line of JSON; None: progress goes to the standard output.

    Returns:
        The exit code.
    """
    from common.data.project import ProjectError
    from common.hrda import SettingsError
    from train.engine import Domains, TrainingError, run
    from train.readers import ChangeLines, ProgressLines, TensorBoardScalars
    from train.state import Failed, TrainingState

    state = TrainingState()
    if changes is not None:
        state.subscribe(ChangeLines(changes, stop.set))
    state.subscribe(ProgressLines())
    state.subscribe(TensorBoardScalars(given.out / "tensorboard"))
    try:
        result = run(
            read_settings(given),
            Domains(given.source, given.target, given.val, given.labelled_target),
            given.out,
            classes=read_classes(given.classes),
            device=given.device,
            state=state,
            stop=stop,
            resume=given.resume,
            init_checkpoint=given.init,
        )
    except (SettingsError, ProjectError, TrainingError) as error:
        failed = Failed(str(error), type(error).__name__)
    except OSError as error:
        failed = Failed(f"A file cannot be read or written: {error}. Look for room on the disk and for permissions.")
    except KeyboardInterrupt:
        print("Ended without saving.", file=sys.stderr)
        return 130
    else:
        print(f"Best checkpoint: {result.best}")
        return 0
    state.apply(failed)
    print(f"error: {failed.reason}", file=sys.stderr)
    return 2


def read_settings(given: argparse.Namespace) -> TrainSettings:
    """The settings of a file, or of the run to resume, or the defaults, with the command line's changes.

    Raises:
        SettingsError: the file cannot be read, or says something that cannot work.
    """
    from common.hrda import SettingsError
    from train.settings import TrainSettings

    path = given.settings
    if path is None and given.resume and (given.out / "settings.yaml").is_file():
        path = given.out / "settings.yaml"
    overrides = ([f"mode={given.mode}"] if given.mode else []) + given.overrides
    try:
        text = path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from error
    return TrainSettings.from_yaml(text).with_overrides(overrides)


def read_classes(text: str | None) -> list[str] | None:
    """The class names of `--classes`: separated by commas, in double quotes where a name has one itself."""
    if not text:
        return None
    return next(csv.reader([text], skipinitialspace=True))


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM set `stop`; a second one raises KeyboardInterrupt."""

    told = False

    def handle(_number: int, _frame: object) -> None:
        nonlocal told
        if told:
            raise KeyboardInterrupt
        told = True
        print("Stopping after this iteration; once more ends without saving.", file=sys.stderr, flush=True)
        stop.set()

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def watch_input(stop: threading.Event) -> None:
    """Set `stop` when the pipe at the standard input says anything or ends, as it does when who holds it is gone."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        os.read(0, 1)
        stop.set()

    threading.Thread(target=wait, name="watch-input", daemon=True).start()


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


if __name__ == "__main__":
    sys.exit(main())
