"""What must not cost a training: its process killed, the instance away, an upload broken off, the app itself killed."""

import json
import re
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
import requests
from supervisely.nn.experiments import get_experiment_infos

from common.hrda import load_checkpoint
from tests.train.apps import LONG_HYPERPARAMETERS, TRAIN_LIMIT_S, App, Instance, running_instance, started

INTERVAL = 4
HYPERPARAMETERS = LONG_HYPERPARAMETERS.replace(
    "validation: {max_images: 1}",
    f"validation: {{interval: {INTERVAL}, max_images: 1}}\ncheckpoint: {{interval: {INTERVAL}}}",
)
ANSWER_LIMIT_S = 2.0
"""For a click's answer on a machine that tests share; the browser's bar is tighter and measured there."""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running_instance(tmp_path_factory.mktemp("instance")) as made:
        yield made


def iteration(app: App) -> int:
    """How far the training is, as the status says."""
    found = re.search(r"iteration (\d+) of 500", app.status())
    return int(found[1]) if found else 0


def is_shown(app: App, widget: str) -> bool:
    return not app.data()[widget]["hide"]


def training_process(app: App) -> psutil.Process:
    children = psutil.Process(app.process.pid).children()
    [found] = [child for child in children if child.cmdline()[1:3] == ["-m", "train"]]
    return found


def test_training_outlives_its_process_the_instance_and_the_app(instance: Instance):
    options = {"model_benchmark": {"enable": False}, "cache_project": True}
    state = instance.state(
        hyperparameters=HYPERPARAMETERS, options=options, device="cpu", experiment_name="interrupted"
    )
    launch = {"modal.state.guiState": json.dumps(state), "SUPERVISELY_PUBLIC_API_RETRY_SLEEP_SEC": 0}
    with started(instance, "production", name="story", **launch) as app:
        before = time.monotonic()
        app.press("start_button")
        assert time.monotonic() - before < ANSWER_LIMIT_S
        picture = app.wait_for("a preview", lambda: app.data()["preview_target_1_pseudo_label"]["url"])
        answer = requests.get(f"{app.url}/{picture}", timeout=10)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert requests.get(f"{app.url}/previews/..%2f..%2f/resume.json", timeout=10).status_code == 404
        series = {
            chart["options"]["title"]["text"]: chart["series"] for chart in app.data().values() if "series" in chart
        }
        assert {one["name"] for one in series["Validation mIoU, %"]} == {"student", "teacher"}
        assert len(series["Losses"][0]["data"]) > 1

        app.wait_for("a checkpoint", lambda: iteration(app) > INTERVAL)
        training_process(app).kill()
        app.wait_for("the cause", lambda: "was ended by the system (signal 9)" in app.status())
        assert app.status().startswith("Error: ")
        app.wait_for("the offer to continue", lambda: is_shown(app, "continue_checkbox"))
        offer = re.search(r"iteration (\d+) of 500; mit_b0; crack", app.data()["continue_text"]["text"])
        kept_at = int(offer[1])
        assert kept_at >= INTERVAL
        assert kept_at % INTERVAL == 0

        app.press("start_button")
        app.wait_for("the training to go on", lambda: "Training: iteration" in app.status())
        assert iteration(app) >= kept_at, "it began anew"
        assert "The source photos are here from the interrupted run" in app.log.read_text(encoding="utf-8")

        instance.go_away()
        gone_at = iteration(app)
        app.wait_for("iterations without the instance", lambda: iteration(app) > gone_at + INTERVAL)
        app.press("stop_button")
        app.wait_for("the broken upload", lambda: "The upload broke off" in app.status())
        assert is_shown(app, "retry_upload")
        assert "work_dir/output on the machine" in app.data()["retry_text"]["text"]
        app.process.kill()
        app.process.wait()

    instance.come_back()
    with started(instance, "production", name="story", task_id=app.task_id, **launch) as again:
        assert is_shown(again, "retry_upload"), "started again, the task still knows of its files"
        instance.go_away()
        again.press("retry_upload")
        again.wait_for("the second broken upload", lambda: "The upload broke off" in again.status())
        instance.come_back()
        again.press("retry_upload")
        assert again.process.wait(TRAIN_LIMIT_S) == 0, again.tail()

    [experiment] = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    assert (experiment.task_id, experiment.experiment_name) == (app.task_id, "interrupted")
    assert load_checkpoint(instance.read(experiment, "checkpoints/last.pth")).iteration > gone_at
    kept = json.loads(instance.read(experiment, "app_state.json").read_text(encoding="utf-8"))
    domains = {role: {"project_id": number, "dataset_ids": None} for role, number in instance.projects.items()}
    same = {name: state[name] for name in ("model", "classes", "hyperparameters", "device")}
    assert {name: kept[name] for name in same} == same
    assert kept["input"] == domains


def test_task_stopped_by_the_platform_saves_and_uploads(instance: Instance):
    with started(instance, "development", **{"SUPERVISELY_PUBLIC_API_RETRY_SLEEP_SEC": 0}) as app:
        nothing = app.post("train_from_api")
        assert (nothing.status_code, "app_state" in nothing.json()["detail"]) == (400, True)
        continued = app.post("train_from_api", {"app_state": instance.state(**{"continue": True})})
        assert (continued.status_code, "no interrupted run" in continued.json()["detail"]) == (400, True)

        state = instance.state(hyperparameters=LONG_HYPERPARAMETERS)
        assert app.post("train_from_api", {"app_state": state, "wait": False}).status_code == 200, app.tail()
        app.wait_for("iterations", lambda: iteration(app) > 1)
        app.process.send_signal(signal.SIGTERM)
        assert app.process.wait(TRAIN_LIMIT_S) == 0, app.tail()
    experiments = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    [stopped] = [experiment for experiment in experiments if experiment.task_id == app.task_id]
    assert 1 < load_checkpoint(instance.read(stopped, "checkpoints/last.pth")).iteration < 500
