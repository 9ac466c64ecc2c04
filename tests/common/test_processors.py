"""How many processors a process may use, by the kernel's files as they lie in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.processors import available_processors

ROOT = Path(__file__).resolve().parents[2]
ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def told(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, min(2, ALL)),
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "99900000 100000\n"}, ALL),
        ({"cpu.max": "nonsense\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ({}, ALL),
    ],
)
def test_a_container_s_quota_bounds_the_processors(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_processors(told(tmp_path, files)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has affinities")
def test_affinity_bounds_the_processors() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from common.processors import available_processors; print(available_processors())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(
    "module", ["train.__main__", "train.main", "serve.__main__", "serve.main", "sandbox.demo.__main__"]
)
@pytest.mark.parametrize(("given", "expected"), [({}, "1000 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")])
def test_entries_settle_it_before_torch_is_loaded(module: str, given: dict[str, str], expected: str) -> None:
    """The entry's own code is run until something loads torch, which then sees the environment."""
    code = f"""
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = {[module, *ARGUMENTS.get(module, [])]!r}
import runpy
runpy.run_module({module!r}, run_name="__main__")
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=kept | given, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


ARGUMENTS = {
    "train.__main__": ["--source", ".", "--val", ".", "--out", "nowhere"],
    "serve.__main__": ["predict", "README.md", "--model", "README.md"],
    "sandbox.demo.__main__": ["--help"],
}
