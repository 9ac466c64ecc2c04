"""The bent SDK: every private name is still there, and does what this app needs it to do."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from supervisely.nn.inference import SemanticSegmentation
from supervisely.nn.inference import inference as sdk_inference
from supervisely.nn.utils import ModelSource

from common.web.routes import SERVE
from serve.errors import RequestError
from serve.model import deployment
from serve.sdk import deploying, predicting
from serve.sdk import server as sdk_server
from serve.sdk.experiments import Experiments
from serve.sdk.server import SdkServer
from tests.common.web.compared import open_routes, unreviewed, unused
from tests.serve.requests_of_clients import encoded, expected, finished, refused, to_mask, upload

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    deploying: deploying.DeployingServer,
    predicting: predicting.PredictingServer,
    sdk_server: sdk_server.SdkServer,
}
OWN = {"_watched", "_devices", "_address", "_served", "_deploying", "_waking", "_dozing", "_gated"}


def overrides(part: type) -> set[str]:
    """Private methods and properties that a part of the server has of its own."""
    return {name for name in vars(part) if name.startswith("_") and name[:2] != "__" and name != "_abc_impl"}


OVERRIDES = sorted(name for part in PARTS.values() for name in overrides(part) if inspect.isfunction(vars(part)[name]))
DEPLOY_PARAMETERS = {"model_files", "model_source", "model_info", "device", "runtime"}


@pytest.mark.parametrize("name", OVERRIDES)
def test_overridden_private_name_is_still_there_and_takes_the_same(name: str):
    theirs = getattr(SemanticSegmentation, name, None)
    assert theirs is not None, f"the SDK no longer has {name}: see what does its work now, and change serve/sdk"
    expected = list(inspect.signature(theirs).parameters)
    if name == "_load_model_headless":
        assert {*expected} == {"self", "kwargs", *DEPLOY_PARAMETERS}
    else:
        assert expected == list(inspect.signature(getattr(SdkServer, name)).parameters), f"the SDK changed {name}"


@pytest.mark.parametrize("module", PARTS, ids=lambda module: module.__name__)
def test_module_lists_every_private_name_that_it_touches(running, module):
    source = inspect.getsource(module)
    listed, code = module.__doc__, source.replace(module.__doc__, "")
    used = set(re.findall(r"(?<![\w])(?:self|super\(\))\.(_[a-z]\w*)", code)) | overrides(PARTS[module])
    assert used - OWN == set(re.findall(r"`(_\w+)`", listed))
    for name in used - OWN:
        assert hasattr(running.server, name), f"the SDK no longer has {name}"


def test_sdk_never_unpickles_a_checkpoint(running, checkpoint, monkeypatch, tmp_path):
    """The SDK's loader falls back to weights_only=False: a checkpoint would run as a program."""
    loads = []
    load = torch.load

    def spy(*args, **kwargs):
        loads.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    monkeypatch.setattr(sdk_inference, "torch_load_safe", lambda *args: pytest.fail("the SDK opened the file"))
    server = running.server
    assert server._extract_model_files_from_checkpoint(str(checkpoint)) == {}
    quick = server._get_deploy_parameters_from_custom_checkpoint(str(checkpoint), "cpu", "PyTorch")
    assert quick["model_files"] == {"checkpoint": str(checkpoint)}
    monkeypatch.setattr(server, "_args", SimpleNamespace(model=str(checkpoint), device="cpu", runtime="PyTorch"))
    params, is_remote = server._get_deploy_params_from_args()
    assert not is_remote
    assert loads == []
    server._load_model_headless(**params)
    assert loads == [True]


class TeamFiles:
    """The part of `api.file` that downloads a checkpoint."""

    def __init__(self, *paths: str) -> None:
        self.paths, self.fetched = paths, []

    def get_info_by_path(self, team_id: int, path: str) -> SimpleNamespace | None:
        return SimpleNamespace(sizeb=1) if path in self.paths else None

    def download(self, team_id: int, path: str, local: str, progress_cb=None) -> None:
        self.fetched.append(path)


@pytest.mark.parametrize("source", [ModelSource.CUSTOM, ModelSource.EXTERNAL])
def test_only_the_checkpoint_is_fetched_from_team_files(running, monkeypatch, source):
    folder = "/HRDA/segmentation_cracks"
    files = TeamFiles(f"{folder}/best.pth", f"{folder}/config.py")
    monkeypatch.setattr(running.server, "_watched", SimpleNamespace(file=files))
    monkeypatch.setenv("TEAM_ID", "1")
    params = {
        "model_source": source,
        "model_files": {"checkpoint": f"{folder}/best.pth", "config": f"{folder}/config.py"},
    }
    local = running.server._download_model_files(params, log_progress=False)
    assert files.fetched == [f"{folder}/best.pth"]
    assert set(local) == {"checkpoint"}
    assert set(params) == DEPLOY_PARAMETERS, "what the SDK reads next must be there"


