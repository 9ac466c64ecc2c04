"""Hostile values in every field of every address of the table: good requests with one value that nobody thought of.

`test_fuzz` sends what is wrong throughout, of which most ends at the first check. Here all else is right, and there is
an instance behind the service, so that the value gets as far as it can.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests

from common.web.routes import FORM, JSON, PAGE, SERVE, Access, Route, routes_of
from serve.gate.bodies import NEEDED, RequestState
from serve.gate.deploy_request import DeployRequest
from serve.model.settings import SDK_SETTINGS, ServeSettings
from tests.serve.conftest import serving_beside
from tests.serve.requests_of_clients import encoded

SEED, REQUESTS = 3, 350
PHOTO = encoded(np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def rectangle(*numbers: float) -> dict[str, Any]:
    left, top, right, bottom = numbers
    return {"points": {"exterior": [[left, top], [right, bottom]], "interior": []}}


HOSTILE = [
    None, True, 0, -1, 2**53, 10**300, 0.5, -0.0, float("inf"), float("nan"), "", "crack", "x" * 100_000, "a\0b",
    "\ud800", "&a [*a, *a]", "!!python/object/apply:os.system [id]", "1e999", ".nan", "../../../etc/passwd", "[" * 500,
    "2020-01-01", "%s{0}{a.b}\r\n", "http://[::1", [], [0], [None], [1] * 3000, ["crack", "__bg__"], [1, "a", None, {}],
    {}, {"": None}, {"crack": {"crack": [1e308]}}, {"checkpoint": "x" * 3000}, json.loads("[" * 60 + "]" * 60),
    rectangle(0, 0, 5, 5), rectangle(-1e300, 0, 1e300, 5), rectangle(9, 9, 2, 2), [rectangle(0, 0, 5, 5)],
]  # fmt: skip
SETTINGS = sorted({field.name for field in fields(ServeSettings)} | SDK_SETTINGS | {"unknown"})
STATE = sorted({*RequestState.model_fields, "settings", "rectangle", "tracker", "model_name", "track_id"})
BODY = ("state", "context", "api_token", "server_address", "settings", "unknown")
CONTEXT = ("outside_request", "apiToken", "request_uid", "userId", "teamId")


@pytest.fixture(scope="module")
def app(instance, api, checkpoint) -> Iterator[SimpleNamespace]:
    project = api.project.create(instance.workspace_id, "fuzzed")
    dataset = api.dataset.create(project.id, "photos")
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = api.image.upload_np(dataset.id, "photo.png", photo)
    with serving_beside(instance, checkpoint, HRDA_MAX_MEGAPIXELS=1) as running:
        running.token = {"api_token": instance.token}
        running.good = {
            "image_id": image.id, "batch_ids": [image.id], "image_ids": [image.id], "projectId": project.id,
            "videoId": 1, "batch_size": 1, "num_iterations": 1, "image_url": "https://[::1]/photo.png",
            "inference_request_uuid": "nothing",
            "deploy_params": {"model_files": {"checkpoint": str(checkpoint)}, "device": "cpu"},
        }  # fmt: skip
        yield running


def requests_of(route: Route, good: dict[str, Any], value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The field and the body of each request to `route` that has `value` in one field."""
    name = route.name
    state = {known: good[known] for group in NEEDED.get(name, ()) for known in group if known in good}
    bodies = [(f"state.{field}", {"state": {**state, field: value}}) for field in STATE]
    if name.startswith(("inference_", "predict_", "run_", "measure")):
        bodies += [(f"settings.{field}", {"state": {**state, "settings": {field: value}}}) for field in SETTINGS]
    if route.media == FORM:
        return [*bodies, ("form.state", {"state": value}), ("form.settings", {"settings": value})]
    if name == "deploy_from_api":
        deploy = good["deploy_params"]
        for field in DeployRequest.model_fields:
            bodies.append((f"deploy_params.{field}", {"state": {"deploy_params": {**deploy, field: value}}}))
        files = {"deploy_params": {**deploy, "model_files": {"checkpoint": value}}}
        bodies.append(("checkpoint", {"state": files}))
    bodies += [(f"body.{field}", {"state": state, field: value}) for field in BODY]
    return bodies + [(f"context.{field}", {"state": state, "context": {field: value}}) for field in CONTEXT]


def test_one_hostile_value_in_a_good_request_is_answered_in_a_sentence(app):
    asked = [route for route in routes_of(SERVE) if route.method == "POST" and route.needed_by != PAGE]
    asked = [route for route in asked if route.access is not Access.CLOSED and route.name != "shutdown"]
    chance, faults = random.Random(SEED), []
    with requests.Session() as session:
        for number in range(REQUESTS):
            # By turns, so that no address is left out.
            route, value = asked[number % len(asked)], chance.choice(HOSTILE)
            field, body = chance.choice(requests_of(route, app.good, value))
            if route.media == JSON:
                content = json.dumps(app.token | body).encode()
                sent = {"data": content, "headers": {"Content-Type": JSON}}
            else:
                sent = {"data": {key: json.dumps(part) for key, part in body.items()}}
                sent["files"] = [("files", ("photo.png", PHOTO))]
            answer = session.post(app.url + route.path, timeout=120, **sent)
            told = answer.status_code < 400 or (answer.json()["message"] and len(answer.json()["message"]) < 700)
            if answer.status_code >= 500 or "Traceback" in answer.text or not told:
                faults.append((route.path, field, str(value)[:80], answer.status_code, answer.text[:300]))
    assert faults == []
    assert session.get(f"{app.url}/readyz").status_code == 200
