"""The gate before the app: ids, bounds, the queue, metrics and the log, around routes that could be any."""

import asyncio
import json
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request, UploadFile
from starlette.testclient import TestClient

from common.web.door import Door
from common.web.routes import FORM, JSON, SERVE, Route, routes_of
from serve.errors import RequestError
from serve.gate.admission import CURRENT, Admission
from serve.gate.gate import Gate
from serve.gate.monitoring import Metrics
from serve.gate.pulse import Pulse
from serve.limits import Limits
from serve.routes import add_routes
from tests.serve.requests_of_clients import wait_until

MADE_UP = {"/wrong": JSON, "/upload": FORM}


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log():
    logger, lines = logging.getLogger("logger"), Lines()
    logger.addHandler(lines)
    yield lines.records
    logger.removeHandler(lines)


def make(**bounds: Any) -> SimpleNamespace:
    """An app with one route of each kind behind the gate."""
    limits = Limits(**bounds)
    admission = Admission(limits)
    metrics = Metrics(limits, lambda: admission.held, lambda: {"checkpoint": "best.pth", "encoder": "mit_b0"})
    app = SimpleNamespace(
        limits=limits,
        admission=admission,
        metrics=metrics,
        pulse=Pulse(9),
        drain=admission.close,
        missing=lambda: None,
        has_page=True,
        go_on=threading.Event(),
    )
    server = FastAPI()

    @server.post("/inference_image_id")
    async def by_id(request: Request) -> dict[str, Any]:
        return {"body": await request.json(), "id": CURRENT.get().id}

    @server.post("/inference_video_id")
    def slow(request: Request) -> None:
        assert app.go_on.wait(20)

    @server.post("/get_session_info")
    def fail() -> None:
        raise KeyError("a secret of the house")

    @server.post("/wrong")
    def wrong() -> None:
        raise RequestError("what to do instead")

    @server.post("/upload")
    def take(files: list[UploadFile]) -> int:
        return len(files)

    # Of the app's own routes only its gate is of interest here, and `/metrics`.
    ours = list(server.router.routes)
    add_routes(app, server)
    server.router.routes[:] = ours + [route for route in server.router.routes if route.path == "/metrics"]
    made_up = [Route((SERVE,), "POST", path, "tests", "", media=media) for path, media in MADE_UP.items()]
    app.gate = Gate(server, limits, admission, metrics, Door([*routes_of(SERVE), *made_up], limits), app.drain, dict)
    app.client = TestClient(app.gate, "http://127.0.0.1", raise_server_exceptions=False)
    return app


STATE = {"state": {"image_id": 5}}