def test_checkpoint_that_is_nowhere_is_explained(running, monkeypatch):
    monkeypatch.setattr(running.server, "_watched", SimpleNamespace(file=TeamFiles()))
    params = {"model_files": {"checkpoint": "/experiments/1/missing.pth"}}
    with pytest.raises(RequestError, match="TEAM_ID"):
        running.server._download_model_files(dict(params), False)
    monkeypatch.setenv("TEAM_ID", "1")
    with pytest.raises(RequestError, match="/experiments/1/missing.pth', neither in Team Files nor"):
        running.server._download_model_files(dict(params), False)


def test_former_form_of_a_deploy_request_is_understood(page, checkpoint):
    """SDK clients of former artifacts send `checkpoint_url` and no files."""
    params = {"checkpoint_url": str(checkpoint), "checkpoint_name": "model.pth", "task_type": "segmentation"}
    assert page._download_model_files(params)["checkpoint"] == str(checkpoint)
    page._load_model_headless(**params | {"device": "cpu"})
    assert page.deployment.name == "model.pth"


def test_settings_of_a_request_are_left_as_they_came(running):
    state = {"settings": {"window": 64, "rectangle": None, "batch_size": 9}, "rectangle": None, "batch_size": 9}
    settings = running.server._get_inference_settings(state)
    assert state == {"settings": {"window": 64, "rectangle": None, "batch_size": 9}, "rectangle": None, "batch_size": 9}
    assert "rectangle" not in settings
    assert (settings["window"], settings["batch_size"], settings["sliding_window_mode"]) == (64, 4, "none")


def test_results_bear_the_name_that_the_sdks_own_clients_read(running):
    """`Session.inference_image_ids_async` and `predict --project_id` read `image_name`."""
    from supervisely import Annotation
    from supervisely.nn.model.prediction import Prediction

    prediction = Prediction(Annotation((4, 5)), model_meta=running.server.model_meta, name="photo.jpg")
    [result] = running.server._format_output([prediction])
    assert (result["name"], result["image_name"]) == ("photo.jpg", "photo.jpg")


def test_rectangles_are_checked_for_the_image_that_each_belongs_to(running):
    image = np.zeros((80, 100, 3), np.uint8)
    inside = {"points": {"exterior": [[0, 0], [79, 79]], "interior": []}}
    outside = {"points": {"exterior": [[0, 0], [100, 79]], "interior": []}}
    settings = running.server._get_inference_settings({"settings": {"rectangles": [inside, outside]}})
    with pytest.raises(RequestError, match="right 100, bottom 79"):
        running.server._inference_auto([image, image], settings)
    annotations, _ = running.server._inference_auto([image], settings)
    assert annotations[0].img_size == (80, 100)


def test_of_a_list_of_rectangles_each_image_gets_its_own_in_every_batch(running, image):
    """The SDK gives each batch the list of all."""
    corners = [(5 * n, 3 * n, 5 * n + 63, 3 * n + 63) for n in range(7)]
    rectangles = [
        {"points": {"exterior": [[left, top], [right, bottom]], "interior": []}} for left, top, right, bottom in corners
    ]
    files = [("files", (f"{n}.png", encoded(image))) for n in range(7)]
    state = {"batch_size": 2, "settings": {"rectangles": rectangles}}
    form = {"state": json.dumps(state)}
    results = requests.post(f"{running.url}/inference_batch", files=files, data=form, timeout=60).json()
    job = requests.post(f"{running.url}/inference_batch_async", files=files, data=form, timeout=60)
    for answer in (results, finished(running, job)["pending_results"]):
        assert len(answer) == 7
        for (left, top, right, bottom), result in zip(corners, answer, strict=True):
            mask, place = to_mask(result["annotation"]), (slice(top, bottom + 1), slice(left, right + 1))
            np.testing.assert_array_equal(mask[place], expected(running, np.ascontiguousarray(image[place])))
            mask[place] = 255
            assert (mask == 255).all(), "nothing lies outside of the image's own region"
    for given, words in (
        (rectangles[:6], "6 rectangles for 7 images"),
        ([*rectangles, rectangles[0]], "8 rectangles for 7 images"),
        ([], "0 rectangles for 7 images"),
        ([*rectangles[:6], None], "rectangle must be"),
    ):
        form = {"state": json.dumps({"settings": {"rectangles": given}})}
        for route in ("inference_batch", "inference_batch_async"):
            refused(requests.post(f"{running.url}/{route}", files=files, data=form, timeout=60), words)


