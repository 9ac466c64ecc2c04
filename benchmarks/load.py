"""Load test of the serving app: many clients, mixed calls, for minutes, on this machine alone.

    python -m benchmarks.load                       # 8 clients, 10 minutes
    python -m benchmarks.load --clients 4 --minutes 1

It starts `python -m serve deploy` on the loopback with an untrained MiT-b0 of small crops, and ends with status 1 when
one of its bars is missed: no error that was not asked for, memory of the last minute within 2 % of that of the second
one (shorter runs: of the last quarter and the second quarter), overload answered with 429 or 503, clients that are
killed with signal 9 without effect.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import torch
from PIL import Image

from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
MODEL = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(128, 128), decoder_channels=64)
FRAMES = 6
SIZES = ((64, 64), (50, 70), (96, 128), (128, 128), (70, 110))
OVERLOAD = 60
"""Requests at once at the end: more than the queue of the service takes."""
MEMORY_BAR = 1.02
SAMPLE_S = 1.0
KILL_EVERY_S = 10.0


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


class Client:
    """One caller: calls of all kinds, one after the other."""

    def __init__(self, url: str, tally: Tally, seed: int, photo_url: str, film: bytes) -> None:
        self._url, self._tally, self._photo_url, self._film = url, tally, photo_url, film
        self._random = random.Random(seed)
        self._session = requests.Session()
        generator = np.random.default_rng(seed)
        self._photos = [_encoded(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]

    def run(self, until: float) -> None:
        """Call until the clock says `until`."""
        calls: list[tuple[Callable[[], None], int]] = [
            (self.image, 10), (self.region, 3), (self.batch, 3), (self.job, 3), (self.stopped_job, 1), (self.info, 3),
            (self.address, 3), (self.probabilities, 2), (self.video, 1), (self.broken_image, 2), (self.bad_setting, 1),
            (self.no_such_job, 1), (self.bad_json, 1),
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


def main(argv: list[str] | None = None) -> int:
    """Run the test; the exit status is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8, help="callers at the same time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    args = parser.parse_args(argv)
    if args.clients < 1 or args.minutes <= 0:
        parser.error("--clients and --minutes must be positive")
    with (
        tempfile.TemporaryDirectory(prefix="load_") as folder,
        photo_server() as photo_url,
        service(Path(folder)) as url,
    ):
        tally, memory, film = Tally(), [], encoded_film(Path(folder))
        started = time.monotonic()
        until = started + 60 * args.minutes
        with ThreadPoolExecutor(args.clients + 2) as pool:
            watch = pool.submit(sample_memory, url, started, until, memory)
            kills = pool.submit(kill_clients, url, until)
            clients = [Client(url, tally, number, photo_url, film) for number in range(args.clients)]
            for each in [pool.submit(client.run, until) for client in clients]:
                each.result()
            watch.result()
        codes = overload(url)
        alive = requests.get(f"{url}/is_ready", timeout=10).status_code == 200
        missed = report(tally, memory, args.minutes, kills.result(), codes, alive)
    print("missed: " + "; ".join(missed) if missed else "all bars are met")
    return 1 if missed else 0


