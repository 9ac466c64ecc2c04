"""The door of Train HRDA: a child process, real HTTP, the sandbox as its instance, in both modes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from common.web.routes import TRAIN
from tests.common.web.compared import unreviewed, unused
from tests.train.apps import ROOT, App, Instance, running_instance, started

TOKEN = "0123456789abcdefg"
LIST_ROUTES = """
import json, os
from train.main import training
from compared import open_routes
print("ROUTES " + json.dumps(sorted(open_routes(training.server.routes))), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running_instance(tmp_path_factory.mktemp("door")) as made:
        yield made


@pytest.fixture(scope="module")
def app(instance: Instance) -> Iterator[App]:
    with started(instance, "development", HRDA_API_TOKEN=TOKEN) as app:
        yield app


@pytest.fixture(scope="module")
def production(instance: Instance) -> Iterator[App]:
    with started(instance, "production", HRDA_MODEL_CONTROL="false") as app:
        yield app


def test_every_route_of_the_app_was_reviewed(instance: Instance, tmp_path: Path) -> None:
    """A release of the SDK that opens another one is found here; until then the door answers it with 404."""
    more = {"PROJECT_ID": instance.projects["source"], "APP_NAME": "Train HRDA", "SLY_APP_DATA_DIR": tmp_path}
    env = instance.sandbox.env(ENV="development", TASK_ID=instance.new_task("http://127.0.0.1:9"), **more)
    compared = str(ROOT / "tests" / "common" / "web")
    env |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), compared]),
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run([sys.executable, "-c", LIST_ROUTES], cwd=ROOT, env=env, capture_output=True, text=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("ROUTES ")] or [done.stderr[-2000:]]
    found = {tuple(each) for each in json.loads(line.removeprefix("ROUTES "))}
    assert unreviewed(TRAIN, found) == set(), "review them in common/web/routes.py: who needs them, what may they do?"
    assert unused(TRAIN, found) == set(), "nothing answers there any more"


def ask(app: App, path: str, **request: object) -> requests.Response:
    return requests.post(f"{app.url}/{path}", timeout=20, **request)


def test_token_is_asked_for(app: App) -> None:
    for path in ("train_from_api", "stop_training", "train_status", "sly/state", "sly/shutdown"):
        assert ask(app, path, json={}).status_code == 401, path
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(app, "train_status", json={}, headers=bearer).status_code == 200
    assert ask(app, "stop_training", json={}, headers=bearer).status_code == 409, "nothing is running"
    # As a browser, or the SDK's client with https://any:TOKEN@… as address.
    assert ask(app, "sly/state", auth=("any", TOKEN)).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "must be a JSON object"),
        (b"{", "must be JSON"),
        (b'{"state": 5}', "state must be a JSON object"),
        (b'{"state": {}, "context": []}', "context must be a JSON object"),
        (b'{"state": {}, "api_token": "a\\nb"}', "api_token must be the text of a token"),
        (b"[" * 100_000, "too deeply nested"),
    ],
)
def test_body_that_the_sdk_could_not_read_is_answered_in_a_sentence(app: App, body: bytes, words: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = ask(app, "train_status", data=body, headers=headers)
    assert answer.status_code == 400 and words in answer.json()["detail"]


def test_requests_that_no_page_of_the_app_sends_are_refused(app: App) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(app, "debug", headers=bearer).status_code == 404
    assert ask(app, "train_status", json={}, headers=bearer | {"Host": "evil.example"}).status_code == 421
    assert ask(app, "train_status", json={}, headers=bearer | {"Origin": "https://evil.example"}).status_code == 403
    disguised = bearer | {"Content-Type": "text/plain; a=application/json"}
    assert ask(app, "train_status", data="{}", headers=disguised).status_code == 415
    assert ask(app, "sly/session-info", headers=bearer).status_code == 403
    told = ask(app, "sly/session-info", headers=bearer | {"Origin": app.url}).json()
    assert told["API_TOKEN"], "the page script needs it in development"


def test_platforms_way_keeps_working_in_production(instance: Instance, production: App) -> None:
    """The agent's proxy calls the app by a name of its own; pages are of the instance's origin."""
    proxied = {"Host": "an-agents-name", "Origin": instance.sandbox.address}
    assert ask(production, "sly/state", headers=proxied).json()
    assert ask(production, "sly/session-info", headers=proxied).status_code == 200
    assert ask(production, "input_next/button_clicked_cb", json={"state": {}}, headers=proxied).status_code == 200
    assert requests.get(production.url, headers={"Host": "an-agents-name"}, timeout=20).status_code == 200
    foreign = {"Host": "an-agents-name", "Origin": "https://evil.example"}
    assert ask(production, "sly/state", headers=foreign).status_code == 403
    assert ask(production, "sly/session-info", headers={"Host": "an-agents-name"}).status_code == 403


def test_control_that_is_switched_off_stays_off(production: App) -> None:
    for path in ("train_from_api", "stop_training", "sly/shutdown"):
        assert ask(production, path, json={}).status_code == 403
    assert ask(production, "train_status", json={}).status_code == 200


def test_nothing_of_a_request_stays_in_the_pages_state_but_what_is_chosen_there(app: App) -> None:
    """The SDK keeps whatever it is sent, and sends all of it to every browser."""

    def state(**sent: object) -> dict[str, object]:
        return ask(app, "sly/state", json={"state": sent}, auth=("any", TOKEN)).json()

    before = state()
    foreign = {"foreign": "x" * 1000, "experiment_name": {"value": "of a program"}}
    assert ask(app, "train_status", json={"state": foreign}, auth=("any", TOKEN)).status_code == 200
    assert state() == before
    chosen = {"value": "of the page"}
    assert state(foreign="x", experiment_name=chosen) == before | {"experiment_name": chosen}


def test_page_says_little_on_its_websocket(app: App) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with connect(f"{app.url.replace('http', 'ws')}/sly/ws", additional_headers=bearer) as page:
        page.send("x" * 70_000)
        with pytest.raises(ConnectionClosed) as closed:
            page.recv(60)
    assert closed.value.rcvd.code == 1009, "too large"


def test_whatever_goes_wrong_is_answered_in_a_sentence_of_ours(app: App) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for path, status, words in (
        ("nothing/here", 404, "nothing at this address"),
        ("stop_training", 409, "No training is running that could be stopped"),
        ("train_from_api", 400, "app_state"),
    ):
        answer = ask(app, path, json={}, headers=bearer)
        assert (answer.status_code, answer.json()["success"]) == (status, False)
        assert words in answer.json()["message"] and answer.json()["detail"] == answer.json()["message"]
    picture = requests.get(f"{app.url}/previews/1/none.png", headers=bearer, timeout=20)
    assert (picture.status_code, picture.json()["message"][:25]) == (404, "There is no such picture:")
