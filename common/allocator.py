"""How the C library hands out memory, where its own way costs an app time or lets it grow. Only glibc is asked."""

from __future__ import annotations

import ctypes
import os

# Of `mallopt`, by glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_KEPT = 2**30
_ARENAS = 2
_ARENAS_VARIABLE = "MALLOC_ARENA_MAX"


def keep_freed_memory() -> None:
    """Have the memory of freed tensors kept for the next ones, in this process from now on.

    glibc would give that of each large map back and have it cleared page by page when the next is made, a tenth of an
    iteration on the CPU. An iteration makes what the one before made, so that the process does not grow by it.
    """
    _ask(_MMAP_THRESHOLD, _LARGEST_KEPT)
    _ask(_TRIM_THRESHOLD, 2 * _LARGEST_KEPT - 1)


def share_arenas() -> None:
    """Have all threads share two heaps, in place of up to eight a processor; to be called before threads are started.

    Each heap keeps what was freed in it. A server answers every request in some other thread, so that all of its heaps
    would in time hold the largest request and the largest deployment. What the environment says already stays.
    """
    if _ARENAS_VARIABLE not in os.environ:
        _ask(_ARENA_MAX, _ARENAS)


def give_back_freed_memory() -> None:
    """Return to the system what is freed and lies between what is used.

    glibc returns only what lies above all that is used. What a model that was replaced has left there would stay, and
    the next one would find a place beside it.
    """
    _call("malloc_trim", 0)


def _ask(parameter: int, value: int) -> None:
    _call("mallopt", parameter, value)


def _call(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        # Another C library, which has its own way.
        return
    function(*arguments)
