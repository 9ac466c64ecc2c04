"""One model on several devices: one queue, the same answers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from serve.errors import RequestError
from serve.model.deployment import Deployment
from serve.model.pool import Pool, deployed
from serve.model.settings import ServeSettings
from tests.serve.conftest import serving


def test_two_predictions_run_at_a_time_and_are_those_of_one_device(checkpoint: Path, image: np.ndarray):
    pool = deployed(checkpoint, "cpu,cpu")
    assert isinstance(pool, Pool) and pool.device == "cpu,cpu"
    # Passed only by two predictions that have begun and not ended, and by the third with the fourth.
    together = threading.Barrier(2, timeout=120)

    def predict(_: int) -> list:
        waits = iter([together.wait])
        return pool.predict([image], ServeSettings(), lambda: next(waits, lambda: None)())

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(predict, range(4)))
    [expected] = Deployment.from_file(checkpoint, "cpu").predict([image], ServeSettings())
    for [answer] in answers:
        np.testing.assert_array_equal(answer.labels, expected.labels)


def test_prediction_that_fails_leaves_its_device_to_the_next(checkpoint: Path, image: np.ndarray):
    pool = deployed(checkpoint, "cpu,cpu")
    for _ in range(3):
        with pytest.raises(RequestError):
            pool.predict([image[0]], ServeSettings())
    assert len(pool.predict([image], ServeSettings())) == 1


def test_every_device_must_be_here(checkpoint: Path):
    with pytest.raises(RequestError, match="'cuda:7' is not here"):
        deployed(checkpoint, "cpu,cuda:7")


def test_service_answers_from_two_replicas_as_from_one(checkpoint: Path, photo: Path, no_instance: pytest.MonkeyPatch):
    def ask(url: str) -> object:
        with photo.open("rb") as file:
            answer = requests.post(f"{url}/inference_image", files={"files": file}, data={"state": "{}"}, timeout=120)
        answer.raise_for_status()
        return answer.json()["annotation"]

    with serving(checkpoint) as one:
        expected = ask(one.url)
    with serving(checkpoint, devices="cpu,cpu") as app:
        assert app.server.get_info()["device"] == "cpu,cpu"
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(ask, [app.url] * 4)) == [expected] * 4
