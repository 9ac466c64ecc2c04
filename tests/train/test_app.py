"""The app as the platform runs it: a child process, real HTTP, the sandbox as its instance, in both modes."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import requests
import supervisely as sly
import torch
import yaml
from supervisely.api.nn.utils import find_apps_by_framework, get_artifacts_dir_and_checkpoint_name
from supervisely.api.task_api import TaskFinishedWithError
from supervisely.nn.experiments import ExperimentInfo, get_experiment_infos

from common.hrda import load_checkpoint
from common.hrda.prediction.runtime import OnnxNetwork, TorchNetwork
from common.web.guide import LINK
from tests.train.apps import (
    HYPERPARAMETERS,
    IMAGES,
    LONG_HYPERPARAMETERS,
    TRAIN_LIMIT_S,
    App,
    Instance,
    running_instance,
    started,
)
from train.instance.domains import ROLES, Domain, Inputs
from train.page.gui import HRDATrainGUI

STARTS = 6
PROGRESS = re.compile(r"Training: iteration [1-9]\d* of 500")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running_instance(tmp_path_factory.mktemp("instance")) as made:
        yield made


@pytest.fixture(scope="module")
def production(instance: Instance) -> Iterator[App]:
    # As the SDK's own client launches the app with autostart=False: it knows of one project only.
    state = instance.state(input=None, start_training=False, options={"export": {"enable": False}})
    with started(instance, "production", **{"modal.state.guiState": json.dumps(state)}) as app:
        yield app


@dataclass
class Training:
    """A training in production mode, started without waiting for it."""

    experiment: ExperimentInfo
    starts: list[requests.Response]


@pytest.fixture(scope="module")
def training(instance: Instance, production: App) -> Training:
    options = {"model_benchmark": {"enable": False}, "export": {"enable": True, "ONNXRuntime": True}}
    state = instance.state(experiment_name="the first", options=options, compare=True)
    request = {"app_state": state, "wait": False}
    with ThreadPoolExecutor(STARTS) as pool:
        starts = list(pool.map(lambda _: production.post("train_from_api", request), range(STARTS)))
    assert any(answer.ok for answer in starts), f"{[answer.text for answer in starts]}\n{production.tail()}"
    assert production.process.wait(TRAIN_LIMIT_S) == 0, production.tail()
    [experiment] = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    return Training(experiment, starts)


@pytest.fixture(scope="module")
def trained(training: Training) -> ExperimentInfo:
    return training.experiment


def test_launch_that_names_one_project_only_waits_for_a_person(production):
    """Ending would leave nobody a page on which to choose the others, and training at once would be worse."""
    assert production.status().startswith("Error: The app state must name the photos to use")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyperparameters": "iteration: 4"}, "Unknown setting 'iteration': did you mean 'iterations'?"),
        (
            {"hyperparameters": "optimizer: {lr: fast}"},
            "In optimizer: lr must be a number from above 0 to 1. Received: 'fast'.",
        ),
        ({"hyperparameters": "model: [1"}, "The settings are not valid YAML"),
        ({"hyperparameters": {"iterations": 4}}, "hyperparameters must be YAML text"),
        ({"classes": ["crak"]}, "The source project has no class 'crak': did you mean 'crack'?"),
        ({"classes": ["crack", "axis"]}, "The class 'axis' is of shape line, which covers no area"),
        ({"classes": ["__bg__"]}, "The source project has no class '__bg__'"),
        ({"classes": []}, "classes must be a list of class names"),
        ({"hyperparameters": "data: {ignored_classes: [crack]}"}, "ignored_classes names 'crack', which is trained"),
        ({"model": {"source": "Pretrained models", "model_name": "mit_b9"}}, "There is no model 'mit_b9'"),
        ({"model": {"source": "Custom models", "task_id": 99}}, "has no HRDA experiment of task 99"),
        ({"model": {"source": "Custom models", "checkpoint_path": "/x.pth"}}, "a checkpoint of the former HRDA app"),
        ({"model": "mit_b0"}, "model must look like"),
        ({"input": None}, "The app state must name the photos to use"),
        ({"input": {"target": {"project_id": 2}}}, "No validation project is named"),
        ({"input": {"validation": {"project_id": 999}, "target": {"project_id": 2}}}, "There is no project 999"),
        ({"options": {"export": {"TensorRT": True}}}, "does not export to TensorRT"),
        ({"options": {"export": {"ONNXRuntime": "yes"}}}, "In options: In export: ONNXRuntime must be true or false"),
        ({"options": {"exports": {}}}, "In options: Unknown setting 'exports': did you mean 'export'?"),
        ({"options": [1]}, "options must be an object. Received: [1]."),
        ({"experiment_name": "a/b"}, "experiment_name must have no slashes"),
        ({"compare": "yes"}, "compare must be true, false or be left out. Received: 'yes'."),
        ({"compare": True, "hyperparameters": "mode: control"}, "Only a run in mode uda has target photos"),
        ({"compare": True, "input": {"target": {"project_id": 2}, "validation": "none"}}, "Received: no validation"),
    ],
)
def test_request_that_cannot_work_is_refused_with_a_sentence(instance, production, change, message):
    answer = production.post("train_from_api", {"app_state": instance.state(**change)})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["detail"]
    assert production.status() == f"Error: {answer.json()['detail']}", "whoever asks for the status sees it too"


def test_measuring_on_the_source_is_refused(instance, production):
    source = instance.projects["source"]
    domains = {"target": {"project_id": instance.projects["target"]}, "validation": {"project_id": source}}
    answer = production.post("train_from_api", {"app_state": instance.state(input=domains)})
    assert (answer.status_code, "Source and validation share dataset 'ds0'" in answer.text) == (400, True)


def test_measuring_on_the_labelled_target_of_mode_supervised_is_refused(instance, production):
    domains = {role: {"project_id": instance.projects["validation"]} for role in ("target", "validation")}
    state = instance.state(input=domains, hyperparameters=HYPERPARAMETERS.replace("uda", "supervised"))
    answer = production.post("train_from_api", {"app_state": state})
    assert answer.status_code == 400
    assert "Target and validation share dataset 'ds0'" in answer.json()["detail"]


def test_adapting_without_a_target_is_refused(instance, production):
    domains = {"validation": {"project_id": instance.projects["validation"]}}
    answer = production.post("train_from_api", {"app_state": instance.state(input=domains)})
    assert answer.status_code == 400
    assert "Mode 'uda' needs target photos" in answer.json()["detail"]


def test_photos_that_cannot_be_measured_on_are_refused_before_training(instance, production):
    """Labels are only known once the photos are here: said by the engine, answered like any other refusal."""
    domains = {"validation": {"project_id": instance.projects["target"]}}
    state = instance.state(input=domains, hyperparameters=HYPERPARAMETERS.replace("uda", "source-only"))
    answer = production.post("train_from_api", {"app_state": state, "wait": True}, TRAIN_LIMIT_S)
    assert answer.status_code == 400, f"{answer.text}\n{production.tail()}"
    assert "The validation project 'target' has no label of the class 'crack'" in answer.json()["detail"]
    assert production.status() == f"Error: {answer.json()['detail']}"
    assert get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA") == []


def test_stopping_without_a_training_is_said(production):
    answer = production.post("stop_training")
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("No training is running that could be stopped")


def test_page_is_rendered_without_cuda(production):
    assert requests.get(production.url, timeout=60).status_code == 200
    data = production.post("sly/data").json().values()
    titles = {widget["title"] for widget in data if isinstance(widget, dict) and "title" in widget}
    assert {"Source", "Target", "Validation", "Select Model", "Classes Selector", "Hyperparameters"} <= titles
    state = production.post("sly/state").json().values()
    assert "cpu" in [widget.get("value") for widget in state if isinstance(widget, dict)], "the device to train on"


def test_every_card_leads_to_the_guide(production):
    data = [widget for widget in production.post("sly/data").json().values() if isinstance(widget, dict)]
    cards = {widget["title"]: widget["show_slot"] for widget in data if "show_slot" in widget}
    assert {"Photos", "Hyperparameters", "Training", "Progress", "Result"} <= set(cards)
    assert all(cards.values()), cards
    assert [widget.get("text") for widget in data].count(LINK) == len(cards)
    assert "## " not in requests.get(f"{production.url}/guide/guide.md", timeout=60).text


def test_experiment_is_listed_with_its_scores(instance, trained):
    assert (trained.framework_name, trained.model_name) == ("HRDA", "mit_b0")
    assert trained.project_id == instance.projects["source"]
    assert (trained.train_size, trained.val_size) == (IMAGES, IMAGES)
    assert trained.checkpoints == ["checkpoints/best.pth", "checkpoints/last.pth"]
    assert 0 < trained.evaluation_metrics["mIoU"] < 1
    assert {"iou/crack", "f1_2px/crack"} <= set(trained.evaluation_metrics)


def test_experiment_holds_everything_that_the_platform_expects(instance, trained):
    paths = instance.api.file.listdir(instance.sandbox.team_id, trained.artifacts_dir, recursive=True)
    names = {path.removeprefix(trained.artifacts_dir) for path in paths}
    assert names >= {
        "app_state.json", "checkpoints/best.pth", "checkpoints/last.pth", "config.yaml", "experiment_info.json",
        "hyperparameters.yaml", "model_meta.json", "open_app.lnk", "train_val_split.json",
    }  # fmt: skip
    assert any(name.startswith("logs/events.out.tfevents.") for name in names)
    assert instance.read(trained, "hyperparameters.yaml").read_text(encoding="utf-8") == HYPERPARAMETERS
    config = yaml.safe_load(instance.read(trained, "config.yaml").read_text(encoding="utf-8"))
    assert (config["model"]["encoder"], config["model"]["decoder_channels"]) == ("mit_b0", 16)


def test_comparison_that_a_script_asked_for_is_on_the_model_card(instance, trained):
    """Nobody is at the page: it begins by itself, and the app ends after it."""
    card = instance.read(trained, "README.md").read_text(encoding="utf-8")
    assert re.search(r"With target photos the IoU is [+-][\d.]+ points against the run without them", card)
    assert re.search(r"\| without target photos \| [\d.]+ \|", card)


def test_checkpoint_of_the_experiment_loads_without_running_code(instance, trained):
    """The SDK writes model_info, model_meta and model_files into it on the way."""
    path = instance.read(trained, "checkpoints/best.pth")
    bundle = load_checkpoint(path)
    assert bundle.classes == ("__bg__", "crack")
    meta = json.loads(instance.read(trained, "model_meta.json").read_text(encoding="utf-8"))
    assert [obj_class["title"] for obj_class in meta["classes"]] == list(bundle.classes), "the order of the indices"
    assert {obj_class["shape"] for obj_class in meta["classes"]} == {"bitmap"}
    assert sly.color.hex2rgb(meta["classes"][1]["color"]) == list(bundle.palette[1])


def test_splits_name_the_images_of_source_and_validation(instance, trained):
    splits = json.loads(instance.read(trained, "train_val_split.json").read_text(encoding="utf-8"))
    for split, role in (("train", "source"), ("val", "validation")):
        [dataset] = instance.api.dataset.get_list(instance.projects[role])
        assert sorted(splits[split]) == sorted(image.id for image in instance.api.image.get_list(dataset.id))


def test_deployment_finds_model_and_serving_app(instance, trained):
    """What `api.nn.deploy` does before it starts the serving app."""
    checkpoint = f"{trained.artifacts_dir}checkpoints/best.pth"
    artifacts_dir, name = get_artifacts_dir_and_checkpoint_name(checkpoint)
    assert (artifacts_dir.strip("/"), name) == (trained.artifacts_dir.strip("/"), "best.pth")
    [module] = find_apps_by_framework(instance.api, trained.framework_name, ["serve"])
    assert module["name"] == "Serve HRDA"


def test_of_six_starts_at_once_one_trains_and_the_others_are_told(training):
    assert sorted(answer.status_code for answer in training.starts) == [200, *[409] * (STARTS - 1)]
    told = {answer.json().get("detail") for answer in training.starts if not answer.ok}
    assert told == {"A training is running in this app already. Wait for its end, or start another app."}


def test_network_is_exported_at_the_end_where_that_was_asked_for(instance, trained):
    """As `api.nn.train.run(…, export_onnx=True)` asks for it."""
    assert trained.export == {"ONNXRuntime": "export/best.onnx"}
    exported = OnnxNetwork(instance.read(trained, "export/best.onnx"))
    bundle = load_checkpoint(instance.read(trained, "checkpoints/best.pth"))
    assert tuple(exported.metadata.classes) == bundle.classes
    classes = json.loads(instance.read(trained, "export/classes.json").read_text(encoding="utf-8"))
    assert classes == {"0": "__bg__", "1": "crack"}, "by the index in the network's output"
    windows = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        exported.detail_logits(windows), TorchNetwork(bundle.model, "cpu").detail_logits(windows), atol=1e-4, rtol=1e-4
    )


def test_launch_by_the_sdk_that_cannot_be_carried_out_ends_the_task_as_failed(instance):
    """Whoever launched it waits for the task's end, which would never come."""
    task_id = instance.api.nn.train.run(instance.projects["source"], model="HRDA/mit_b0", classes=["crack"])["id"]
    with pytest.raises(TaskFinishedWithError):
        instance.api.task.wait(task_id, instance.api.task.Status.FINISHED, wait_attempt_timeout_sec=1)
    told = instance.api.task.get_info_by_id(task_id)["meta"]["output"]["general"]
    assert (told["title"], told["isError"]) == ("The training could not be carried out", True)
    assert told["description"].startswith("The app state must name the photos to use: input = {")
    assert 'docs/training.md shows a launch with all of them under "Train from a script"' in told["description"]


