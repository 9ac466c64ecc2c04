"""The service left running: other models, too many requests, clients that vanish, and its end."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from PIL import Image

from tests.serve.conftest import serving
from tests.serve.requests_of_clients import (
    busy,
    encoded,
    expected,
    finished,
    post,
    refused,
    to_mask,
    upload,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def app(checkpoint: Path, no_instance) -> Iterator[SimpleNamespace]:
    with serving(checkpoint, HRDA_MAX_QUEUE=6, HRDA_REQUEST_TIMEOUT_S=30) as running:
        yield running


def test_requests_in_flight_finish_on_the_model_that_they_began_with(app, checkpoint, make_checkpoint, image):
    other = make_checkpoint("other.pth", classes=("__bg__", "moss", "rust"), seed=1)
    old = expected(app, image)

    def deploy(path: Path) -> None:
        params = {"model_source": "Custom models", "model_files": {"checkpoint": str(path)}, "device": "cpu"}
        assert post(app, "deploy_from_api", {"deploy_params": params}).status_code == 200

    try:
        with busy(app) as go_on, ThreadPoolExecutor(1) as client:
            waiting = client.submit(upload, app, encoded(image))
            files = [("files", ("a.png", encoded(image))), ("files", ("b.png", encoded(image)))]
            form = {"state": json.dumps({"batch_size": 1})}
            job = requests.post(f"{app.url}/inference_batch_async", files=files, data=form, timeout=60)
            state = {"inference_request_uuid": job.json()["inference_request_uuid"]}
            wait_until(lambda: post(app, "get_inference_progress", state).json()["is_inferring"])
            wait_until(lambda: app.server.admission.held == 2)
            time.sleep(0.3)
            deploy(other)
            fresh = upload(app, encoded(image)).json()["annotation"]
            assert {label["classTitle"] for label in fresh["objects"]} <= {"__bg__", "moss", "rust"}
            go_on.set()
            np.testing.assert_array_equal(to_mask(waiting.result().json()["annotation"]), old)
            results = finished(app, job)["pending_results"]
        assert len(results) == 2
        for result in results:
            np.testing.assert_array_equal(to_mask(result["annotation"]), old)
    finally:
        deploy(checkpoint)


def test_overload_is_answered_with_429_and_the_rest_in_full(app, image):
    with busy(app) as go_on, ThreadPoolExecutor(9) as clients:
        answers = [clients.submit(upload, app, encoded(image)) for _ in range(9)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 3)
        assert requests.get(f"{app.url}/is_ready", timeout=5).status_code == 200
        assert post(app, "get_session_info").status_code == 200
        assert "hrda_queue_length 6.0" in requests.get(f"{app.url}/metrics", timeout=5).text
        go_on.set()
        codes = sorted(answer.result().status_code for answer in answers)
    assert codes == [200] * 6 + [429] * 3
    [early] = {answer.result().headers["retry-after"] for answer in answers if answer.result().status_code == 429}
    assert early == "5"
    assert upload(app, encoded(image)).status_code == 200


def test_upload_of_many_images_stops_when_told(app, image):
    files = [("files", (f"{n}.png", encoded(image))) for n in range(5)]
    form = {"state": json.dumps({"batch_size": 1})}
    with busy(app) as go_on:
        job = requests.post(f"{app.url}/inference_batch_async", files=files, data=form, timeout=60)
        state = {"inference_request_uuid": job.json()["inference_request_uuid"]}
        wait_until(lambda: post(app, "get_inference_progress", state).json()["is_inferring"])
        assert post(app, "stop_inference", state).status_code == 200
        go_on.set()
        report = finished(app, job)
    assert report["pending_results"] == [] and report["stage"] == "Cancelled", "what waited its turn is not computed"


def test_answer_that_takes_too_long_is_504_and_the_place_is_free_again(app, image, monkeypatch):
    limits = dataclasses.replace(app.server.limits, request_timeout_s=0.2)
    monkeypatch.setattr(app.server.inference_requests_manager, "_limits", limits)
    with busy(app) as go_on:
        refused(upload(app, encoded(image)), "longer than 0.2 seconds", status=504)
        assert app.server.admission.held == 1, "its work goes on"
        go_on.set()
        wait_until(lambda: app.server.admission.held == 0)


def test_model_that_is_stuck_is_noticed_by_those_who_start_services_anew(app, image, monkeypatch):
    monkeypatch.setattr(app.server.pulse, "_limit_s", 0.2)

    def alive() -> list[int]:
        return [requests.get(f"{app.url}/{name}", timeout=5).status_code for name in ("healthz", "livez", "is_alive")]

    assert alive() == [200] * 3
    with busy(app) as go_on, ThreadPoolExecutor(1) as client:
        waiting = client.submit(upload, app, encoded(image))
        wait_until(lambda: alive() == [503] * 3)
        refused(requests.get(f"{app.url}/livez", timeout=5), "Start the service anew", status=503)
        assert requests.get(f"{app.url}/is_ready", timeout=5).status_code == 200
        go_on.set()
        assert waiting.result().status_code == 200
    assert alive() == [200] * 3


CLIENT = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
body = open(sys.argv[2], "rb").read()
form = b'--b\\r\\nContent-Disposition: form-data; name="files"; filename="a"\\r\\n\\r\\n' + body + b"\\r\\n--b--\\r\\n"
head = "POST /inference_image HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: multipart/form-data; boundary=b\\r\\n"
head += f"Content-Length: {len(form)}\\r\\n\\r\\n"
s.sendall(head.encode() + form[: int(len(form) * float(sys.argv[3]))])
print("sent", flush=True)
s.recv(1)
"""


