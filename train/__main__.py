"""`python -m train`: train on local folders, without a page and without an instance."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from common.processors import share_processors
from train.importing.command import main as import_command
from train.run.launched import Launched
from train.stopping import (
    open_closed_streams,
    output_for_changes,
    stopping_on_signals,
    tell,
    watch_input,
    watch_torchrun,
)
from train.suggest import main as suggest

if TYPE_CHECKING:
    from train.run.request import RunRequest
    from train.settings.training import TrainSettings

# The engine needs torch and the SDK, which take seconds to import: not here, for the sake of --help.

EPILOG = """\
examples:
  python -m train --source synthetic --target photos:unlabelled --val photos:checked --out runs/first
  python -m train --source synthetic --val photos:checked --out runs/control --mode control
  python -m train --source synthetic --target photos:unlabelled --val photos:checked --out runs/first --resume
  python -m train --source synthetic --target photos:unlabelled --labelled-target photos:few --val photos:checked \\
      --out runs/few --classes crack
  python -m train --source synthetic --target photos:unlabelled --val photos:checked --out runs/small \\
      --settings sandbox/demo/settings.yaml --set iterations=3000 --device cpu
  python -m train suggest --run runs/first --count 10
  python -m train import raw --masks raw/masks --classes background,crack --out photos

A folder is a Supervisely project, or photos with masks, COCO, Pascal VOC or Cityscapes, which are imported once
(docs/import.md; python -m train import --help). Name datasets after a colon, several with commas, nested ones with a
slash:
  --source photos:labelled --target photos:road1,road2/night --val photos:check
Without photos of your own, python -m sandbox.synthetic draws some (docs/training.md).

modes:
  source-only   supervised on the source: the baseline
  control       the same with a second pass on strongly augmented source: what augmentation alone gives
  uda           HRDA: the second pass is on target photos mixed with source
  supervised    supervised on a labelled --target (--source is not used): the upper bound

suggest names the target photos that are worth labelling next, of a run that is done or going on.

Ctrl-C saves the last checkpoint and exits; --resume goes on from it.

several GPUs, one process each (docs/several_gpus.md):
  torchrun --standalone --nproc-per-node 4 -m train --source … --out runs/first

With --changes, another program reads the standard output: one JSON object a line for each change of the run. When it
stops reading, or closes the pipe that is the standard input, the last checkpoint is saved and the run ends.

docs/guide.md says when adaptation pays, how many photos it takes, and what to do when it did not help.
"""


IMPORT = "import"
_MOST_MINUTES = 1_000_000


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
    parser.add_argument(
        "--val",
        metavar=folder,
        help="labelled photos to measure on; without them checkpoint and threshold are chosen on target photos",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for checkpoints and curves")
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help='classes to train (default: all of the labelled photos); "A, B" in quotes for a comma in a name; of masks '
        "that nothing names, the names of their values from 1",
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
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N; under torchrun also one for each process of a machine: cuda:0,cuda:2",
    )
    parser.add_argument("--init", metavar="FILE", type=Path, help="checkpoint or encoder weights to start from")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings unless others are given"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then train once more without the target photos (mode control, all else the same) and say what they "
        "brought; with a finished run in --out, do that alone",
    )
    parser.add_argument(
        "--changes", action="store_true", help="print the changes of the run as JSON lines, and all else on stderr"
    )
    parser.add_argument(
        "--timeout",
        metavar="MINUTES",
        type=_minutes,
        default=30.0,
        help="under torchrun: how long a process waits for another before the run fails (default: 30)",
    )
    given = parser.parse_args(arguments)
    if given.compare and given.changes:
        parser.error("--compare prints a table, and --changes leaves no room for one: give one of them")
    return given


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= _MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"expected minutes above 0, up to {_MOST_MINUTES}. Received: {text[:80]}")
    return minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done or stopped, 2 refused or failed with a reason."""
    open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["suggest"]:
        return suggest(words[1:])
    if words[:1] == [IMPORT]:
        return import_command(words[1:])
    given, launched = parse(words), Launched.from_environment()
    share_processors()
    stop = threading.Event()
    # From here on, and not only once the imports are done, ending is decided between two iterations.
    with stopping_on_signals(stop, launched) as asked:
        try:
            return _watched(given, launched, stop)
        except BaseException:
            # What the second signal breaks off may have an error of its own: torch's writer of files, an import.
            if not asked.insists:
                raise
            tell("Ended without saving. What was saved before is intact: --resume goes on from there.", sys.stderr)
            return 130


