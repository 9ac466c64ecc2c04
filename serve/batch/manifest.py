"""What a run has done, noted beside its results: a line of JSON a photo.

Lines are written in files of their own, each whole or not there, since what stores of objects hold cannot be added to.
A run begins by putting them together. Of several lines about one photo the latest counts. A run that is killed loses at
most the lines of the last seconds: these photos are predicted again, into the same files.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

from common.hrda.checks import Count, FromList, NotNegative, PlainSettings, SettingsError, schema
from serve.batch.storage import Folder
from serve.errors import RequestError

FOLDER = "manifest"
"""In the folder of the results."""
MOSAICS = "orthomosaics"
"""Folder beside it for results of mosaics, which no format of outputs is for."""
_LINES = ".jsonl"
_ALL = f"all{_LINES}"
_MOST_HELD = 1000
_LONGEST_HELD_S = 5.0


@schema
class Record(PlainSettings):
    """What became of one photo."""

    photo: str
    """Its path below the collection."""
    name: str
    """What files of its results are called, without their suffix."""
    stamp: str
    """Of the photo when it was read."""
    content: str
    """SHA-256 of its bytes; empty where it could not be read."""
    model: str
    """SHA-256 of the file that predicted it."""
    settings: str
    """Which settings it was predicted with, see `Wanted.settings_name`."""
    formats: Annotated[tuple[str, ...], FromList] = ()
    """What was written."""
    result: Annotated[tuple[str, ...], FromList] = ()
    """Files of its results, below the folder of results."""
    counts: Annotated[tuple[Count, ...], FromList] = ()
    """Pixels of each class, by index."""
    seconds: NotNegative = 0.0
    """For reading, predicting and writing it."""
    reason: str = ""
    """Why there is no result; empty where there is one."""

    @property
    def pixels(self) -> int:
        """Of the photo."""
        return sum(self.counts)

    @property
    def is_mosaic(self) -> bool:
        """Whether its results are those of a mosaic, whatever the formats."""
        return any(name.startswith(f"{MOSAICS}/") for name in self.result)

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return not self.reason


class Manifest:
    """The records of a folder of results.

    Args:
        output: the folder of results.
        clock: seconds, ever rising.
    """

    def __init__(self, output: Folder, clock: Callable[[], float] = time.monotonic) -> None:
        self.records: dict[str, Record] = {}
        """The latest by photo."""
        self._folder, self._clock = output.below(FOLDER), clock
        self._held: list[Record] = []
        self._since = 0.0
        self._files = [entry.name for entry in self._folder.entries() if entry.name.endswith(_LINES)]
        # What was put together first; of the others each name says when its lines were written.
        for name in sorted(self._files, key=lambda name: (name != _ALL, name)):
            self.records |= {record.photo: record for record in self._read(name)}

    def add(self, record: Record) -> None:
        """Note what became of a photo; written with others after seconds."""
        if not self._held:
            self._since = self._clock()
        self._held.append(record)
        self.records[record.photo] = record
        if len(self._held) >= _MOST_HELD or self._clock() - self._since >= _LONGEST_HELD_S:
            self.write()

    def write(self) -> None:
        """Write what was noted since the last time.

        Raises:
            WriteError: it cannot be written.
        """
        if self._held:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_LINES}"
            self._folder.write(name, _lines(self._held))
            self._files.append(name)
            self._held = []

    def put_together(self) -> None:
        """Leave one file of what was noted so far.

        Raises:
            WriteError: it cannot be written.
        """
        self.write()
        if self._files and self._files != [_ALL]:
            self._folder.write(_ALL, _lines(self.records.values()))
            for name in self._files:
                if name != _ALL:
                    self._folder.remove(name)
            self._files = [_ALL]

    def describe(self, model: str, settings: str, description: Mapping[str, Any]) -> None:
        """Keep what records with that model and these settings mean.

        Raises:
            WriteError: it cannot be written.
        """
        self._folder.write(_run(model, settings), json.dumps(description, indent=1).encode())

    def description(self, model: str, settings: str) -> dict[str, Any]:
        """What was kept of them; empty where nothing was."""
        try:
            found = json.loads(self._folder.read(_run(model, settings)))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read(self, name: str) -> Iterator[Record]:
        try:
            content = self._folder.read(name)
        except OSError as error:
            raise RequestError(
                f"What was done before cannot be read from {self._folder.address}/{name}: "
                f"{str(error).partition(chr(10))[0][:300]}. See to it, or choose another --output."
            ) from error
        for line in content.decode(errors="replace").splitlines():
            try:
                yield Record.from_dict(json.loads(line))
            except (ValueError, SettingsError):
                # Somebody else's: its photo is predicted again.
                continue


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(f"{json.dumps(record.to_dict())}\n" for record in records).encode()


def _run(model: str, settings: str) -> str:
    return f"run-{model[:16]}-{settings}.json"
