"""Requests that take longer than a client is let wait: how long after its answer their work goes on."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import requests

from benchmarks.load.service import BEARER, MODEL, encoded
from common.hrda.settings import InferenceSettings
from common.hrda.sliding import count_windows

SHORT_S = 3.0
"""How long a client may wait here for an answer."""
ROUNDS, TOGETHER = 6, 3
"""So often so many requests come that take longer."""
_SIDE, _LONG_STRIDE, _SHORT_STRIDE = 384, 8, 128
_WINDOWS_TOGETHER = 4
_POLL_S = 0.005


@dataclass
class Overruns:
    """How long work went on after the answer that its time was over."""

    seconds: list[float] = field(default_factory=list)
    """For each round until nothing was computed any more."""
    statuses: set[int] = field(default_factory=set)
    """Of the answers."""
    batch_s: float = 0.0
    """One batch of windows takes so long."""


def exceed_deadlines(url: str) -> Overruns:
    """Ask a service whose clients may wait for `SHORT_S` for what takes minutes, several at once."""
    photo, found = encoded(np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)), Overruns()

    def ask(stride: int) -> requests.Response:
        # The photo's own size, so that the windows can be counted.
        state = json.dumps({"settings": {"stride": stride, "input_scale": "original"}})
        files = [("files", ("photo.png", photo))]
        return requests.post(f"{url}/inference_image", files=files, data={"state": state}, headers=BEARER, timeout=120)

    windows = count_windows((_SIDE, _SIDE), MODEL.crop_size, InferenceSettings(stride=(_SHORT_STRIDE, _SHORT_STRIDE)))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        ask(_SHORT_STRIDE).raise_for_status()
        times.append(time.perf_counter() - started)
    found.batch_s = min(times) / (windows / _WINDOWS_TOGETHER)
    with ThreadPoolExecutor(TOGETHER) as pool:
        for _ in range(ROUNDS):
            for answer in pool.map(lambda _: ask(_LONG_STRIDE), range(TOGETHER)):
                found.statuses.add(answer.status_code)
            answered = time.perf_counter()
            while queue_length(url) > 0:
                time.sleep(_POLL_S)
            found.seconds.append(time.perf_counter() - answered)
    return found


def queue_length(url: str) -> int:
    """Requests that are computed or wait, as the service says."""
    text = requests.get(f"{url}/metrics", headers=BEARER, timeout=60).text
    return int(float(re.search(r"^hrda_queue_length (\S+)$", text, re.MULTILINE)[1]))
