"""Load test of the serving app: many clients, mixed calls, for minutes, on this machine alone.

    python -m benchmarks.load                       # 8 clients, 10 minutes
    python -m benchmarks.load --clients 4 --minutes 1

It starts `python -m serve deploy` on the loopback, with a token and an untrained MiT-b0 of small crops. In the second
half of the time 32 callers send their bodies slowly and 32 send half of them. All the while the model is changed, and
clients are killed with signal 9. It ends with status 1 when one of its bars is missed: no error that was not asked for;
the slow ones at most double the 95th percentile of the others' times; memory of the last minute within 2 % of that of
the second one (shorter runs: of the last quarter and the second quarter); overload answered with 429 or 503; work that
takes longer than its client may wait ends within a batch of windows.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests

from benchmarks.load.clients import Client, Tally
from benchmarks.load.deadlines import SHORT_S, Overruns, exceed_deadlines
from benchmarks.load.neighbours import OVERLOAD, SLOW, change_models, kill_clients, overload, send_slowly
from benchmarks.load.service import BEARER, answers, encoded_film, photo_server, service, write_checkpoints

MEMORY_BAR = 1.02
SLOW_BAR = 2.0
NOTICED_S = 0.1
"""How late the end of work may be seen from outside, which is asked again and again."""
SAMPLE_S = 1.0


@dataclass
class Measured:
    """What came of the run."""

    minutes: float
    calm: Tally = field(default_factory=Tally)
    """What the clients saw in the first half."""
    beside_slow: Tally = field(default_factory=Tally)
    """What they saw beside those who send slowly."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, resident megabytes)."""
    shown_out: Counter[str] = field(default_factory=Counter)
    deployments: Counter[int] = field(default_factory=Counter)
    killed: int = 0
    overload: Counter[int] = field(default_factory=Counter)
    is_alive: bool = False
    overruns: Overruns = field(default_factory=Overruns)