def test_sdk_goes_on_from_an_experiment_with_the_app_state_that_the_page_wrote(instance, trained):
    task_id = instance.api.nn.train.finetune(trained.task_id)["id"]
    written = json.loads(instance.read(trained, "app_state.json").read_text(encoding="utf-8"))
    assert written["options"]["export"] == {"enable": True, "ONNXRuntime": True, "TensorRT": False}
    assert written["compare"] is True
    written["compare"] = False
    instance.api.app.send_request(task_id, "train_from_api", {"app_state": written, "wait": False}, raise_error=True)
    instance.api.task.wait(task_id, instance.api.task.Status.FINISHED, wait_attempt_timeout_sec=1)
    experiments = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    [repeated] = [experiment for experiment in experiments if experiment.task_id == task_id]
    assert json.loads(instance.read(repeated, "app_state.json").read_text(encoding="utf-8")) == written
    assert repeated.export == trained.export


def test_experiment_is_repeated_on_the_project_that_the_app_was_started_on():
    """As `api.nn.train.finetune(task_id, project_id=…)` asks for it."""
    domains = {role: {"project_id": number, "dataset_ids": [number]} for number, role in enumerate(ROLES[:3], 1)}
    fitted = HRDATrainGUI.fit_to_launch(SimpleNamespace(project_id=9), {"input": domains, "classes": ["crack"]})
    assert fitted["classes"] == ["crack"]
    inputs = Inputs.from_state(fitted["input"], launched_project_id=9)
    assert inputs.source == Domain(9), "all datasets: those of the experiment's own are not in it"
    assert (inputs.target, inputs.validation) == (Domain(2, (2,)), Domain(3, (3,)))
    same = {"input": domains}
    assert HRDATrainGUI.fit_to_launch(SimpleNamespace(project_id=1), same) == same


