"""What a run is asked for, in one object that the page, the command line and the engine share."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.hrda.checks import SettingsError, received
from train.run.domains import Domains
from train.settings.training import TrainSettings


@dataclass(frozen=True)
class RunRequest:
    """All that decides a run. How it is watched and stopped, and which processes share it, is no part of this."""

    settings: TrainSettings
    """All that decides the run besides its data."""
    domains: Domains
    """Where source, target and validation photos lie."""
    out: Path
    """Folder of the run; checkpoints go to its `checkpoints`."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to train, without the background; None: all that the labelled photos have."""
    device: str = "auto"
    """'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'. For `train.process.run_in_process` also several of
    these with commas: each gets a process."""
    resume: bool = False
    """Whether to go on with the run in `out`."""
    init_checkpoint: Path | None = None
    """Weights to start from."""

    def command_arguments(self, settings_file: Path) -> list[str]:
        """The arguments by which `python -m train` is asked for the same.

        Args:
            settings_file: holds the settings in YAML.
        """
        options = {
            "source": self.domains.source,
            "target": self.domains.target,
            "val": self.domains.val,
            "labelled-target": self.domains.labelled_target,
            "out": self.out,
            "classes": None if self.classes is None else _comma_separated(self.classes),
            "settings": settings_file,
            "device": self.device,
            "init": self.init_checkpoint,
        }
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return [*arguments, "--resume"] if self.resume else arguments


def _comma_separated(names: Sequence[str]) -> str:
    """The names with commas between them, in double quotes, as a name may have a comma itself."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="").writerow(names)
    return text.getvalue()


def read_classes(text: str | None) -> list[str] | None:
    """The class names of `--classes`: separated by commas, in double quotes where a name has one itself.

    Raises:
        SettingsError: it names none, or a name is empty.
    """
    if text is None:
        return None
    try:
        [names] = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        names = []
    if not names or not all(name.strip() for name in names):
        raise SettingsError(
            '--classes must be names with commas between them, "A, B" in quotes for a comma in a name; leave it out to '
            f"train all. Received: {received(text)}."
        )
    return names
