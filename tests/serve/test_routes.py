"""What our routes rely on in the web framework."""

from types import SimpleNamespace

from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.errors import RequestError
from serve.gate.admission import Admission
from serve.gate.monitoring import Metrics
from serve.limits import Limits
from serve.routes import add_routes


def bare_app() -> SimpleNamespace:
    """What the gate needs of the app."""
    limits = Limits()
    metrics = Metrics(limits, lambda: 0, dict)
    return SimpleNamespace(limits=limits, admission=Admission(limits), metrics=metrics, drain=lambda: None)


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
