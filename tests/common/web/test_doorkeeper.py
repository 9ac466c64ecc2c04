"""What both apps have around them: whatever goes wrong is a sentence of ours, and websockets have bounds."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Form, HTTPException, UploadFile, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from supervisely.app.fastapi.subapp import handle_server_errors

from common.web.answers import answer_all_errors, answer_error
from common.web.door import Door
from common.web.doorkeeper import Doorkeeper
from common.web.health import add_liveness, add_readiness
from common.web.routes import FORM, JSON, TRAIN, Route, routes_of
from common.web.settings import DoorSettings
from serve.answers import answer_error as answer_of_serve

FOREIGN = ("Not Found", "Method Not Allowed", "parsing the body", "Field required", "Internal Server", "boundary in")
"""What Starlette and FastAPI say."""


def made(answer: Callable[..., Any] = answer_error, **bounds: Any) -> SimpleNamespace:
    server, settings, life = FastAPI(), DoorSettings(**bounds), {"trouble": None, "missing": None}
    handle_server_errors(server)

    @server.post("/upload")
    def upload(files: list[UploadFile], name: str = Form()) -> int:
        return len(files)

    @server.post("/fail")
    def fail() -> None:
        raise KeyError("a secret of the house")

    @server.post("/away")
    def away() -> None:
        raise HTTPException(404, "Not Found")

    @server.websocket("/sly/ws")
    async def page(websocket: WebSocket) -> None:
        await websocket.accept()
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass

    add_liveness(server, "development", lambda: life["trouble"])
    add_readiness(server, lambda: life["missing"])
    answer_all_errors(server, answer)
    media = {"/upload": FORM, "/fail": JSON, "/away": JSON, "/in_the_table_alone": JSON}
    rows = [Route((TRAIN,), "POST", path, "tests", "", media=kind) for path, kind in media.items()]
    app = Doorkeeper(server, Door([*routes_of(TRAIN), *rows], settings), settings, dict, answer)
    client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)
    return SimpleNamespace(client=client, life=life)


@pytest.mark.parametrize("answer", [answer_error, answer_of_serve], ids=["train", "serve"])
@pytest.mark.parametrize(
    ("request_of", "status", "words"),
    [
        (lambda client: client.get("/nothing"), 404, "nothing at this address. See README.md"),
        (lambda client: client.post("/in_the_table_alone"), 404, "nothing at this address. See README.md"),
        (lambda client: client.post("/away"), 404, "See README.md"),
        (lambda client: client.get("/upload"), 405, "asked with POST, not with 'GET'"),
        (lambda client: client.post("/upload", files={"other": b"1"}), 400, "must hold files, name. README.md shows"),
        (
            lambda client: client.post("/upload", content=b"1", headers={"Content-Type": FORM}),
            400,
            "Send it as multipart/form-data with a boundary",
        ),
        (lambda client: client.post("/upload", files={"files": (None, b"1"), "name": (None, b"1")}), 400, "at files"),
        (lambda client: client.post("/fail", json={}), 500, "which is its own fault; its log says why"),
        (lambda client: client.post("/fail", content=b"{", headers={"Content-Type": JSON}), 400, "must be JSON"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence_of_ours(answer, request_of, status, words, caplog):
    with caplog.at_level(logging.CRITICAL, "logger"):
        told = request_of(made(answer).client)
    assert told.status_code == status, told.text
    assert words in told.json()["message"] and told.json()["success"] is False
    detail = told.json()["detail"]
    assert told.json()["message"] == (detail["message"] if isinstance(detail, dict) else detail)
    assert not any(word in told.text for word in (*FOREIGN, "secret", "Traceback"))


def test_health_says_what_is_wrong_and_what_to_do():
    app = made()
    assert app.client.get("/healthz").json() == {"running": True, "mode": "development"}
    app.life |= {"trouble": "It hangs. Start it anew.", "missing": "No model is deployed. Choose one."}
    for path, message in (("/healthz", app.life["trouble"]), ("/is_ready", app.life["missing"])):
        told = app.client.get(path)
        assert (told.status_code, told.json()["message"]) == (503, message)


OWN = {"Host": "127.0.0.1"}


def test_pages_that_are_open_at_the_same_time_are_bounded():
    client = made(max_websockets=2).client
    with client.websocket_connect("/sly/ws", headers=OWN):
        with client.websocket_connect("/sly/ws", headers=OWN):
            with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/sly/ws", headers=OWN):
                pass
            assert refused.value.status_code == 429
            assert "2 pages of the app are open already" in refused.value.json()["message"]
        with client.websocket_connect("/sly/ws", headers=OWN):
            assert client.post("/train_status").status_code == 404, "other requests do not wait for pages"


def test_websocket_of_another_sites_page_is_refused_in_a_sentence():
    headers = OWN | {"Origin": "https://evil.example"}
    with pytest.raises(WebSocketDenialResponse) as refused, made().client.websocket_connect("/sly/ws", headers=headers):
        pass
    assert refused.value.status_code == 403 and "Pages of other sites" in refused.value.json()["message"]