def main(argv: list[str] | None = None) -> int:
    """Run the test; the exit status is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8, help="callers at the same time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    args = parser.parse_args(argv)
    if args.clients < 1 or args.minutes <= 0:
        parser.error("--clients and --minutes must be positive")
    measured = Measured(args.minutes)
    with tempfile.TemporaryDirectory(prefix="load_") as name, photo_server() as photo_url:
        folder = Path(name)
        checkpoints = write_checkpoints(folder)
        with service(checkpoints[0], folder / "log") as url:
            run(url, measured, args.clients, checkpoints, photo_url, encoded_film(folder))
        with service(checkpoints[0], folder / "log of short waits", HRDA_REQUEST_TIMEOUT_S=SHORT_S) as url:
            measured.overruns = exceed_deadlines(url)
    missed = report(measured)
    print("missed: " + "; ".join(missed) if missed else "all bars are met")
    return 1 if missed else 0


def run(url: str, measured: Measured, clients: int, checkpoints: list[Path], photo_url: str, film: bytes) -> None:
    """Call for the given time, and note what is seen."""
    started = time.monotonic()
    half, end = started + 30 * measured.minutes, started + 60 * measured.minutes

    def calls(pool: ThreadPoolExecutor, tally: Tally, until: float) -> None:
        callers = [Client(url, tally, number, photo_url, film) for number in range(clients)]
        for each in [pool.submit(caller.run, until) for caller in callers]:
            each.result()

    with ThreadPoolExecutor(clients + 4) as pool:
        watch = pool.submit(sample_memory, url, started, end, measured.memory)
        kills = pool.submit(kill_clients, url, end)
        changes = pool.submit(change_models, url, end, checkpoints)
        calls(pool, measured.calm, half)
        slow = pool.submit(send_slowly, url, end)
        calls(pool, measured.beside_slow, end)
        measured.shown_out, measured.deployments, measured.killed = slow.result(), changes.result(), kills.result()
        watch.result()
    measured.overload = overload(url)
    measured.is_alive = answers(url)


def sample_memory(url: str, started: float, until: float, samples: list[tuple[float, float]]) -> None:
    """Add (seconds since the start, resident megabytes) every second, as the service itself says."""
    while time.monotonic() < until:
        text = requests.get(f"{url}/metrics", headers=BEARER, timeout=60).text
        size = float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])
        samples.append((time.monotonic() - started, size / 2**20))
        time.sleep(SAMPLE_S)


def report(measured: Measured) -> list[str]:
    """Print what was measured; the bars that were missed."""
    missed = []
    for title, tally in (("calm", measured.calm), (f"beside {SLOW} slow and {SLOW} half-sent", measured.beside_slow)):
        print_calls(title, tally, measured.minutes / 2)
        missed += [f"{count} × {what}" for what, count in tally.unexpected.most_common(5)]
    ratio = measured.beside_slow.percentile(95) / measured.calm.percentile(95)
    print(f"p95 beside slow senders: {ratio:.2f} of that without; shown out: {dict(measured.shown_out)}")
    if ratio > SLOW_BAR:
        missed.append(f"slow senders make the others' p95 {ratio:.2f} times as long")
    missed += judge_memory(measured)
    print(f"deployments: {dict(measured.deployments)}; clients killed: {measured.killed}")
    if measured.deployments.keys() - {200}:
        missed.append(f"deployments were answered with {dict(measured.deployments)}")
    codes = measured.overload
    print(f"overload: {dict(codes)} of {OVERLOAD} at once; service alive: {measured.is_alive}")
    if not codes.keys() & {429, 503} or codes.keys() - {200, 429, 503}:
        missed.append(f"overload was answered with {dict(codes)}")
    missed += judge_deadlines(measured.overruns)
    return missed + ([] if measured.is_alive else ["the service is gone"])


def judge_deadlines(overruns: Overruns) -> list[str]:
    """Print how long work went on after its deadline; whether that was more than a batch of windows."""
    longest = max(overruns.seconds)
    print(
        f"after a deadline of {SHORT_S:g} s work went on for {1000 * longest:.0f} ms at most, "
        f"{1000 * statistics.median(overruns.seconds):.0f} ms in the median of {len(overruns.seconds)}; "
        f"a batch of windows takes {1000 * overruns.batch_s:.0f} ms"
    )
    missed = [] if overruns.statuses == {504} else [f"requests past their time were answered {overruns.statuses}"]
    late = longest > overruns.batch_s + NOTICED_S
    return missed + ([f"work went on for {longest:.2f} s after its deadline"] if late else [])


def print_calls(title: str, tally: Tally, minutes: float) -> None:
    """A line for each kind of call."""
    print(f"{title:32} {'count':>7} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8}")
    for call, seconds in sorted(tally.seconds.items()):
        row = [1000 * value for value in (*np.percentile(seconds, [50, 95]), max(seconds))]
        print(f"{call:32} {len(seconds):7} " + " ".join(f"{value:8.1f}" for value in row))
    count = sum(map(len, tally.seconds.values()))
    print(f"{count} answers, {count / 60 / minutes:.1f} a second, p95 {1000 * tally.percentile(95):.1f} ms; "
          f"{tally.refused} told to come again")  # fmt: skip


def judge_memory(measured: Measured) -> list[str]:
    """Print how much memory the service took; whether that grew."""
    memory, minutes = measured.memory, measured.minutes
    length = 60.0 if minutes >= 3 else 15.0 * minutes
    end = 60 * minutes
    first = statistics.median(size for moment, size in memory if length <= moment < 2 * length)
    last = statistics.median(size for moment, size in memory if end - length <= moment)
    print(f"memory: {first:.1f} MB in the second {length:.0f} s, {last:.1f} MB in the last, ratio {last / first:.4f}")
    minutes_seen = range(int(max(moment for moment, _ in memory) // 60) + 1)
    medians = [statistics.median([size for moment, size in memory if moment // 60 == n] or [0]) for n in minutes_seen]
    print("memory by minute, MB: " + " ".join(f"{median:.0f}" for median in medians))
    return [f"memory grew by {100 * (last / first - 1):.1f} %"] if last > MEMORY_BAR * first else []


if __name__ == "__main__":
    sys.exit(main())
