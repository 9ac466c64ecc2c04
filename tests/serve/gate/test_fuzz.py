"""Requests that nobody thought of: whatever comes, the answer is a sentence, and the app goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serve.gate.bodies import NEEDED
from tests.serve.conftest import serving
from tests.serve.requests_of_clients import encoded, upload, wait_until

PHOTO = encoded(np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8))
FUZZ = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["", "all"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
settings_names = st.sampled_from(
    ["window", "stride", "batch_size", "input_scale", "classes", "rectangle", "rectangles", "conf", "inference_mode",
     "thresholds", "long_side", "precision", "min_component", "confidence", "background", "preset", "blending", "flip"]
)  # fmt: skip
state_names = st.sampled_from(
    ["batch_size", "image_id", "batch_ids", "projectId", "videoId", "image_url", "inference_request_uuid", "tracker",
     "deploy_params", "model_name", "upload_mode", "output_project_id", "dataset_ids", "startFrameIndex", "duration",
     "num_iterations", "rectangle", "image_ids", "direction", "framesCount", "end_frame", "step"]
)  # fmt: skip
wild_settings = values | st.dictionaries(settings_names | st.text(max_size=8), values, max_size=4)
states = st.dictionaries(state_names, values, max_size=4).flatmap(
    lambda state: wild_settings.map(lambda chosen: state | {"settings": chosen})
)
routes = st.sampled_from(
    [*sorted(NEEDED), "get_session_info", "is_deployed", "get_status", "get_deploy_info", "list_pretrained_models"]
)


@pytest.fixture(scope="module")
def app(checkpoint: Path, no_instance) -> Iterator[SimpleNamespace]:
    # A prediction with a window that somebody made up may take its time, but not for ever.
    with serving(checkpoint, HRDA_MAX_MEGAPIXELS=1, HRDA_REQUEST_TIMEOUT_S=20) as running:
        yield running


def assert_sane(answer: requests.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    if answer.status_code >= 400:
        assert answer.json()["message"]
    assert answer.headers["x-request-id"]


@FUZZ
@given(route=routes, state=states)
def test_any_state_is_answered(app, route: str, state: dict[str, Any]):
    body = json.dumps({"state": state, "context": {}}).encode()
    headers = {"Content-Type": "application/json"}
    assert_sane(requests.post(f"{app.url}/{route}", data=body, headers=headers, timeout=60))


@FUZZ
@given(route=routes, body=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_answered(app, route: str, body: bytes):
    headers = {"Content-Type": "application/json"}
    assert_sane(requests.post(f"{app.url}/{route}", data=body, headers=headers, timeout=60))


@settings(FUZZ, max_examples=80)
@given(state=states)
def test_any_form_is_answered(app, state: dict[str, Any]):
    assert_sane(upload(app, PHOTO, state))


@settings(FUZZ, max_examples=80)
@given(start=st.integers(0, len(PHOTO) - 1), junk=st.binary(max_size=40), keep=st.booleans())
def test_any_bytes_are_answered(app, start: int, junk: bytes, keep: bool):
    assert_sane(upload(app, PHOTO[:start] + junk + (PHOTO[start + len(junk) :] if keep else b"")))


def test_app_goes_on_after_all_of_it(app):
    assert upload(app, PHOTO).status_code == 200
    wait_until(lambda: app.server.admission.held == 0)
