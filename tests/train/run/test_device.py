"""What a run asks of the C library: kept memory, and nothing where there is none to ask."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from train.run.device import keep_freed_memory


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
