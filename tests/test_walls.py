"""The walls of the house: who may import whom, and where the SDK may be reached."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
APPS = ("train", "serve")


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module whole."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(folder: str, *packages: str) -> list[str]:
    """Modules below `folder` that import one of `packages`."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no modules: the wall would hold nothing."
    return [
        str(path.relative_to(ROOT))
        for path in files
        if any(name == package or name.startswith(f"{package}.") for name in imports(path) for package in packages)
    ]


def test_the_method_knows_no_app_and_no_platform() -> None:
    assert importers("common/hrda", "supervisely", "sandbox", "common.data", *APPS) == []


def test_one_module_of_common_reads_supervisely_projects() -> None:
    assert importers("common", "supervisely") == ["common/data/project.py"]
    assert importers("common", "sandbox", *APPS) == []


@pytest.mark.parametrize(("app", "other"), [("train", "serve"), ("serve", "train")])
def test_the_apps_know_neither_each_other_nor_the_sandbox(app: str, other: str) -> None:
    assert importers(app, other, "sandbox") == []


def test_the_sandbox_knows_no_app() -> None:
    assert importers("sandbox", *APPS) == []


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("common", "train", "serve", "sandbox", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


@pytest.mark.parametrize("module", ["common.hrda", "sandbox.synthetic.projects", "train.settings.training"])
def test_importing_the_core_does_not_load_the_sdk(module: str) -> None:
    script = f"import sys, {module}; sys.exit('supervisely' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
