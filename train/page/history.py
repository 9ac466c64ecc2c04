"""What a run has shown so far, kept beside its checkpoints: a run that is continued goes on with its curves."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from common.hrda.files import replacing
from train.run.state import Change, Progressed, Started, StepsSkipped, Validated, decode, encode

_KEPT = (Progressed, StepsSkipped, Validated)


class RunHistory:
    """Points of the curves and measurements of a run, a line each in a file of the run's folder.

    Args:
        folder: of the run; the file goes with it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "history.jsonl"

    def add(self, change: Change) -> None:
        """Keep a change, if it is one to go on with; forget what the iterations that a run does again have left."""
        if isinstance(change, Started):
            self._cut(change.iteration)
        elif isinstance(change, _KEPT):
            # On a full disk the curves get a gap, and the training goes on.
            with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write(encode(change) + "\n")

    def changes(self) -> list[Change]:
        """What is kept, oldest first; lines that a kill or a full disk has cut are left out."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(decode(line))
        return [change for change in found if isinstance(change, _KEPT)]

    def _cut(self, iteration: int) -> None:
        kept = [change for change in self.changes() if change.iteration <= iteration]
        with suppress(OSError), replacing(self._path) as file:
            file.write("".join(f"{encode(change)}\n" for change in kept).encode())
