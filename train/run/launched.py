"""What torchrun tells the training processes that it starts, and how it is called. Needs neither torch nor the SDK."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

SECONDS_TO_SAVE = 120
"""Writing the last checkpoint of the largest network to a slow disk takes less."""


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that train together."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """What torchrun says; a process that was not started by it is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        # Some platforms set a part of these for processes that do not know of each other.
        if any(name not in environment for name in ("MASTER_ADDR", *names)):
            return cls()
        return cls(*(int(environment[name]) for name in names))

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that measures, writes and tells."""
        return self.rank == 0


def torchrun(processes: int) -> list[str]:
    """The command that runs a module of Python, to be named next, in so many processes on this machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--shutdown-timeout={SECONDS_TO_SAVE}",
        "-m",
    ]
