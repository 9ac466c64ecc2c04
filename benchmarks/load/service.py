"""The service under test, and what it is asked about."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import requests
import torch
from PIL import Image

from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MODEL = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(128, 128), decoder_channels=64)
FRAMES = 6
TOKEN = secrets.token_urlsafe()
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@contextlib.contextmanager
def photo_server() -> Iterator[str]:
    """An address of this machine at which there is a photo."""
    photo = encoded(np.full((96, 128, 3), 90, np.uint8))

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


def write_checkpoints(folder: Path) -> list[Path]:
    """Two models of the same classes."""
    colours = ((0, 0, 0), (220, 20, 60), (30, 60, 200))
    paths = [folder / "model.pth", folder / "other.pth"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        bundle = CheckpointBundle(
            student=build_segmentor(MODEL).eval(),
            classes=("__bg__", "crack", "stain"),
            palette=colours,
            settings={"model": MODEL.to_dict()},
        )
        save_checkpoint(path, bundle)
    return paths


@contextlib.contextmanager
def service(checkpoint: Path, log: Path, **variables: object) -> Iterator[str]:
    """`python -m serve deploy` in a process of its own, with a token and further variables; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve", "deploy", "--model", str(checkpoint), "--device", "cpu"]
    # The photo with an address is on this machine.
    env = os.environ | {"HRDA_ALLOW_HTTP": "true", "HRDA_ALLOW_PRIVATE_ADDRESSES": "true", "HRDA_API_TOKEN": TOKEN}
    env |= {name: str(value) for name, value in variables.items()}
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, stdout=stream, stderr=stream, env=env
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not answers(url):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The service did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def answers(url: str) -> bool:
    """Whether a model is deployed and can be asked."""
    try:
        return requests.get(f"{url}/is_ready", timeout=10).status_code == 200
    except requests.RequestException:
        return False


def encoded(image: np.ndarray) -> bytes:
    """RGB as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