def test_platform_is_told_of_the_experiment(instance, production, trained):
    """The Experiments page reads the output of the task."""
    task = instance.api.task.get_info_by_id(production.task_id)
    assert task["meta"]["output"]["experiment"]["data"]["artifacts_dir"] == trained.artifacts_dir


def test_experiment_is_continued_with_its_three_domains_and_can_be_stopped(instance, trained):
    """Re-run and continue start from app_state.json; the state that comes out must be the one that went in."""
    state = json.loads(instance.read(trained, "app_state.json").read_text(encoding="utf-8"))
    domains = {role: {"project_id": number, "dataset_ids": None} for role, number in instance.projects.items()}
    assert state["input"] == domains
    launch = {"modal.state.trainTaskId": trained.task_id, "modal.state.trainMode": "continue"}
    with started(instance, "development", **launch) as app:
        shown = app.post("sly/state").json().values()
        chosen = [widget.get("value") for widget in shown if isinstance(widget, dict)]
        assert {instance.projects["target"], instance.projects["validation"]} <= {v for v in chosen if type(v) is int}

        state["model"] = {"source": "Custom models", "task_id": trained.task_id, "checkpoint": "last.pth"}
        refused = app.post("train_from_api", {"app_state": {**state, "classes": ["crak"]}})
        assert (refused.status_code, refused.json()["detail"][:24]) == (400, "The source project has n")
        state |= {"experiment_name": "more", "hyperparameters": LONG_HYPERPARAMETERS}
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(app.post, "train_from_api", {"app_state": state, "wait": True}, TRAIN_LIMIT_S)
            # Of a run this long: the page is told once a second at most, in which a training of two iterations is over.
            progress = app.wait_for("iterations", lambda: waiting.done() or PROGRESS.match(app.status()))
            assert progress is not True, waiting.result().text
            assert app.post("stop_training").status_code == 200, app.tail()
            answer = waiting.result()
        assert answer.status_code == 200, f"{answer.text}\n{app.tail()}"
        assert app.process.wait(30) == 0, app.tail()
        assert "All weights loaded from" in app.log.read_text(encoding="utf-8")

    experiments = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    [continued] = [experiment for experiment in experiments if experiment.task_id == app.task_id]
    assert continued.experiment_name == "more"
    assert continued.base_checkpoint_link == f"{trained.artifacts_dir}checkpoints/last.pth"
    bundle = load_checkpoint(instance.read(continued, "checkpoints/last.pth"))
    assert 1 <= bundle.iteration < 500, "what was trained when it was stopped is saved"
    again = json.loads(instance.read(continued, "app_state.json").read_text(encoding="utf-8"))
    assert (again["input"], again["model"]) == (domains, state["model"])
