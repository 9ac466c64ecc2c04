"""Tasks, the ecosystem, and the way from the SDK's clients through the sandbox to a running app."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
import requests
import supervisely as sly
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from supervisely.nn.inference import Session

SERVE = {"name": "Serve HRDA", "type": "app", "version": "2.0.0", "session_tags": ["deployed_nn"],
         "categories": ["neural network", "images", "serve", "framework:HRDA"]}  # fmt: skip
TRAIN = {**SERVE, "name": "Train HRDA", "categories": ["train", "framework:HRDA"], "session_tags": []}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[dict]]]:
    """An app with the routes that the SDK's clients call first: its address and what it was sent."""
    app, received = FastAPI(), []

    @app.post("/is_running")
    async def is_running() -> dict:
        return {"running": True, "mode": "development"}

    @app.post("/refuse")
    async def refuse() -> JSONResponse:
        return JSONResponse({"error": "no model"}, 409)

    @app.get("/page")
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.query, headers={"x-kind": "page"})

    @app.post("/{command}")
    async def command(command: str, request: Request) -> dict:
        received.append({"command": command, **await request.json()})
        return {"command": command, "status": "ready"}

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", received
    server.should_exit = True
    thread.join()


def test_request_to_a_task_reaches_its_app_with_state_and_access(api, sandbox, served):
    address, received = served
    task = api.post("sandbox.tasks.add", {"name": "serve"}).json()
    api.post("sandbox.tasks.set-address", {"id": task["id"], "address": address})
    assert api.task.send_request(task["id"], "deploy_from_api", {"a": 1}) == {
        "command": "deploy_from_api",
        "status": "ready",
    }
    sent = received[-1]
    assert (sent["state"], sent["server_address"], sent["api_token"]) == ({"a": 1}, sandbox.address, sandbox.token)
    assert api.app.is_ready_for_api_calls(task["id"])
    assert api.task.is_ready(task["id"])


def test_session_clients_reach_the_app_by_the_task_id(api, sandbox, served):
    address, received = served
    task_id = sandbox.create_task("serve", address)["id"]
    session = Session(api, task_id=task_id)
    assert session.base_url.startswith(f"{sandbox.address}/net/")
    model = api.nn.connect(task_id)
    assert model.get_info() == {"command": "get_deploy_info", "status": "ready"}
    assert model._post("inference_image_id", {"state": {"image_id": 3}})["command"] == "inference_image_id"
    assert received[-1]["state"] == {"image_id": 3}
    answer = requests.get(f"{session.base_url}/page", params={"a": ["1", "2"]}, timeout=5)
    assert (answer.text, answer.headers["x-kind"]) == ("a=1&a=2", "page")


def test_refusals_of_the_app_arrive_as_they_are(api, sandbox, served):
    task_id = sandbox.create_task("serve", served[0])["id"]
    with pytest.raises(requests.HTTPError) as caught:
        api.task.send_request(task_id, "refuse", {}, raise_error=True)
    assert (caught.value.response.status_code, caught.value.response.json()) == (409, {"error": "no model"})


def test_app_that_is_not_there_is_named_in_the_error(api, sandbox):
    nowhere = sandbox.create_task("early")["id"]
    with pytest.raises(requests.HTTPError, match="sandbox.tasks.set-address"):
        api.task.send_request(nowhere, "is_ready", {}, raise_error=True)
    gone = sandbox.create_task("gone", "http://127.0.0.1:1")["id"]
    with pytest.raises(requests.HTTPError, match="does not answer") as caught:
        api.task.send_request(gone, "is_ready", {}, raise_error=True)
    # 503: the SDK waits and tries again while an app starts.
    assert caught.value.response.status_code == 503
    assert not api.app.is_ready_for_api_calls(gone)
    assert requests.post(f"{sandbox.address}/net/wrong/is_ready", json={}, timeout=5).status_code == 404


def test_deployment_through_the_sdk_finds_the_served_app(api, sandbox, served, tmp_path, monkeypatch):
    monkeypatch.setenv("TEAM_ID", str(sandbox.team_id))
    address, received = served
    module = sandbox.add_module(SERVE, address=address)
    sandbox.add_module(TRAIN, slug="someone/hrda/train")
    info = {
        "experiment_name": "e", "framework_name": "HRDA", "model_name": "HRDA MiT-b0", "project_id": 1, "task_id": 1,
        "task_type": "semantic segmentation", "model_files": {"config": "config.yaml"}, "checkpoints":
        ["checkpoints/best.pth"], "best_checkpoint": "best.pth", "model_meta": "model_meta.json",
        "hyperparameters": "hyperparameters.yaml", "artifacts_dir": "/experiments/1_p/1_HRDA",
    }  # fmt: skip
    names = {"experiment_info.json": json.dumps(info), "model_meta.json": '{"classes": [], "tags": []}',
             "checkpoints/best.pth": "x", "config.yaml": "a: 1"}  # fmt: skip
    for name, text in names.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    api.file.upload_directory(sandbox.team_id, str(tmp_path / "run"), "/experiments/1_p/1_HRDA")
    found = sly.nn.experiments.get_experiment_infos(api, sandbox.team_id, "HRDA")
    assert [item.model_name for item in found] == ["HRDA MiT-b0"]

    checkpoint = "/experiments/1_p/1_HRDA/checkpoints/best.pth"
    model = api.nn.deploy(checkpoint, device="cpu", workspace_id=sandbox.workspace_id)
    sent = next(item for item in received[::-1] if item["command"] == "deploy_from_api")
    assert sent["state"]["deploy_params"]["model_files"]["checkpoint"] == checkpoint
    listed = api.nn.list_deployed_models(framework="HRDA", workspace_id=sandbox.workspace_id)
    assert model.task_id in [item["task_info"]["id"] for item in listed]
    sessions = api.app.get_sessions(sandbox.team_id, module["id"], statuses=[api.task.Status.STARTED])
    assert model.task_id in [session.task_id for session in sessions]
    model.shutdown()
    assert api.task.get_status(model.task_id) is api.task.Status.STOPPED


