"""The routes of the app: those of the table and no others; what ours rely on in the web framework."""

from types import SimpleNamespace

import requests
from fastapi import FastAPI
from starlette.testclient import TestClient

from common.web.routes import SERVE
from serve.errors import RequestError
from serve.gate.admission import Admission
from serve.gate.monitoring import Metrics
from serve.gate.pulse import Pulse
from serve.limits import Limits
from serve.routes import add_routes
from tests.common.web.compared import open_routes, unreviewed


def bare_app() -> SimpleNamespace:
    """What the gate needs of the app."""
    limits = Limits()
    metrics = Metrics(limits, lambda: 0, dict)
    pulse = Pulse(limits.stuck_s)
    return SimpleNamespace(
        limits=limits,
        admission=Admission(limits),
        metrics=metrics,
        pulse=pulse,
        drain=lambda: None,
        missing=lambda: None,
        has_page=True,
    )


def test_errors_are_answered_even_if_a_request_came_before_the_handlers():
    """In production the SDK asks its own app for the page while it is being set up."""
    server = FastAPI()

    @server.get("/fail")
    def fail() -> None:
        raise RequestError("what to do instead")

    client = TestClient(server)
    assert client.get("/nothing").status_code == 404
    add_routes(bare_app(), server)
    answer = client.get("/fail")
    assert answer.status_code == 400
    assert answer.json()["message"] == answer.json()["detail"]["message"] == "what to do instead"


def test_routes_are_replaced_under_a_prefix_of_the_instance_too():
    server = FastAPI()
    server.post("/net/token/inference_batch")(lambda: "the SDK's")
    server.post("/net/token/inference_batch_ids")(lambda: "kept")
    add_routes(bare_app(), server)
    paths = [route.path for route in server.routes if hasattr(route, "path")]
    assert "/net/token/inference_batch" not in paths
    assert "/net/token/inference_batch_ids" in paths
    assert paths.count("/inference_batch") == 1


def test_every_route_of_the_service_without_a_page_was_reviewed(running):
    server = running.server._app.get_server()
    assert unreviewed(SERVE, open_routes(server.routes)) == set()
    server.post("/opened_by_the_next_release")(lambda: 1)
    assert unreviewed(SERVE, open_routes(server.routes)) == {("POST", "/opened_by_the_next_release")}
    assert requests.post(f"{running.url}/opened_by_the_next_release", timeout=10).status_code == 404


def test_health_is_answered_to_head_too(running):
    for name in ("healthz", "livez", "is_alive", "readyz", "is_ready"):
        answer = requests.head(f"{running.url}/{name}", timeout=10)
        assert (answer.status_code, answer.content) == (200, b"")
        assert requests.get(f"{running.url}/{name}", timeout=10).status_code == 200
    assert requests.head(f"{running.url}/inference_image", timeout=10).status_code == 405