def _watched(given: argparse.Namespace, launched: Launched, stop: threading.Event) -> int:
    """Train, with an eye on those who may be gone: torchrun, or who reads the changes."""
    if not launched.is_alone:
        watch_torchrun(stop)
    if not given.changes:
        return train(given, launched, stop, None)
    if launched.is_first:
        watch_input(stop)
    with output_for_changes() as stream:
        return train(given, launched, stop, stream)


def train(given: argparse.Namespace, launched: Launched, stop: threading.Event, changes: TextIO | None) -> int:
    """Train as the arguments say.

    Args:
        given: of the command line.
        launched: which of the processes that train together this one is.
        stop: ends the run once it is set.
        changes: where each change goes as a line of JSON; None: progress goes to the standard output.

    Returns:
        The exit code.
    """
    from common.data.project import ProjectError
    from common.hrda import SettingsError
    from common.hrda.files import WriteError
    from train.run.comparison import run_compared
    from train.run.engine import run
    from train.run.processes import EndedElsewhere, device_name, joined
    from train.run.readers import ChangeLines, ProgressLines, TensorBoardScalars
    from train.run.state import Failed, TrainingError, TrainingState
    from train.run.summary import summary

    def watched(out: Path) -> TrainingState:
        """The state of a run in `out`, with its readers."""
        state = TrainingState()
        if launched.is_first:
            if changes is not None:
                state.subscribe(ChangeLines(changes, stop.set))
            state.subscribe(ProgressLines())
            state.subscribe(TensorBoardScalars(out / "tensorboard"))
        return state

    state, is_news = watched(given.out), True
    try:
        device = device_name(given.device, launched)
        with joined(launched, device, given.timeout) as ranks:
            # All processes do what the first one was told, each on its own device.
            request = replace(ranks.from_first(lambda: read_request(given)), device=device)
            if given.compare:
                result = run_compared(request, state, watched, stop=stop, ranks=ranks)
            else:
                result = run(request, state=state, stop=stop, ranks=ranks)
    except EndedElsewhere as error:
        failed, is_news = Failed(str(error), type(error).__name__), launched.is_first
    except (SettingsError, ProjectError, TrainingError) as error:
        failed = Failed(str(error), type(error).__name__)
    except WriteError as error:
        failed = Failed(f"{error} {error.remedy.capitalize()}.")
    except OSError as error:
        failed = Failed(
            f"A file cannot be read or written: {error}. Look for permissions, and whether the disk is there."
        )
    else:
        if launched.is_first:
            tell(summary(request, result), sys.stdout)
        return 0
    if is_news:
        if changes is not None and not launched.is_first:
            # Who reads would otherwise hear from the first process alone that another has ended.
            state.subscribe(ChangeLines(changes, stop.set))
        state.apply(failed)
        tell(f"error: {failed.reason}", sys.stderr)
    return 2


def read_request(given: argparse.Namespace) -> RunRequest:
    """What the arguments ask for.

    Raises:
        SettingsError: as `read_settings`.
    """
    from train.run.domains import Domains
    from train.run.request import RunRequest, read_classes

    classes = read_classes(given.classes)
    return RunRequest(
        settings=read_settings(given),
        domains=Domains(given.source, given.target, given.val, given.labelled_target),
        out=given.out,
        classes=None if classes is None else tuple(classes),
        device=given.device,
        resume=given.resume,
        init_checkpoint=given.init,
    )


def read_settings(given: argparse.Namespace) -> TrainSettings:
    """The settings of a file, or of the run to resume, or the defaults, with the command line's changes.

    Raises:
        SettingsError: the file cannot be read, or says something that cannot work.
    """
    from common.plain_yaml import settings_text
    from train.settings.training import TrainSettings

    path = given.settings
    if path is None and (given.resume or given.compare) and (given.out / "settings.yaml").is_file():
        path = given.out / "settings.yaml"
    overrides = ([f"mode={given.mode}"] if given.mode else []) + given.overrides
    return TrainSettings.from_yaml(settings_text(path) if path else "").with_overrides(overrides)


if __name__ == "__main__":
    sys.exit(main())
