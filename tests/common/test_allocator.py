"""What the apps ask of the C library: kept memory, few heaps, and nothing where there is none to ask."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.allocator import give_back_freed_memory, keep_freed_memory, share_arenas

ROOT = Path(__file__).resolve().parents[2]


def test_freed_memory_of_large_maps_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=asked.__setitem__))
    keep_freed_memory()
    # By the numbers of glibc's malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, which take an int.
    assert asked.keys() == {-1, -3}
    assert 2**30 <= min(asked.values()) <= max(asked.values()) < 2**31


@pytest.mark.parametrize("library", [SimpleNamespace(), None])
def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace | None) -> None:
    def load(_: None) -> SimpleNamespace:
        if library is None:
            raise OSError("no such library")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_freed_memory()
    share_arenas()
    give_back_freed_memory()


HEAPS = """
import ctypes, sys, threading
from common.allocator import share_arenas
share_arenas()
barrier = threading.Barrier(12)
def use():
    kept = [bytearray(700) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=use) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.parametrize("said", [None, "3"], ids=["by itself", "as the environment says"])
def test_threads_share_two_heaps(tmp_path: Path, said: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    env |= {"PYTHONPATH": str(ROOT)} | ({"MALLOC_ARENA_MAX": said} if said else {})
    subprocess.run([sys.executable, "-c", HEAPS, tmp_path / "heaps"], env=env, check=True, timeout=120)
    assert (tmp_path / "heaps").read_text().count("<heap ") == int(said or 2)


SCATTERED = """
import sys
from pathlib import Path
from common.allocator import give_back_freed_memory
def megabytes():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024
blocks = [bytearray(b"x" * 60_000) for _ in range(4000)]
kept = blocks[::100]
del blocks
before = megabytes()
give_back_freed_memory()
print(before, megabytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux how much memory is used")
def test_freed_memory_between_what_is_used_goes_back_to_the_system() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCATTERED], env=env, check=True, capture_output=True, text=True, timeout=120
    )
    before, after = map(int, done.stdout.split())
    assert before > 200 and after < before - 150
