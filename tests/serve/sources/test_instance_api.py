"""An instance that answers byte by byte, refuses for a while, or leads elsewhere."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import requests
from supervisely import Api

from serve.errors import InstanceFailed, Stopped
from serve.jobs import PRESENT
from serve.limits import Limits
from serve.sources.instance_api import WatchedApi
from tests.serve.conftest import serving
from tests.serve.requests_of_clients import post, refused, upload, wait_until

TOKEN = "t" * 32
LIMITS = Limits(instance_timeout_s=0.5)
IMAGE = {
    "id": 5, "name": "a.png", "datasetId": 7, "width": 64, "height": 64, "ext": "png", "mime": "image/png", "hash": "a",
    "link": None, "pathOriginal": "/a.png", "fullStorageUrl": "http://127.0.0.1/a.png", "size": "9", "labelsCount": 0,
    "meta": {}, "createdAt": "", "updatedAt": "", "createdBy": 1, "tags": [],
}  # fmt: skip


class Instance(BaseHTTPRequestHandler):
    """Answers by the method's name."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = self.path.rpartition("/")[2]
        self.server.asked.append((method, self.headers["x-api-key"], body))
        count = sum(each[0] == method for each in self.server.asked)
        if method in ("head.drips", "images.download"):
            self._drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a")
        elif method == "body.drips":
            self._drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"[")
        elif method == "body.of.unknown.length.drips":
            self._drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"[")
        elif method == "says.nothing":
            self.server.let_go.wait(20)
        elif method == "busy.at.first" and count < 3:
            self._answer(503, {"details": {"message": "busy"}})
        elif method == "refused":
            self._answer(400, {"details": {"message": "There is no such thing."}})
        elif method == "moved":
            self._answer(301, {}, Location=f"{self.server.url}/public/api/v3/at.home")
        elif method == "elsewhere":
            self._answer(301, {}, Location="http://other.example/public/api/v3/at.home")
        elif method == "images.info":
            self._answer(200, IMAGE)
        elif method == "images.list":
            self._answer(200, {"entities": [IMAGE], "total": 1, "perPage": 100, "pagesCount": 1})
        elif method == "datasets.info":
            self._answer(200, {"id": 7, "projectId": 3, "name": "ds"})
        else:
            self._answer(200, {"method": method, "asked": body})

    def _drip(self, start: bytes, drop: bytes) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(start)
            while not self.server.let_go.wait(0.05):
                self.wfile.write(drop)

    def _answer(self, status: int, content: dict, **headers: str) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def instance() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Instance)
    server.asked, server.let_go, server.url = [], threading.Event(), f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
        yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(instance: ThreadingHTTPServer) -> WatchedApi:
    made = WatchedApi(Api(instance.url, TOKEN, retry_count=4), LIMITS)
    made.retry_sleep_sec = 0.01
    return made


DRIPPING = ["head.drips", "body.drips", "body.of.unknown.length.drips", "says.nothing"]


@pytest.mark.parametrize("method", DRIPPING)
def test_answer_that_drips_has_an_end(api, instance, method):
    before = len(instance.asked)
    for ask in (lambda: api.post(method, {"id": 1}), lambda: list(api.pieces(method, {"id": 1}))):
        with pytest.raises(InstanceFailed, match="did not answer within 0.5 seconds"):
            ask()
    assert len(instance.asked) == before + 2, "what drips once is not asked again"


@pytest.mark.parametrize("method", DRIPPING)
def test_nobody_waits_for_what_is_not_wanted_any_more(instance, method):
    api = WatchedApi(Api(instance.url, TOKEN), Limits(instance_timeout_s=120))
    stopped = threading.Event()
    token = PRESENT.set(SimpleNamespace(is_stopped=stopped.is_set))
    try:
        threading.Timer(0.3, stopped.set).start()
        with pytest.raises(Stopped):
            api.post(method, {"id": 1})
        with pytest.raises(Stopped):
            list(api.pieces(method, {"id": 1}))
    finally:
        PRESENT.reset(token)


def test_answers_are_those_of_the_sdk(api, instance):
    api.additional_fields["extra"] = 1
    assert api.post("anything", {"a": 1}).json() == {"method": "anything", "asked": {"a": 1, "extra": 1}}
    assert instance.asked[-1][1] == TOKEN
    assert json.loads(b"".join(api.pieces("anything", {"a": 1})))["asked"] == {"a": 1, "extra": 1}
    assert api.post("busy.at.first", {}).json()["method"] == "busy.at.first"
    with pytest.raises(requests.HTTPError) as refusal:
        api.post("refused", {})
    assert refusal.value.response.json()["details"]["message"] == "There is no such thing."
    assert [method for method, _, _ in instance.asked].count("refused") == 1


def test_instance_that_moved_is_followed_on_its_own_host_alone(api, instance):
    """An instance leads from http to https; its token goes nowhere else."""
    assert api.post("moved", {"a": 1}).json() == {"method": "at.home", "asked": {"a": 1}}
    with pytest.raises(InstanceFailed, match="leads elsewhere. Set SERVER_ADDRESS"):
        api.post("elsewhere", {"a": 1})


def test_image_that_drips_holds_no_worker_past_its_504(instance, checkpoint, no_instance):
    known = {"SERVER_ADDRESS": instance.url, "API_TOKEN": TOKEN, "HRDA_REQUEST_TIMEOUT_S": 1}
    with serving(checkpoint, **known) as app:
        for route, state in (("inference_image_id", {"image_id": 5}), ("inference_batch_ids", {"batch_ids": [5]})):
            refused(post(app, route, state, api_token=TOKEN), "longer than 1 seconds", status=504)
            wait_until(lambda: app.server.admission.held == 0)
        assert instance.asked[-1][0] == "images.download"
        assert upload(app, b"no image").status_code == 400, "the worker is free"
        told = post(app, "inference_batch_ids_async", {"batch_ids": [5]}, api_token=TOKEN)
        wait_until(lambda: instance.asked[-1][0] == "images.download")
        began = time.monotonic()
        post(app, "stop_inference", {"inference_request_uuid": told.json()["inference_request_uuid"]})
        wait_until(lambda: app.server.admission.held == 0)
        assert time.monotonic() - began < 60, "long before the instance's own time is over"
