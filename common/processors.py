"""How many processors this process may use, and how its threads wait for one another.

To be settled before torch is loaded, whose OpenMP reads the environment then. What the environment says already stays.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

SPINS = "GOMP_SPINCOUNT"
SHORT_SPIN = "1000"
"""How often a thread looks for its next work before it sleeps. OpenMP's own 300,000 take a processor from other
programs, and from the very thread that is waited for, wherever processors are shared."""
CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_V1 = -1


def available_processors(cgroup: Path = CGROUP) -> int:
    """Processors that this process may use at the same time, at least 1: its affinity, and its container's quota.

    Args:
        cgroup: where the kernel tells of the container.
    """
    return _within(_quota(cgroup))


def share_processors() -> None:
    """Have this process and its children start no more threads than they have processors, and wait without holding
    these."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPINS, SHORT_SPIN)
    quota = _quota(CGROUP)
    # Without a quota OpenMP counts by itself, cores rather than hyper-threads where that is faster.
    if quota is not None and (available := _within(quota)) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(available))


def _within(quota: float | None) -> int:
    """Processors of this process's affinity, no more than its container's quota lets it use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        # Only Linux has affinities.
        count = os.cpu_count() or 1
    return count if quota is None else max(min(count, math.ceil(quota)), 1)


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the container gets; None for no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota, period = (int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return None if quota == _UNLIMITED_V1 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
