"""No request computes more than it may, and none longer than somebody waits for it."""

import dataclasses
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests

from common.hrda.checks import SettingsError
from serve.gate import work
from serve.limits import Limits
from tests.serve.requests_of_clients import encoded, finished, post, refused, upload, wait_until

ONE = ("inference_image", "inference_batch", "inference_batch_async", "measure", "predict_probabilities")


@pytest.fixture
def app(running: SimpleNamespace) -> SimpleNamespace:
    return running


def limited(app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, **bounds: float) -> None:
    limits = dataclasses.replace(app.server.limits, **bounds)
    monkeypatch.setattr(app.server, "limits", limits)
    monkeypatch.setattr(app.server.inference_requests_manager, "_limits", limits)


@pytest.fixture
def computed(app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When batches of windows were computed, each of which takes a while."""
    network, times = app.server.deployment.networks["float32", False], []

    def slowly(compute: Callable[..., Any]) -> Callable[..., Any]:
        def slow(images: Any) -> Any:
            times.append(time.monotonic())
            time.sleep(0.03)
            return compute(images)

        return slow

    for name in ("context_logits", "detail_logits"):
        monkeypatch.setattr(network, name, slowly(getattr(network, name)))
    return times


@pytest.mark.parametrize("route", ONE)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 8}, ["At most 100 windows", "larger stride", "Received: 1 images that take"]),
        ({"scales": [4.0] * 8}, ["at most 0.05 megapixels after it is scaled", "140×90", "0.2 megapixels"]),
        ({"scales": [0.5, 4.0], "input_scale": "original"}, ["after it is scaled"]),
        ({"window": [512, 512], "batch_size": 4}, ["at most 1 megapixels", "Received: 4 of 512×512"]),
    ],
)
def test_what_is_too_much_is_refused_with_numbers_before_it_begins(
    app, image, computed, monkeypatch, route, settings, words
):
    limited(app, monkeypatch, max_windows=100, max_megapixels=0.05, max_window_megapixels=1)
    answer = upload(app, encoded(image), {"settings": settings}, route=route)
    refused(answer, *words, status=413)
    assert computed == []


def test_windows_of_all_images_count_where_a_client_waits_for_them(app, image, computed, monkeypatch):
    taken = app.server.deployment.work(image.shape[:2], work.ServeSettings()).windows
    limited(app, monkeypatch, max_windows=3 * taken)
    files = [("files", (f"{n}.png", encoded(image))) for n in range(4)]
    answer = requests.post(f"{app.url}/inference_batch", files=files, timeout=60)
    refused(answer, f"Received: 4 images that take {4 * taken} windows", status=413)
    assert computed == []
    job = finished(app, requests.post(f"{app.url}/inference_batch_async", files=files, timeout=60))
    assert len(job["pending_results"]) == 4, "nobody waits for all of a job at once"
    assert requests.post(f"{app.url}/inference_batch", files=files[:3], timeout=60).status_code == 200
    # A region takes the windows of the region alone.
    region = {"points": {"exterior": [[0, 0], [63, 63]], "interior": []}}
    form = {"state": json.dumps({"rectangle": region})}
    assert requests.post(f"{app.url}/inference_batch", files=files, data=form, timeout=60).status_code == 200


def test_probabilities_that_fill_the_memory_are_refused(app, image, monkeypatch):
    monkeypatch.setattr(work, "MOST_PROBABILITIES", 90 * 140 * 3 - 1)
    answer = upload(app, encoded(image), route="predict_probabilities")
    refused(answer, "probabilities", "140×90 pixels of 3 classes", status=413)


@pytest.mark.parametrize("route", ["inference_image", "inference_batch", "measure", "predict_probabilities"])
@pytest.mark.parametrize("settings", [{"stride": 8}, {"scales": [0.5, 2.0], "stride": 16}])
def test_work_ends_with_the_batch_of_windows_in_which_its_time_is_over(
    app, image, computed, monkeypatch, route, settings
):
    limited(app, monkeypatch, request_timeout_s=0.3)
    refused(upload(app, encoded(image), {"settings": settings}, route=route), "longer than 0.3 seconds", status=504)
    ended = time.monotonic()
    wait_until(lambda: app.server.admission.held == 0)
    assert len(computed) > 1 and sum(each > ended for each in computed) <= 1


def test_images_after_the_end_of_the_time_are_not_decoded(app, image, computed, monkeypatch):
    limited(app, monkeypatch, request_timeout_s=0.3)
    files = [("files", (f"{n}.png", encoded(image))) for n in range(60)]
    refused(requests.post(f"{app.url}/inference_batch", files=files, timeout=60), "longer than 0.3", status=504)
    wait_until(lambda: app.server.admission.held == 0)
    count = len(computed)
    limited(app, monkeypatch, request_timeout_s=60)
    assert upload(app, encoded(np.zeros((64, 64, 3), np.uint8))).status_code == 200
    assert len(computed) > count, "the next request is computed"


def test_job_that_is_stopped_ends_within_its_image(app, image, computed):
    answer = upload(app, encoded(image), {"settings": {"stride": 8}}, route="inference_batch_async")
    wait_until(lambda: len(computed) > 2)
    state = {"inference_request_uuid": answer.json()["inference_request_uuid"]}
    assert post(app, "stop_inference", state).json()["success"] is True
    stopped = time.monotonic()
    report = finished(app, answer)
    assert (report["stage"], report["exception"], report["pending_results"]) == ("Cancelled", None, [])
    assert sum(each > stopped for each in computed) <= 1


def test_bounds_are_set_by_the_environment():
    limits = Limits.from_environment({"HRDA_MAX_WINDOWS": "5000", "HRDA_MAX_WINDOW_MEGAPIXELS": "4.5"})
    assert (limits.max_windows, limits.max_window_megapixels) == (5000, 4.5)
    with pytest.raises(SettingsError, match="HRDA_MAX_WINDOWS must be a positive whole number"):
        Limits.from_environment({"HRDA_MAX_WINDOWS": "0"})


@pytest.mark.parametrize("route", ONE)
def test_compile_is_the_owners_to_allow(app, image, monkeypatch, route):
    """It holds up all others for a minute."""
    asks = {"settings": {"compile": True}}
    refused(upload(app, encoded(image), asks, route), "compile is switched off", "HRDA_ALLOW_COMPILE=true", status=403)
    assert upload(app, encoded(image), {"settings": {"compile": False}}, route).status_code == 200
    # Where it is allowed, it counts; what compiling needs is not asked here.
    limited(app, monkeypatch, allow_compile=True)
    asked: list[str] = []
    monkeypatch.setattr("serve.model.deployment.why_not_compiled", lambda kind: asked.append(kind) or "not here")
    answer = upload(app, encoded(image), asks, route)
    assert answer.status_code == 200
    if route.endswith("async"):
        finished(app, answer)
    assert asked == ["cpu"]


def test_compile_is_refused_to_jobs_before_they_begin(app):
    state = {"batch_ids": [1], "settings": {"compile": "true"}}
    refused(post(app, "inference_batch_ids_async", state), "compile is switched off", status=403)


def test_who_predicts_on_the_command_line_may_compile(monkeypatch):
    import serve.server
    from serve.__main__ import parse_arguments, run_server

    made: list[bool] = []

    class Server:
        def __init__(self, host: str, port: int, limits: Limits, devices: str) -> None:
            made.append(limits.allow_compile)

        def serve(self) -> None:
            """Nothing is predicted."""

    monkeypatch.setattr(serve.server, "HRDAServer", Server)
    monkeypatch.setattr("sys.argv", ["serve"])
    for name in ("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID"):
        monkeypatch.setenv(name, "1")
    run_server(parse_arguments(["predict", "--model", "model.pth", "--project_id", "5", "--device", "cpu"]))
    assert made == [True]
