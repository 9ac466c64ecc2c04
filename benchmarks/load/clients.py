"""Callers as they should be, with a few mistakes, and what they see."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests

from benchmarks.load.service import BEARER, FRAMES, encoded

SIZES = ((64, 64), (50, 70), (96, 128), (128, 128), (70, 110))


@dataclass
class Tally:
    """What clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unexpected: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, call: str, seconds: float, answer: requests.Response, wanted: int) -> None:
        """Count one answer; one with another status than `wanted` is an error, 429 and 503 are overload."""
        with self.lock:
            if answer.status_code in (429, 503) and "retry-after" in answer.headers:
                self.refused += 1
            elif answer.status_code != wanted:
                self.unexpected[f"{call}: {answer.status_code} {answer.text[:200]}"] += 1
            else:
                self.seconds[call].append(seconds)

    def percentile(self, share: float) -> float:
        """Seconds within which that many of a hundred of all answers came."""
        return float(np.percentile([value for seconds in self.seconds.values() for value in seconds], share))


class Client:
    """One caller: calls of all kinds, one after the other."""

    def __init__(self, url: str, tally: Tally, seed: int, photo_url: str, film: bytes) -> None:
        self._url, self._tally, self._photo_url, self._film = url, tally, photo_url, film
        self._random = random.Random(seed)
        self._session = requests.Session()
        self._session.headers.update(BEARER)
        generator = np.random.default_rng(seed)
        self._photos = [encoded(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]

    def run(self, until: float) -> None:
        """Call until the clock says `until`."""
        calls: list[tuple[Callable[[], None], int]] = [
            (self.image, 10), (self.region, 3), (self.batch, 3), (self.job, 3), (self.stopped_job, 1), (self.info, 3),
            (self.address, 3), (self.probabilities, 2), (self.video, 1), (self.broken_image, 2), (self.bad_setting, 1),
            (self.no_such_job, 1), (self.bad_json, 1), (self.no_token, 1),
        ]  # fmt: skip
        kinds, weights = zip(*calls, strict=True)
        while time.monotonic() < until:
            try:
                self._random.choices(kinds, weights)[0]()
            except requests.RequestException as error:
                with self._tally.lock:
                    self._tally.unexpected[f"{type(error).__name__}: {error}"] += 1

    def image(self) -> None:
        """One image."""
        self._upload("inference_image", [self._photo()])

    def region(self) -> None:
        """A part of one image, one class."""
        rectangle = {"points": {"exterior": [[5, 5], [44, 40]], "interior": []}}
        self._upload("inference_image", [self._photo()], {"rectangle": rectangle, "settings": {"classes": ["crack"]}})

    def batch(self) -> None:
        """Several images at once."""
        self._upload("inference_batch", [self._photo() for _ in range(3)])

    def address(self) -> None:
        """An image that the service fetches."""
        self._post("inference_image_url", {"image_url": self._photo_url})

    def probabilities(self) -> None:
        """All classes' probabilities of one image."""
        self._upload("predict_probabilities", [self._photo()])

    def job(self) -> None:
        """A job over images, until its last result, and cleared."""
        self._follow(self._upload("inference_batch_async", [self._photo() for _ in range(3)]), 3)

    def video(self) -> None:
        """A job over the frames of a film."""
        files = [("files", ("film.mp4", self._film))]
        self._follow(self._timed("inference_video_async", 200, "inference_video_async", files=files), FRAMES)

    def _follow(self, answer: requests.Response, results: int) -> None:
        if answer.status_code != 200:
            return
        state = {"inference_request_uuid": answer.json()["inference_request_uuid"]}
        found = 0
        while True:
            report = self._post("pop_inference_results", state).json()
            found += len(report["pending_results"])
            if report["finished"]:
                break
            time.sleep(0.05)
        if found != results or report["exception"]:
            with self._tally.lock:
                self._tally.unexpected[f"job: {found} results, {report['exception']}"] += 1
        self._post("clear_inference_request", state)

    def stopped_job(self) -> None:
        """A job that nobody waits for after all."""
        answer = self._upload("inference_batch_async", [self._photo() for _ in range(4)])
        if answer.status_code == 200:
            self._post("stop_inference", {"inference_request_uuid": answer.json()["inference_request_uuid"]})

    def info(self) -> None:
        """What a labelling tool asks first."""
        self._post("get_session_info", {})
        self._post("get_output_classes_and_tags", {})

    def broken_image(self) -> None:
        """Half of an image."""
        photo = self._photo()
        self._upload("inference_image", [photo[: len(photo) // 2]], wanted=400)

    def bad_setting(self) -> None:
        """A name that is mistyped."""
        self._upload("inference_image", [self._photo()], {"settings": {"strid": 64}}, wanted=400)

    def no_such_job(self) -> None:
        """A job of yesterday."""
        self._post("get_inference_progress", {"inference_request_uuid": "gone"}, wanted=404)

    def bad_json(self) -> None:
        """Not what it says it is."""
        self._timed("bad json", 400, "inference_image_id", data=b"{", headers={"Content-Type": "application/json"})

    def no_token(self) -> None:
        """Somebody who was not told it."""
        self._timed("no token (401)", 401, "inference_image", files=[("files", ("a.png", self._photo()))],
                    headers={"Authorization": "Bearer guessed-by-somebody"})  # fmt: skip

    def _photo(self) -> bytes:
        return self._random.choice(self._photos)

    def _upload(
        self, route: str, photos: list[bytes], state: dict[str, Any] | None = None, wanted: int = 200
    ) -> requests.Response:
        files = [("files", (f"image_{n}.png", photo)) for n, photo in enumerate(photos)]
        name = route if wanted == 200 else f"{route} ({wanted})"
        return self._timed(name, wanted, route, files=files, data={"state": json.dumps(state or {})})

    def _post(self, route: str, state: dict[str, Any], wanted: int = 200) -> requests.Response:
        return self._timed(route, wanted, route, json={"state": state})

    def _timed(self, call: str, wanted: int, route: str, **request: Any) -> requests.Response:
        started = time.perf_counter()
        answer = self._session.post(f"{self._url}/{route}", timeout=120, **request)
        self._tally.note(call, time.perf_counter() - started, answer, wanted)
        if answer.status_code in (429, 503):
            time.sleep(float(answer.headers.get("retry-after", 1)))
        return answer
