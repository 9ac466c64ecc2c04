"""A run can be read from top to bottom: none of its functions is long."""

import ast
from pathlib import Path

RUN = Path(__file__).resolve().parents[3] / "train" / "run"
LONGEST = 60
"""Lines of a function from `def` to its end, docstring included."""


def test_functions_are_short():
    modules = sorted(RUN.rglob("*.py"))
    assert modules
    lengths = {
        f"{path.name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