def test_ecosystem_is_searched_by_category_name_and_slug(api, sandbox):
    serve, train = sandbox.add_module(SERVE), sandbox.add_module(TRAIN, slug="someone/hrda/train")
    by_category = api.app.get_list_ecosystem_modules(categories=["framework:HRDA", "serve"], categories_operation="and")
    assert [module["id"] for module in by_category] == [serve["id"]]
    both = api.app.get_list_ecosystem_modules(categories=["train", "serve"])
    assert {module["id"] for module in both} == {serve["id"], train["id"]}
    assert api.app.get_ecosystem_module_id("someone/hrda/train") == train["id"]
    assert api.app.get_ecosystem_module_info(train["id"]).config["categories"] == TRAIN["categories"]
    assert api.app.find_module_id_by_app_name("serve hrda") == serve["id"]
    with pytest.raises(requests.HTTPError, match="starts no apps"):
        api.task.start(agent_id=1, module_id=train["id"], workspace_id=sandbox.workspace_id)


def test_list_of_models_has_what_was_added_page_by_page(api, sandbox):
    """Apps that offer models for deployment ask for it when they start."""
    modules = sandbox.add_module(TRAIN, slug="someone/hrda/train"), sandbox.add_module(SERVE)
    models = api.nn.ecosystem_models_api
    assert models.list_models() == models.list_models(local=True) == []
    ids = [
        models.add(name, "HRDA", "semantic segmentation", *(module["id"] for module in modules), params_m=3.7).json()
        for name in ("mit_b0", "mit_b1")
    ]
    models.update_model(ids[1]["id"], params_m=13.7)
    listed = models.list_models()
    assert [(model["name"], model["task"], model["paramsM"]) for model in listed] == [
        ("mit_b0", "semantic segmentation", 3.7),
        ("mit_b1", "semantic segmentation", 13.7),
    ]
    paged = models.get_list_all_pages("ecosystem.models.list", {"localModels": False, "per_page": 1})
    assert [model["id"] for model in paged] == [answer["id"] for answer in ids]
    with pytest.raises(requests.HTTPError, match="module"):
        models.add("mit_b2", "HRDA", "semantic segmentation", 999, 999)


def test_calls_that_an_app_makes_in_production(sandbox, monkeypatch):
    task_id = sandbox.create_task("train")["id"]
    for name, value in sandbox.env(TASK_ID=task_id, ENV="production").items():
        monkeypatch.setenv(name, value)
    api = sly.Api(sandbox.address, sandbox.token)

    task = api.task.get_info_by_id(task_id)
    assert len(task["meta"]["sessionToken"]) == 32
    assert task["meta"]["app"]["id"] is not None
    assert task["teamId"] == sandbox.team_id

    api.task.set_output_experiment(task_id, {"experiment_name": "e", "task_id": task_id})
    assert api.task.get_info_by_id(task_id)["meta"]["output"]["experiment"]["data"]["experiment_name"] == "e"
    project = api.project.create(sandbox.workspace_id, "output")
    api.task.set_output_project(task_id, project.id)

    fields = {"autorestart": {"deploy_params": {"device": "cpu"}}}
    api.task.set_fields_from_dict(task_id, fields)
    assert api.task.get_fields(task_id, ["autorestart", "absent"]) == fields
    api.task.update_meta(task_id, {"templateRootDirectory": "/offline"})
    assert api.task.get_info_by_id(task_id)["meta"]["templateRootDirectory"] == "/offline"
    api.task._update_app_content(task_id, [{"op": "add", "path": "/a", "value": 1}], {"b": 2})

    workflow = api.app.workflow
    workflow.enable()
    assert workflow.add_input_project(project.id)["success"]
    assert workflow.add_output_folder("/experiments/1_p/1_HRDA/")["success"]

    api.task.update_status(task_id, api.task.Status.FINISHED)
    assert api.task.get_info_by_id(task_id)["finishedAt"] is not None


def test_unknown_task_is_none_for_the_sdk(api):
    assert api.task.get_info_by_id(10**6) is None
