"""The bent SDK: whatever train/sdk relies on without a promise is as it was when the code was written."""

import ast
import hashlib
import importlib
import inspect
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from supervisely.app.widgets import ExperimentSelector
from supervisely.nn.training.gui.gui import TrainGUI
from supervisely.nn.training.gui.model_selector import ModelSelector
from supervisely.nn.training.gui.training_artifacts import TrainingArtifacts
from supervisely.nn.training.gui.training_logs import TrainingLogs
from supervisely.nn.training.gui.training_process import TrainingProcess
from supervisely.nn.training.train_app import TrainApp

from train.page.model import HRDAModelSelector
from train.page.monitor import MonitorCard
from train.page.result import ResultCard
from train.page.start import StartCard
from train.page.start_weights import StartWeightsSelector
from train.sdk import app as sdk
from train.sdk import benchmark as sdk_benchmark
from train.sdk import experiments as sdk_experiments
from train.sdk import gui as sdk_gui
from train.sdk import starting as sdk_starting

OWNERS = {"TrainApp": TrainApp, "TrainGUI": TrainGUI, "ExperimentSelector": ExperimentSelector}
MODULES = (sdk, sdk_gui, sdk_starting, sdk_benchmark, sdk_experiments)
REACHES = {name: reason for module in MODULES for name, reason in module.REACHES.items()}

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
    "TrainApp._prepare_working_dir": "2a2d76d7223e",
    "TrainApp._wrapped_resume_upload": "dd9313cde229",
    "TrainApp._finalize": "f273c764a161",
    "TrainApp._set_training_output": "db84bfd801bd",
    "TrainApp._run_model_benchmark": "a2f9c1774c3d",
    "TrainApp._convert_and_split_gt_project": "0142beea89fd",
    "TrainApp._get_eval_results_dir_name": "5872556aeace",
    "TrainApp._export_weights": "cc56240f49ba",
    "TrainGUI._run_from_experiment": "939522cf7408",
    "TrainGUI._init_input": "dc088beb1c2c",
    "TrainGUI._init_model": "16436d4a5eb1",
    "ExperimentSelector._get_project_infos_map": "395a0c6da6d2",
}
ATTRIBUTES = sorted(set(REACHES) - set(SOURCES))
# Names of modules that classes are put in place of.
REPLACED = {
    "supervisely.nn.training.train_app": {"TrainGUI"},
    "supervisely.nn.training.gui.gui": {
        "InputSelector", "ModelSelector", "ClassesSelector", "HyperparametersSelector", "TrainingProcess",
        "TrainingLogs", "TrainingArtifacts",
    },
    "supervisely.nn.training.gui.classes_selector": {"ClassesTable"},
    "supervisely.nn.training.gui.model_selector": {
        "PretrainedModelsSelector", "ExperimentSelector", "RadioTabs", "Button",
    },
}  # fmt: skip


def source_of(name: str) -> str:
    owner, attribute = name.split(".")
    found = vars(OWNERS[owner]).get(attribute)
    assert found is not None, f"the SDK has no {name} any more: see what does its work now, and change train/sdk/app.py"
    return inspect.getsource(found.fget if isinstance(found, property) else found)


@pytest.mark.parametrize("name", SOURCES)
def test_private_method_is_the_one_that_was_read(name: str):
    digest = hashlib.sha256(source_of(name).encode()).hexdigest()[:12]
    assert digest == SOURCES[name], (
        f"the SDK changed {name} ({REACHES[name]}): read it again, see that train/sdk/app.py still fits, and write "
        f"{digest} here"
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attribute_is_still_set_by_the_sdk(name: str):
    owner, attribute = name.split(".")
    assert attribute in stored_by(OWNERS[owner]), (
        f"the SDK sets no {name} any more ({REACHES[name]}): change train/sdk/app.py"
    )


@pytest.mark.parametrize(("module", "name"), sorted((module, name) for module in REPLACED for name in REPLACED[module]))
def test_sdk_still_looks_its_parts_up_by_name(module: str, name: str):
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert name in calls, f"{module} does not build {name} any more: change train/sdk/app.py"


def test_overrides_take_what_the_sdk_passes():
    ours = {
        sdk.DomainTrainApp: TrainApp,
        sdk_starting.StartedTrainApp: TrainApp,
        sdk_benchmark.BenchmarkedTrainApp: TrainApp,
        sdk_gui.DomainTrainGUI: TrainGUI,
        StartCard: TrainingProcess,
        MonitorCard: TrainingLogs,
        ResultCard: TrainingArtifacts,
        HRDAModelSelector: ModelSelector,
        StartWeightsSelector: ExperimentSelector,
    }
    for subclass, owner in ours.items():
        assert issubclass(subclass, owner)
        for name, function in vars(subclass).items():
            theirs = inspect.getattr_static(owner, name, None)
            if inspect.isfunction(function) and inspect.isfunction(theirs) and name != "__init__":
                expected = list(inspect.signature(theirs).parameters)
                assert list(inspect.signature(function).parameters) == expected, f"the SDK calls {name} differently"


def test_start_card_has_whatever_the_sdk_looks_for_on_it():
    """It is built anew: the SDK's own makes its buttons without ids."""
    missing = stored_by(TrainingProcess) - stored_by(StartCard)
    assert not missing, f"the SDK's start card has {sorted(missing)}: give ours the same in train/page/start.py"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (TrainingLogs, {"validator_text", "progress_bar_main", "progress_bar_secondary", "tensorboard_offline_button"}),
        (ModelSelector, {"pretrained_models_table", "experiment_selector", "model_source_tabs", "validator_text"}),
        (TrainingArtifacts, {"display_widgets", "success_message_text", "artifacts_thumbnail", "validator_text"}),
    ],
)
def test_cards_of_the_sdk_have_the_parts_that_ours_show(owner: type, names: set[str]):
    assert names <= stored_by(owner), f"{owner.__name__} has no {sorted(names - stored_by(owner))} any more"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_private_name_in_use_is_listed(module: ModuleType):
    """A reach that is not listed would break with the next SDK without anybody knowing why."""
    tree = ast.parse(inspect.getsource(module))
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    private |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_private(node.name)}
    theirs = {name for name in private if any(name in names_in(owner) for owner in OWNERS.values())}
    assert theirs == {name.split(".")[1] for name in module.REACHES}


def test_every_reach_says_why():
    assert all(len(reason) > len("too short") for reason in REACHES.values())


TRAIN = Path(sdk.__file__).parents[1]
OTHERS = sorted(path for path in TRAIN.rglob("*.py") if TRAIN / "sdk" not in path.parents)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: ".".join(path.relative_to(TRAIN).with_suffix("").parts))
def test_no_other_module_of_the_app_reaches_into_the_sdk(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    own |= {"_exit"}  # of the standard library's os
    assert used <= own, f"{path} uses private names of the SDK: {used - own}. Move that to train/sdk/app.py"


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
