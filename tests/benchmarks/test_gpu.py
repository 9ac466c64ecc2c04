"""The record of a graphics card, tried on the processor: all its parts, tiny."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.records import Record, Records
from tests.shared import SHARED

ROOT = Path(__file__).resolve().parents[2]
# Names of packages as pip knows them, with torch's own requirements and what every Python has.
WITH_TORCH = ("torch", "setuptools", "pip")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    out = tmp_path_factory.mktemp("gpu") / "record"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "8", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540), out


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_part_leaves_results_that_hold(made):
    ended, out = made
    found = records(out)
    assert [one for one in found if one["part"] == "Parts"] == []
    assert [one for one in found if one["holds"] is False] == []
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {one["way"] for one in found if one["part"] == "Training"} >= {"plain", "ours", "bfloat16", "checkpointed"}
    predictions = {one["way"]: one["values"] for one in found if one["part"] == "Prediction"}
    assert predictions["float32"]["labels equal"] > 0.999
    assert predictions["ONNX Runtime, cpu"]["labels equal"] > 0.999
    [two] = [one for one in found if one["part"] == "Two processes on one device"]
    assert two["values"]["losses off by"] < 1e-4
    if (SHARED / "reference").is_dir():
        assert sum(one["part"].startswith("Reference") and one["holds"] is True for one in found) == 4


def test_tables_show_every_result(made):
    _, out = made
    text = (out / "results.md").read_text()
    for one in records(out):
        assert f"**{one['part']}**" in text
        assert f"| {one['case']} | {one['way']} |" in text


def test_results_of_an_earlier_run_are_kept(made):
    _, out = made
    before = (out / "results.jsonl").read_text()
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "holds the results of an earlier run" in ended.stderr
    assert (out / "results.jsonl").read_text() == before


def test_a_bound_that_is_broken_is_said_in_the_table(tmp_path):
    records = Records(tmp_path, "A card.")
    records.add(Record("Training", "mit_b0 512x2", "bfloat16", {"times as fast": 2.0}, False, "at least 3"))
    records.add(Record("Training", "mit_b0 512x2", "plain", {"s/iteration": 1.5}))
    [*_, first, second] = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("|")]
    assert first == "| mit_b0 512x2 | bfloat16 | 2 |  | NO | at least 3 |"
    assert second == "| mit_b0 512x2 | plain |  | 1.5 |  |  |"


def test_wheels_are_all_that_the_parts_import():
    """A machine without a network gets these files and nothing else."""
    program = (
        "import sys; from benchmarks.gpu import __main__; import onnx, onnxscript\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = metadata.packages_distributions()
    needed = {_plain(one) for name in imported.stdout.split() for one in packages.get(name, [])}
    listed = [line.partition("==")[0] for line in (ROOT / "benchmarks/gpu_wheels.txt").read_text().splitlines()]
    listed = [_plain(name).replace("onnxruntime-gpu", "onnxruntime") for name in listed if not name.startswith("#")]
    assert needed <= {_plain(name) for name in _with_requirements([*listed, *WITH_TORCH])}


def test_parts_fit_the_nine_minutes_in_the_order_of_their_worth():
    names, spent = list(PARTS), 0.0
    for name in names[:6]:
        spent += PARTS[name].seconds
    assert spent <= 9 * 60
    assert names[:4] == ["reference", "labels", "resuming", "memory"]


def _with_requirements(names: list[str]) -> set[str]:
    found: set[str] = set()
    left = list(names)
    while left:
        name = _plain(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        left += [
            one.partition(";")[0].strip("() ").split("[")[0].split("<")[0].split(">")[0].split("=")[0].split("!")[0]
            for one in required
            if "extra ==" not in one
        ]
    return found


def _plain(name: str) -> str:
    return name.strip(" ~(").lower().replace("_", "-").replace(".", "-")