def test_model_sleeps_on_the_cpu_and_wakes_on_its_gpu(running, checkpoint, image, monkeypatch):
    """The SDK calls `load_model` again to free a GPU that is not used, and with the next request to take it back."""
    loaded = []
    resolve = deployment.resolve_device

    def pretend(device: str) -> torch.device:
        loaded.append(device)
        return resolve("cpu")

    monkeypatch.setattr(deployment, "resolve_device", pretend)
    server = running.server
    server._load_model_headless(model_files={"checkpoint": str(checkpoint)}, device="cuda:0")
    [awake] = server.inference([image])
    answer = requests.post(f"{running.url}/freeze_model", json={"state": {}}, timeout=60)
    assert answer.json() == {"message": "Model is frozen."}
    assert loaded == ["cuda:0", "cpu"]
    [woken] = server.inference([image])
    assert loaded == ["cuda:0", "cpu", "cuda:0"]
    server._freeze_model()
    assert upload(running, encoded(image)).status_code == 200
    assert loaded[3:] == ["cpu", "cuda:0"], "a request by HTTP wakes it before it keeps hold of a model"
    assert [label.geometry.to_json()["bitmap"] for label in woken.labels] == [
        label.geometry.to_json()["bitmap"] for label in awake.labels
    ]


def test_server_listens_where_it_was_told_once_our_routes_are_there(checkpoint, no_instance, monkeypatch):
    from starlette.testclient import TestClient

    from serve.server import HRDAServer
    from tests.serve.conftest import own_app

    started = []

    def run(app, **options):
        answer = TestClient(app, "http://127.0.0.1").post("/list_pretrained_models", json={})
        started.append((options["host"], options["port"], answer.json()))

    monkeypatch.setattr("uvicorn.run", run)
    monkeypatch.setattr(sys, "argv", ["serve", "deploy", "--model", str(checkpoint), "--device", "cpu"])
    with own_app():
        HRDAServer("127.0.0.1", 8123).serve()
    assert started == [("127.0.0.1", 8123, [])], "the SDK looks into the page, of which there is none"


def test_page_offers_experiments_and_paths_and_no_pretrained_models(page):
    assert page.pretrained_models == []
    assert page.gui.pretrained_models_table is None
    assert isinstance(page.gui.experiment_selector, Experiments), "with their names and foreground IoU"
    assert page.gui.external_models_selector is not None
    page._reset_gui_state()
    assert page.gui.model_source == ModelSource.CUSTOM


def test_page_deploys_the_path_that_was_entered(page, checkpoint):
    page.gui.model_source_tabs.set_active_tab(ModelSource.EXTERNAL)
    page.gui.external_models_selector.set_checkpoint_path("")
    with pytest.raises(RequestError, match="A checkpoint is needed"):
        page.gui.deploy_with_current_params()
    page.gui.external_models_selector.set_checkpoint_path(str(checkpoint))
    page.gui.deploy_with_current_params()
    assert page.is_model_deployed()
    assert page.get_info()["checkpoint_name"] == "model.pth"


def test_app_with_page_is_shown_and_deployed_over_http(page, checkpoint):
    from starlette.testclient import TestClient

    client = TestClient(page.app, "http://127.0.0.1")
    assert "Models trained in Supervisely" in client.get("/").text
    assert client.post("/list_pretrained_models", json={"state": {}}).json() == []
    params = {"model_source": ModelSource.CUSTOM, "model_files": {"checkpoint": str(checkpoint)}, "device": "cpu"}
    answer = client.post("/deploy_from_api", json={"state": {"deploy_params": params, "model_name": None}})
    assert answer.json() == {"result": "model was successfully deployed"}
    assert client.post("/is_ready", json={}).status_code == requests.codes.ok
    params["model_files"] = {"checkpoint": "/experiments/missing.pth"}
    answer = client.post("/deploy_from_api", json={"state": {"deploy_params": params}})
    assert answer.status_code == requests.codes.bad_request
    assert "neither in Team Files nor on this machine" in answer.json()["message"]


def test_every_route_of_the_app_was_reviewed(page):
    """A release of the SDK that opens another one is found here; until then the door answers it with 404."""
    found = open_routes(page._app.get_server().routes)
    assert unreviewed(SERVE, found) == set(), "review them in common/web/routes.py: who needs them, what may they do?"
    assert unused(SERVE, found) == set(), "nothing answers there any more"


def test_page_gets_every_file_that_it_names(page):
    from starlette.testclient import TestClient

    client = TestClient(page.app, "http://127.0.0.1")
    html = client.get("/").text
    files = set(re.findall(r"""["'`]\./(sly/[^"'`]+)["'`]""", html))
    assert len(files) > 5
    for name in files:
        assert client.get(f"/{name}").status_code == 200, name
    assert client.get("/sly/css/nn/training/train_app.py").status_code == 404


def test_changes_of_the_page_reach_each_browser_alone(running) -> None:
    """What `tests/common/web/test_browsers.py` shows of the SDK's manager holds in this app."""
    from supervisely.app.fastapi.websocket import WebsocketManager

    assert WebsocketManager().broadcast.__qualname__.startswith("tell_each_alone")


@pytest.mark.parametrize("module", ["serve.sdk.predicting", "serve.sdk.projects"])
def test_sdk_can_merge_by_overlap_whatever_torchvision_is_installed(module):
    """In a process of its own: encoders of timm would have made it importable here."""
    code = f"import {module}; from supervisely.nn.inference import inference; from torchvision.ops import box_iou"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