@contextlib.contextmanager
def photo_server() -> Iterator[str]:
    """An address of this machine at which there is a photo."""
    photo = _encoded(np.full((96, 128, 3), 90, np.uint8))

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(photo)))
            self.end_headers()
            self.wfile.write(photo)

        def log_message(self, *_: object) -> None:
            """A line for each would hide the results."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/photo.png"
        finally:
            server.shutdown()
            thread.join()


def encoded_film(folder: Path) -> bytes:
    """A film of `FRAMES` frames, as MP4."""
    path = folder / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    for value in range(FRAMES):
        writer.write(np.full((64, 64, 3), 40 * value, np.uint8))
    writer.release()
    return path.read_bytes()


@contextlib.contextmanager
def service(folder: Path) -> Iterator[str]:
    """`python -m serve deploy` in a process of its own; its address."""
    checkpoint = folder / "model.pth"
    torch.manual_seed(0)
    colours = ((0, 0, 0), (220, 20, 60), (30, 60, 200))
    bundle = CheckpointBundle(
        student=build_segmentor(MODEL).eval(),
        classes=("__bg__", "crack", "stain"),
        palette=colours,
        settings={"model": MODEL.to_dict()},
    )
    save_checkpoint(checkpoint, bundle)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve", "deploy", "--model", str(checkpoint), "--device", "cpu"]
    # The photo with an address is on this machine.
    env = os.environ | {"HRDA_ALLOW_HTTP": "true", "HRDA_ALLOW_PRIVATE_ADDRESSES": "true"}
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, stdout=log, stderr=log, env=env
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not _answers(url):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The service did not start:\n{(folder / 'log').read_text()[-3000:]}")
                time.sleep(0.2)
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def sample_memory(url: str, started: float, until: float, samples: list[tuple[float, float]]) -> None:
    """Add (seconds since the start, resident megabytes) every second, as the service itself says."""
    while time.monotonic() < until:
        text = requests.get(f"{url}/metrics", timeout=60).text
        size = float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])
        samples.append((time.monotonic() - started, size / 2**20))
        time.sleep(SAMPLE_S)


def kill_clients(url: str, until: float) -> int:
    """Kill a caller with signal 9 in the middle of its request now and then; how many."""
    photo = _encoded(np.zeros((128, 128, 3), np.uint8))
    code = (
        "import sys, requests; photo = sys.stdin.buffer.read(); "
        "requests.post(sys.argv[1] + '/inference_batch', files=[('files', ('a.png', photo))] * 8, timeout=60)"
    )
    killed = 0
    while time.monotonic() < until:
        with subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE) as client:
            client.stdin.write(photo)
            client.stdin.close()
            time.sleep(random.uniform(0.3, 0.8))
            client.kill()
        killed += 1
        time.sleep(min(KILL_EVERY_S, max(0.0, until - time.monotonic())))
    return killed


def overload(url: str) -> Counter[int]:
    """Statuses of more requests at once than the queue takes."""
    photo = _encoded(np.zeros((128, 128, 3), np.uint8))

    def ask(_: int) -> int:
        files = [("files", ("photo.png", photo))]
        return requests.post(f"{url}/inference_image", files=files, timeout=300).status_code

    with ThreadPoolExecutor(OVERLOAD) as pool:
        return Counter(pool.map(ask, range(OVERLOAD)))


def report(
    tally: Tally, memory: list[tuple[float, float]], minutes: float, killed: int, codes: Counter[int], alive: bool
) -> list[str]:
    """Print what was measured; the bars that were missed."""
    print(f"{'call':32} {'count':>7} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8}")
    for call, seconds in sorted(tally.seconds.items()):
        row = [1000 * value for value in (*np.percentile(seconds, [50, 95]), max(seconds))]
        print(f"{call:32} {len(seconds):7} " + " ".join(f"{value:8.1f}" for value in row))
    everything = [value for seconds in tally.seconds.values() for value in seconds]
    print(f"{len(everything)} answers, {len(everything) / 60 / minutes:.1f} a second, "
          f"p95 {1000 * np.percentile(everything, 95):.1f} ms; {tally.refused} told to come again")  # fmt: skip
    length = 60.0 if minutes >= 3 else 15.0 * minutes
    end = 60 * minutes
    first = statistics.median(size for moment, size in memory if length <= moment < 2 * length)
    last = statistics.median(size for moment, size in memory if end - length <= moment)
    print(f"memory: {first:.1f} MB in the second {length:.0f} s, {last:.1f} MB in the last, ratio {last / first:.4f}")
    minutes_seen = range(int(max(moment for moment, _ in memory) // 60) + 1)
    medians = [statistics.median([size for moment, size in memory if moment // 60 == n] or [0]) for n in minutes_seen]
    print("memory by minute, MB: " + " ".join(f"{median:.0f}" for median in medians))
    print(f"overload: {dict(codes)} of {OVERLOAD} at once; clients killed: {killed}; service alive: {alive}")
    missed = [f"{count} × {what}" for what, count in tally.unexpected.most_common(5)]
    if last > MEMORY_BAR * first:
        missed.append(f"memory grew by {100 * (last / first - 1):.1f} %")
    if not codes.keys() & {429, 503} or codes.keys() - {200, 429, 503}:
        missed.append(f"overload was answered with {dict(codes)}")
    return missed + ([] if alive else ["the service is gone"])


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/is_ready", timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _encoded(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
