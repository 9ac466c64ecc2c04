"""What tests send to the running app, and how they read its answers."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import requests
from PIL import Image

from serve.model.settings import ServeSettings

CLASSES = ["__bg__", "crack", "stain"]


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def post(app: SimpleNamespace, route: str, state: dict | None = None, **body: Any) -> requests.Response:
    return requests.post(f"{app.url}/{route}", json={"state": state or {}, **body}, timeout=60)


def upload(
    app: SimpleNamespace,
    content: bytes,
    state: dict | str | None = None,
    route: str = "inference_image",
    **options: Any,
) -> requests.Response:
    text = state if isinstance(state, str) else json.dumps(state or {})
    files = [("files", ("photo.png", content))]
    return requests.post(f"{app.url}/{route}", files=files, data={"state": text}, timeout=60, **options)


def deploy(app: SimpleNamespace, checkpoint: Path) -> requests.Response:
    """Deploy a checkpoint on request."""
    return deploy_files(app, {"checkpoint": str(checkpoint)})


def deploy_files(app: SimpleNamespace, files: dict[str, str], **params: Any) -> requests.Response:
    """Deploy on request what `files` name."""
    params = {"model_source": "Custom models", "model_files": files, "device": "cpu", **params}
    return post(app, "deploy_from_api", {"deploy_params": params})


def finished(app: SimpleNamespace, answer: requests.Response, timeout_s: float = 60, **body: Any) -> dict[str, Any]:
    """The end of the job that `answer` names: its last report with all of its results."""
    assert answer.status_code == 200, answer.text
    state = {"inference_request_uuid": answer.json()["inference_request_uuid"]}
    results, deadline = [], time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        report = post(app, "pop_inference_results", state, **body).json()
        results += report["pending_results"]
        if report["finished"]:
            return report | {"pending_results": results}
        time.sleep(0.02)
    raise AssertionError(f"the job did not end: {report}")


def to_mask(annotation: dict, classes: list[str] = CLASSES) -> np.ndarray:
    """Class indices of an annotation in Supervisely's JSON; 255 where no label lies."""
    from supervisely.geometry.bitmap import Bitmap

    mask = np.full((annotation["size"]["height"], annotation["size"]["width"]), 255, np.uint8)
    for label in annotation["objects"]:
        bitmap = Bitmap.from_json(label)
        area = np.zeros(mask.shape, bool)
        bitmap.draw(area, True)
        assert (mask[area] == 255).all() or label["classTitle"] == "__bg__", "labels overlap"
        mask[area] = classes.index(label["classTitle"])
    return mask


def expected(app: SimpleNamespace, image: np.ndarray, **settings: Any) -> np.ndarray:
    return app.server.deployment.predict([image], ServeSettings(**settings))[0].labels


@contextlib.contextmanager
def busy(app: SimpleNamespace) -> Iterator[threading.Event]:
    """Predictions of the deployed model wait within this block until the event that it yields is set."""
    deployment, go_on = app.server.deployment, threading.Event()
    predict = deployment.predict

    def wait_and_predict(*args: Any) -> Any:
        assert go_on.wait(30)
        return predict(*args)

    deployment.predict = wait_and_predict
    try:
        yield go_on
    finally:
        go_on.set()
        del deployment.predict


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def refused(response: requests.Response, *words: str, status: int = 400) -> None:
    assert response.status_code == status, response.text
    assert "Traceback" not in response.text
    assert response.json()["success"] is False
    for word in words:
        assert word in response.json()["message"]
