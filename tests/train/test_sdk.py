"""The bent SDK: whatever train/sdk.py relies on without a promise is as it was when the code was written."""

import ast
import hashlib
import importlib
import inspect
import textwrap
from functools import cache
from pathlib import Path

import pytest
from supervisely.app.widgets import SelectCudaDevice
from supervisely.nn.training.gui.gui import TrainGUI
from supervisely.nn.training.train_app import TrainApp

from train import sdk

OWNERS = {"TrainApp": TrainApp, "TrainGUI": TrainGUI, "SelectCudaDevice": SelectCudaDevice}

# The first twelve digits of the SHA-256 of each method's source, in the release of the SDK that is pinned.
SOURCES = {
    "TrainApp._prepare": "bbb2ab529a2a",
    "TrainApp._workflow_input": "cb26f703b1ec",
    "TrainApp._has_splits_selector": "758bfd9ac801",
    "TrainApp._get_train_val_splits_for_app_state": "6426cd92fe81",
    "TrainApp._postprocess_splits": "65bc42bf7bde",
    "TrainApp._generate_experiment_info": "f7a31913f392",
    "TrainApp._get_resume_app_state": "23efacf754a3",
    "TrainApp._wrapped_start_training": "99bedc9da6fc",
    "TrainApp._show_error": "7e217f90c3e7",
    "TrainApp._download_model": "de82112c013f",
    "TrainApp._read_project": "28490f0c7d45",
    "TrainApp._update_project_custom_data": "91c266f1a803",
    "TrainGUI._init_input": "dc088beb1c2c",
}
ATTRIBUTES = sorted(set(sdk.REACHES) - set(SOURCES))
# Names of modules that classes are put in place of.
REPLACED = {
    "supervisely.nn.training.train_app": {"TrainGUI"},
    "supervisely.nn.training.gui.gui": {
        "InputSelector", "ClassesSelector", "HyperparametersSelector", "TrainingProcess", "TrainingLogs",
    },
    "supervisely.nn.training.gui.classes_selector": {"ClassesTable"},
}  # fmt: skip


def source_of(name: str) -> str:
    owner, attribute = name.split(".")
    found = inspect.getattr_static(OWNERS[owner], attribute, None)
    assert found is not None, f"the SDK has no {name} any more: see what does its work now, and change train/sdk.py"
    return inspect.getsource(found.fget if isinstance(found, property) else found)


@pytest.mark.parametrize("name", SOURCES)
def test_private_method_is_the_one_that_was_read(name: str):
    digest = hashlib.sha256(source_of(name).encode()).hexdigest()[:12]
    assert digest == SOURCES[name], (
        f"the SDK changed {name} ({sdk.REACHES[name]}): read it again, see that train/sdk.py still fits, and write "
        f"{digest} here"
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attribute_is_still_set_by_the_sdk(name: str):
    owner, attribute = name.split(".")
    assert attribute in stored_by(OWNERS[owner]), (
        f"the SDK sets no {name} any more ({sdk.REACHES[name]}): change train/sdk.py"
    )


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in REPLACED for name in REPLACED[module]])
def test_sdk_still_looks_its_parts_up_by_name(module: str, name: str):
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert name in calls, f"{module} does not build {name} any more: change train/sdk.py"


def test_overrides_take_what_the_sdk_passes():
    for ours in (sdk.DomainTrainApp, sdk.DomainTrainGUI):
        for name, function in vars(ours).items():
            theirs = inspect.getattr_static(ours.__mro__[1], name, None)
            if inspect.isfunction(function) and inspect.isfunction(theirs) and name != "__init__":
                expected = list(inspect.signature(theirs).parameters)
                assert list(inspect.signature(function).parameters) == expected, f"the SDK calls {name} differently"


def test_every_private_name_in_use_is_listed():
    """A reach that is not listed would break with the next SDK without anybody knowing why."""
    tree = ast.parse(inspect.getsource(sdk))
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    private |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_private(node.name)}
    theirs = {name for name in private if any(name in names_in(owner) for owner in OWNERS.values())}
    assert theirs == {name.split(".")[1] for name in sdk.REACHES}


@pytest.mark.parametrize("module", ["app", "cards", "inputs", "main"])
def test_no_other_module_of_the_app_reaches_into_the_sdk(module: str):
    tree = ast.parse((Path(sdk.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    own |= {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    assert used <= own, f"train/{module}.py uses private names of the SDK: move that to train/sdk.py"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def stored_by(owner: type) -> frozenset[str]:
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(owner))) if isinstance(node, ast.Attribute)]
    return frozenset(node.attr for node in nodes if isinstance(node.ctx, ast.Store))


@cache
def names_in(owner: type) -> frozenset[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return frozenset(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)) | frozenset(dir(owner))
