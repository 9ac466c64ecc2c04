"""`python -m train`: train on local folders, without a page and without an instance."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    parser.add_argument("--val", metavar=folder, required=True, help="labelled photos to measure on")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for checkpoints and curves")
    parser.add_argument("--classes", metavar="A,B", help="classes to train (default: all of the labelled photos)")
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done or stopped, 2 refused or failed with a reason."""
    given = parse(arguments)
    from common.data.project import ProjectError
    from common.hrda import SettingsError
    from train.engine import Domains, TrainingError, run
    from train.readers import ProgressLines, TensorBoardScalars
    from train.state import TrainingState

    state = TrainingState()
    state.subscribe(ProgressLines())
    state.subscribe(TensorBoardScalars(given.out / "tensorboard"))
    stop = threading.Event()
    handlers = {number: signal.signal(number, _stop_handler(stop)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = run(
            read_settings(given),
            Domains(source=given.source, target=given.target, val=given.val),
            given.out,
            classes=[name.strip() for name in given.classes.split(",")] if given.classes else None,
            device=given.device,
            state=state,
            stop=stop,
            resume=given.resume,
            init_checkpoint=given.init,
        )
    except (SettingsError, ProjectError, TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Ended without saving.", file=sys.stderr)
        return 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(f"Best checkpoint: {result.best}")
    return 0


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


def _stop_handler(stop: threading.Event) -> Callable[[int, object], None]:
    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        print("Stopping after this iteration; once more ends without saving.", file=sys.stderr, flush=True)
        stop.set()

    return handle


if __name__ == "__main__":
    sys.exit(main())
