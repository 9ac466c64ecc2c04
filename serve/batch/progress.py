"""How far a run is, while it runs and at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from serve.batch.manifest import Record
from serve.batch.result import Legend

_MOST_NAMED = 10


class Progress:
    """A line about the speed and the time left, now and then.

    Args:
        total: photos to work on.
        say: gets each line.
        interval_s: between two lines; None: a second on a terminal, ten seconds elsewhere.
        clock: seconds, ever rising.
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None] | None = None,
        interval_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = self.failed = self.pixels = 0
        self._total, self._clock = total, clock
        self._say = say or (lambda text: print(text, flush=True))
        self._interval_s = interval_s if interval_s is not None else 1.0 if sys.stdout.isatty() else 10.0
        self._begun = self._last = clock()
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self._begun

    def add(self, record: Record) -> None:
        """A photo is done, or has failed."""
        now = self._clock()
        if self._first is None:
            # Until now processes were started, which says nothing about the speed.
            self._first = now
        self.done += record.is_done
        self.failed += not record.is_done
        self.pixels += record.pixels
        if now - self._last >= self._interval_s:
            self._last = now
            self._say(self.line())

    def line(self) -> str:
        """How far, how fast, how long still."""
        worked, failed = self.done + self.failed, f", {self.failed} failed" if self.failed else ""
        seconds = self._clock() - (self._begun if self._first is None else self._first)
        if worked < 2 or not seconds:
            return f"[{worked}/{self._total}]{failed}"
        left = (self._total - worked) * seconds / (worked - 1)
        pixels = self.pixels * (worked - 1) / worked
        return f"[{worked}/{self._total}] {speed(worked - 1, pixels, seconds)}, {duration(left)} left{failed}"


def speed(photos: int, pixels: float, seconds: float) -> str:
    """Photos and megapixels a second."""
    return f"{photos / seconds:.3g} photos/s, {pixels / 1e6 / seconds:.3g} megapixels/s"


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def summary(records: Mapping[str, Record], skipped: int, progress: Progress, legend: Legend) -> str:
    """The table at the end.

    Args:
        records: of the collection's photos, old and new.
        skipped: photos that had their result before.
        progress: of the run.
        legend: what the classes are.
    """
    done = [record for record in records.values() if record.is_done]
    failures = [record for record in records.values() if not record.is_done]
    rows = [
        ("photos", str(len(records))),
        ("predicted now", f"{progress.done} in {duration(progress.seconds)}"),
        ("had a result", str(skipped)),
        ("failed", str(len(failures))),
        ("speed", speed(progress.done, progress.pixels, max(progress.seconds, 1e-9))),
    ]
    pixels = sum(record.pixels for record in done)
    for index, name in legend.found:
        found = [record.counts[index] for record in done if index < len(record.counts)]
        share = 100 * sum(found) / max(pixels, 1)
        rows.append((name, f"in {sum(count > 0 for count in found)} photos, {share:.2f}% of all pixels"))
    return "\n".join([*_table(rows), *_failures(failures)])


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _failures(failures: Sequence[Record]) -> list[str]:
    if not failures:
        return []
    more = [f"  … and {len(failures) - _MOST_NAMED} more"] if len(failures) > _MOST_NAMED else []
    named = [f"  {record.photo}: {' '.join(record.reason.split())}" for record in failures[:_MOST_NAMED]]
    return ["Without a result:", *named, *more, "The same command tries them again."]