@pytest.mark.parametrize("sent", ["0.5", "1"], ids=["while it sends", "while it waits"])
def test_client_that_is_killed_leaves_nothing_behind(app, image, photo, sent):
    port = app.url.rsplit(":", 1)[1]
    with busy(app) as go_on:
        command = [sys.executable, "-c", CLIENT, port, str(photo), sent]
        client = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert client.stdout.readline() == b"sent\n"
        if sent == "1":
            wait_until(lambda: app.server.admission.held == 1)
        client.kill()
        client.wait(10)
        go_on.set()
        wait_until(lambda: app.server.admission.held == 0)
    client.stdout.close()
    assert upload(app, encoded(image)).status_code == 200


@pytest.fixture(scope="module")
def process(checkpoint: Path, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """`python -m serve deploy` in a process of its own."""
    home = tmp_path_factory.mktemp("home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    variables = kept | {"HOME": str(home), "OMP_NUM_THREADS": "1", "SMART_CACHE_CONTAINER_DIR": str(home / "cache")}
    command = [sys.executable, "-m", "serve", "deploy", "--model", str(checkpoint), "--device", "cpu"]
    log = (home / "log").open("w+")
    child = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, env=variables, stderr=log, stdout=log
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert child.poll() is None, (home / "log").read_text()
        try:
            return requests.get(f"{url}/is_ready", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    wait_until(ready, 120)
    yield SimpleNamespace(child=child, url=url, log=home / "log")
    if child.poll() is None:
        child.kill()
    child.wait(10)
    log.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_in_the_user_page(process, image, tmp_path):
    page = (ROOT / "serve" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("curl -X POST")]
    assert len(commands) == 12
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    answers = []
    uuid = "UUID"
    for command in commands:
        # The page's example lies on the internet.
        values = {"$URL": process.url, "$IMAGE_URL": "https://127.0.0.1/photo.jpg", "$IMAGE_IDS": "1,2", "$UUID": uuid}
        words = [
            reduce(lambda text, name: text.replace(name, values[name]), sorted(values), word)
            for word in shlex.split(command.replace(" -o job.json", ""))
        ]
        done = subprocess.run([*words, "--silent", "--noproxy", "*"], cwd=tmp_path, capture_output=True, check=True)
        if " -o " in command.replace("-o job.json", ""):
            # A file, which is read below.
            continue
        answers.append(json.loads(done.stdout))
        uuid = answers[-1].get("inference_request_uuid", uuid) if isinstance(answers[-1], dict) else uuid
    assert np.load(tmp_path / "probabilities.npz")["probabilities"].shape[1:] == (90, 140)
    assert Image.open(tmp_path / "mask.png").size == (140, 90)
    assert json.loads((tmp_path / "outlines.geojson").read_text())["type"] == "FeatureCollection"
    with_token, whole, filtered, measured, url, ids, started, popped, stopped = answers
    assert with_token["annotation"] == whole["annotation"]
    assert [row["class"] for row in measured["classes"]] == ["crack", "stain"]
    assert whole["annotation"]["size"] == {"height": 90, "width": 140}
    assert filtered["annotation"]["size"] == whole["annotation"]["size"]
    too_wide = {"settings": {"stride": 256, "classes": ["crack"]}}
    # The model of this test has windows of 64.
    refused(upload(process, encoded(image), too_wide), "stride must be at most")
    assert "public address" in url["message"]
    assert "SERVER_ADDRESS" in ids["message"]
    assert started["inference_request_uuid"] == uuid
    assert popped["uuid"] == uuid and stopped["success"] is True


def test_end_of_the_process_waits_for_the_answer_that_is_computed(process):
    big = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    answers: list[requests.Response] = []

    def queue() -> str:
        return requests.get(f"{process.url}/metrics", timeout=5).text

    wait_until(lambda: "hrda_queue_length 0.0" in queue())
    thread = threading.Thread(target=lambda: answers.append(upload(process, encoded(big))))
    thread.start()
    wait_until(lambda: "hrda_queue_length 1.0" in queue())
    process.child.send_signal(signal.SIGTERM)
    thread.join(60)
    assert answers[0].status_code == 200
    process.child.wait(30)
    assert "Traceback" not in process.log.read_text()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{process.url}/is_ready", timeout=5)


def test_probabilities_take_a_place_in_the_queue_and_are_bounded_in_time(app, image, monkeypatch):
    limits = dataclasses.replace(app.server.limits, request_timeout_s=0.2)
    monkeypatch.setattr(app.server.inference_requests_manager, "_limits", limits)
    go_on, predict = threading.Event(), app.server.deployment.predict
    monkeypatch.setattr(app.server.deployment, "predict", lambda *a, **k: go_on.wait(30) and predict(*a, **k))
    refused(upload(app, encoded(image), route="predict_probabilities"), "longer than 0.2 seconds", status=504)
    assert app.server.admission.held == 1, "its work goes on"
    go_on.set()
    wait_until(lambda: app.server.admission.held == 0)
