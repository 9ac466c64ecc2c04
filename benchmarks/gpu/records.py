"""Results as they come: lines of JSON, and the same as tables of Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.hrda.files import replacing

GOOD, BAD, LEFT_OUT = "yes", "NO", "not run"
Value = float | str


@dataclass(frozen=True)
class Record:
    """One line of a table."""

    part: str
    """The table that it belongs to."""
    case: str
    """What was measured, such as `mit_b0 512x2`."""
    way: str = ""
    """How it was computed."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What was measured, by the heading of its column."""
    holds: bool | None = None
    """Whether the stated bound is kept; None where there is none."""
    note: str = ""
    """The bound, or why there is no result."""


class Records:
    """The records in a folder: `results.jsonl`, one line each, and `results.md`.

    A line is on the disk before the next measurement begins, so that a run that is cut off still counts.

    Args:
        folder: made when missing.
        title: first line of the tables.
    """

    def __init__(self, folder: Path, title: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._tables, self._title = folder / "results.jsonl", folder / "results.md", title

    def add(self, record: Record) -> None:
        """Note a record."""
        with self._lines.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with replacing(self._tables) as file:
            file.write((self._title + "\n\n" + "\n".join(tables(list(self)))).encode())

    def __iter__(self) -> Iterator[Record]:
        if self._lines.exists():
            yield from (Record(**json.loads(line)) for line in self._lines.read_text().splitlines())


def tables(records: list[Record]) -> Iterator[str]:
    """Lines of Markdown: a table for each part, in the order of the records."""
    for part in dict.fromkeys(record.part for record in records):
        rows = [record for record in records if record.part == part]
        columns = list(dict.fromkeys(name for row in rows for name in row.values))
        headings = ["case", "way", *columns, "holds", "note"]
        yield from (f"**{part}**", "", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings))
        for row in rows:
            shown = [_shown(row.values.get(name, "")) for name in columns]
            holds = {True: GOOD, False: BAD, None: ""}[row.holds]
            yield f"| {' | '.join([row.case, row.way, *shown, holds, row.note])} |"
        yield ""


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
