"""The walls of the house: who may import whom, and where the SDK may be reached. Every module is read by its syntax."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("common", "train", "serve", "sandbox")
APPS = ("train", "serve")


@cache
def modules(folder: str) -> dict[str, Path]:
    """The modules below `folder` by their dotted names."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if "node_modules" not in path.parts
    }
    assert found, f"{folder} has no modules: the wall would hold nothing."
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a module imports, at any depth of its code, for types alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module whole."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def importers(folder: str, *packages: str) -> list[str]:
    """Modules below `folder` that import one of `packages`."""
    return [
        str(path.relative_to(ROOT))
        for path in modules(folder).values()
        if any(name == package or name.startswith(f"{package}.") for name in imports(path) for package in packages)
    ]


def test_the_method_knows_no_app_and_no_platform() -> None:
    assert importers("common/hrda", "supervisely", "sandbox", "common.data", *APPS) == []


def test_one_room_of_common_knows_the_web() -> None:
    web = importers("common", "fastapi", "starlette", "uvicorn", "h11")
    assert web
    assert [name for name in web if not name.startswith("common/web/")] == []
    assert importers("common/hrda", "common.web") == []


def test_one_module_of_common_reads_supervisely_projects() -> None:
    assert importers("common", "supervisely") == ["common/data/project.py"]
    assert importers("common", "sandbox", *APPS) == []


@pytest.mark.parametrize(("app", "other"), [("train", "serve"), ("serve", "train")])
def test_the_apps_know_neither_each_other_nor_the_sandbox(app: str, other: str) -> None:
    assert importers(app, other, "sandbox") == []


def test_the_sandbox_knows_no_app() -> None:
    assert importers("sandbox", *APPS) == []


@pytest.mark.parametrize("room", ["train/run", "train/settings"])
def test_a_run_knows_neither_the_platform_nor_the_page(room: str) -> None:
    assert importers(room, "supervisely", "train.page", "train.sdk", "train.instance", "train.app") == []


@pytest.mark.parametrize("room", ["serve/model", "serve/batch"])
def test_a_model_knows_no_http_and_no_server(room: str) -> None:
    servers = ("serve.server", "serve.routes", "serve.sdk", "serve.jobs", "serve.gate", "serve.sources")
    assert importers(room, "fastapi", "starlette", "uvicorn", "requests", "supervisely.nn.inference", *servers) == []


def test_the_ground_floor_of_the_method_imports_no_floor_above() -> None:
    """But for checkpoints, which build the network that they hold."""
    above = [f"common.hrda.{floor}" for floor in ("network", "training", "prediction")]
    ground = {path.name for path in (ROOT / "common/hrda").glob("*.py")} - {"__init__.py", "checkpoints.py"}
    assert [name for name in importers("common/hrda", *above) if Path(name).parent == Path("common/hrda")] == [
        "common/hrda/__init__.py",
        "common/hrda/checkpoints.py",
    ]
    assert ground >= {"settings.py", "checks.py", "catalogue.py", "pixels.py", "windows.py", "sliding.py", "files.py"}


def test_the_catalogue_imports_no_torch() -> None:
    assert importers("common/hrda", "torch").count("common/hrda/catalogue.py") == 0
    assert imports(ROOT / "common/hrda/catalogue.py") == {
        "__future__.annotations",
        "re",
        "dataclasses.dataclass",
        "typing.Literal",
    }


FAMILY = re.compile(r"\b(mit_b\d|mit-b\d|segformer|pvt|convnext|sam2|hiera|caformer|efficientnet|mobilenet|dino)", re.I)


def test_one_room_and_the_catalogue_know_families_of_encoders() -> None:
    rooms = ("common/hrda/network/", "common/hrda/catalogue.py")
    families = [f"common.hrda.network.{name}" for name in ("mit", "mit_weights", "from_timm", "timm_weights")]
    saying: dict[str, set[str]] = {}
    for folder in ("common", *APPS):
        assert [name for name in importers(folder, "timm", *families) if not name.startswith(rooms)] == []
        for path in modules(folder).values():
            name = str(path.relative_to(ROOT))
            found = {text for text in texts(path) if FAMILY.search(text)}
            if found and not name.startswith(rooms):
                saying[name] = found
    assert saying == {}


def texts(path: Path) -> set[str]:
    """Strings in the code of a module, without those that only describe it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {node.value for node in strings if id(node) not in described}


def test_no_imports_go_in_a_circle() -> None:
    known = {name: path for folder in HOUSE for name, path in modules(folder).items()}
    graph = {}
    for name, path in known.items():
        # `from a import b` names the module a.b, or something in a.
        needed = {each if each in known else each.rpartition(".")[0] for each in imports(path)}
        graph[name] = (needed & known.keys()) - {name}
    assert sum(map(len, graph.values())) > 500, "hardly any imports found: the test would hold nothing."
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names_of_the_sdk() -> frozenset[str]:
    """Private attributes of what the apps build on."""
    from supervisely.app.widgets import ExperimentSelector
    from supervisely.nn.inference import SemanticSegmentation
    from supervisely.nn.training.gui.gui import TrainGUI
    from supervisely.nn.training.train_app import TrainApp

    owners = (ExperimentSelector, SemanticSegmentation, TrainGUI, TrainApp)
    names = {name for owner in owners for name in dir(owner) if is_private(name)}
    assert len(names) > 100
    return frozenset(names)


def test_private_names_of_the_sdk_are_reached_in_two_places() -> None:
    reaching = []
    for name, path in {**modules("train"), **modules("serve"), **modules("common")}.items():
        if f"{name}.".startswith(("train.sdk.", "serve.sdk.")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)]
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        own |= {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
        used = {node.attr for node in nodes} - own
        reaching += [f"{name}: {each}" for each in used & private_names_of_the_sdk()]
    assert reaching == []


def test_modules_are_short() -> None:
    long = {
        name: lines
        for folder in (*HOUSE, "benchmarks")
        for name, path in modules(folder).items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_train_has_rooms_and_no_corridor() -> None:
    assert len([path for path in modules("train").values() if path.parent == ROOT / "train"]) <= 12


def test_values_from_outside_are_never_formatted_whole() -> None:
    """Messages repeat what was received through `common.hrda.checks.received`, which bounds it."""
    whole = [
        name
        for folder in ("common", "train", "serve")
        for name, path in modules(folder).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
        for text, value in zip(node.values, node.values[1:], strict=False)
        if isinstance(text, ast.Constant)
        and str(text.value).endswith("Received: ")
        and isinstance(value, ast.FormattedValue)
        and value.conversion == ord("r")
    ]
    assert whole == []


@pytest.mark.parametrize("module", ["common.hrda", "sandbox.synthetic.projects", "train.settings.training"])
def test_importing_the_core_does_not_load_the_sdk(module: str) -> None:
    script = f"import sys, {module}; sys.exit('supervisely' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