def test_sane_request_id_is_taken_over_and_others_are_made(log):
    client = make().client
    answer = client.post("/inference_image_id", json=STATE, headers={"X-Request-Id": "trace-1.a:b"})
    assert (answer.headers["x-request-id"], answer.json()["id"]) == ("trace-1.a:b", "trace-1.a:b")
    for bad in ("a b", "x" * 65, 'a"}', ""):
        made = client.post("/inference_image_id", json=STATE, headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert made != bad and len(made) == 32
    assert client.post("/wrong", headers={"X-Request-Id": "t"}).json()["request_id"] == "t"


def test_every_request_is_one_line_that_is_json(log):
    client = make().client
    client.post("/inference_image_id?token=hidden", json=STATE, headers={"X-Request-Id": "one"})
    client.post("/wrong", headers={"X-Request-Id": "two"})
    client.get("/metrics")
    lines = [record for record in log if record.getMessage() == "request"]
    assert [(line.request_id, line.path, line.status) for line in lines] == [
        ("one", "/inference_image_id", 200),
        ("two", "/wrong", 400),
    ]
    formatted = json.loads(logging.getLogger("logger").handlers[0].format(lines[0]))
    assert formatted["request_id"] == "one" and formatted["seconds"] >= 0
    assert "hidden" not in json.dumps(formatted)


def test_line_of_a_request_is_short_whatever_was_asked(log):
    make().client.request("A" * 5000, "/" + "b" * 5000)
    [line] = [record for record in log if record.getMessage() == "request"]
    assert (line.status, len(line.path), len(line.method)) == (404, 200, 20)


def test_unexpected_error_is_explained_in_the_log_and_not_to_the_client(log):
    answer = make().client.post("/get_session_info", headers={"X-Request-Id": "lost"})
    assert answer.status_code == 500
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.json()["request_id"] == "lost"
    [line] = [record for record in log if record.getMessage() == "unexpected error"]
    assert line.request_id == "lost" and "secret" in str(line.exc_info[1])


def test_address_of_the_instance_is_dropped_unless_allowed():
    body = STATE | {"server_address": "http://10.0.0.1", "api_token": "t"}
    # By this the SDK knows that the state is none of its page.
    program = {"context": {"outside_request": True}}
    assert make().client.post("/inference_image_id", json=body).json()["body"] == STATE | {"api_token": "t"} | program
    assert make(any_instance=True).client.post("/inference_image_id", json=body).json()["body"] == body | program


def test_body_is_bounded_whether_its_length_is_told_or_not():
    app = make(max_request_mb=1, max_json_mb=0.5)
    files = [("files", ("a", bytes(2**20 + 1)))]
    assert app.client.post("/upload", files=files).status_code == 413
    form = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(2**21) + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    untold = app.client.post(
        "/upload", content=(form[n : n + 2**16] for n in range(0, len(form), 2**16)), headers=headers
    )
    assert untold.status_code == 413
    assert "at most 1 megabytes" in untold.json()["message"]
    assert app.client.post("/upload", files=[("files", ("a", b"small"))]).json() == 1
    assert app.client.post("/inference_image_id", json=STATE | {"a": "x" * 2**20}).status_code == 413


def test_full_queue_answers_429_with_the_time_to_wait():
    app = make(max_queue=2, retry_after_s=7)
    state = {"state": {"videoId": 1}}
    threads = [
        threading.Thread(target=app.client.post, args=("/inference_video_id",), kwargs={"json": state})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: app.admission.held == 2)
    answer = app.client.post("/inference_image_id", json=STATE)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert "The queue is full" in answer.json()["message"]
    assert app.client.post("/wrong").status_code == 400, "what computes nothing is answered still"
    assert "hrda_queue_length 2.0" in app.client.get("/metrics").text
    app.go_on.set()
    for thread in threads:
        thread.join(20)
    wait_until(lambda: app.admission.held == 0)
    assert app.client.post("/inference_image_id", json=STATE).status_code == 200


def test_service_that_shuts_down_lets_nobody_in():
    app = make(retry_after_s=3)
    with app.client as client:
        assert client.post("/inference_image_id", json=STATE).status_code == 200
    answer = app.client.post("/inference_image_id", json=STATE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


def test_metrics_count_by_route_and_status_and_name_the_model():
    app = make()
    app.client.post("/inference_image_id", json=STATE)
    app.client.post("/inference_image_id", json={})
    app.client.post("/get_session_info")
    app.client.post("/made/up/by-somebody")
    text = app.client.get("/metrics").text
    for line in (
        'hrda_requests_total{route="inference_image_id",status="200"} 1.0',
        'hrda_requests_total{route="inference_image_id",status="400"} 1.0',
        'hrda_requests_total{route="other",status="404"} 1.0',
        'hrda_request_seconds_count{route="inference_image_id"} 2.0',
        'hrda_errors_total{kind="KeyError"} 1.0',
        'hrda_model_info{checkpoint="best.pth",encoder="mit_b0"} 1.0',
        "hrda_model_deployed 1.0",
        "hrda_queue_length 0.0",
        "hrda_queue_limit 32.0",
    ):
        assert line in text
    assert "process_resident_memory_bytes" in text
    assert "by-somebody" not in text, "a caller could fill the memory with names"
    assert 'hrda_requests_total{route="inference_image_id"' not in make().client.get("/metrics").text


@pytest.mark.parametrize("bounds", [{"upload_timeout_s": 0.2}, {"idle_timeout_s": 0.2}], ids=["too long", "a pause"])
def test_body_that_does_not_arrive_takes_no_place(bounds):
    limits = Limits(**bounds)
    admission = Admission(limits)
    metrics = Metrics(limits, lambda: 0, dict)
    sent: list[dict[str, Any]] = []

    async def never() -> dict[str, Any]:
        await asyncio.sleep(20)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("it has no body yet")

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/inference_image_id", "headers": headers, "query_string": b""}
    gate = Gate(app, limits, admission, metrics, Door(routes_of(SERVE), limits), admission.close, dict)

    async def ask() -> None:
        task = asyncio.create_task(gate(scope, never, send))
        await asyncio.sleep(0.05)
        assert admission.held == 0, "others must not wait for it"
        await task

    started = time.perf_counter()
    asyncio.run(asyncio.wait_for(ask(), 15))
    assert sent[0]["status"] == 408 and admission.held == 0
    assert time.perf_counter() - started < 5


def test_bytes_of_all_requests_together_are_bounded():
    app = make(max_queue_mb=0.5, max_request_mb=1)
    assert app.client.post("/inference_image_id", json=STATE | {"a": "x" * 600_000}).status_code == 429
    assert app.admission.held == 0
    assert app.client.post("/inference_image_id", json=STATE).status_code == 200
