"""Whom the other callers must not notice: who send slowly or half, vanish, change the model, or come all at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests

from benchmarks.load.service import BEARER, encoded

SLOW = 32
"""Callers who send slowly, and as many who send half and wait."""
OVERLOAD = 60
"""Requests at once at the end: more than the queue of the service takes."""
KILL_EVERY_S = 10.0
DEPLOY_EVERY_S = 5.0
_LENGTH = 2**17
_PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="photo.png"\r\n\r\n'


def send_slowly(url: str, until: float) -> Counter[str]:
    """`SLOW` callers whose body drips in, and `SLOW` whose body ends half way; how often each was shown out."""
    shown_out: Counter[str] = Counter()

    async def caller(kind: str) -> None:
        address = urlsplit(url)
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            head = f"POST /inference_image HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER['Authorization']}\r\n"
            head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {_LENGTH}\r\n\r\n"
            try:
                writer.write(head.encode() + _PART)
                if kind == "half":
                    writer.write(bytes(_LENGTH // 2))
                while time.monotonic() < until:
                    if kind == "slow":
                        writer.write(bytes(64))
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        # A refusal, or the end.
                        await asyncio.wait_for(reader.read(2**16), 0.5)
                        break
            except ConnectionError:
                pass
            finally:
                writer.close()
            shown_out[kind] += time.monotonic() < until

    async def all_of_them() -> None:
        await asyncio.gather(*[caller(kind) for kind in ("slow", "half") for _ in range(SLOW)])

    asyncio.run(all_of_them())
    return shown_out


def change_models(url: str, until: float, checkpoints: list[Path]) -> Counter[int]:
    """Deploy one model after the other; the statuses."""
    statuses: Counter[int] = Counter()
    number = 0
    while time.monotonic() < until:
        number += 1
        files = {"checkpoint": str(checkpoints[number % len(checkpoints)])}
        params = {"model_source": "Custom models", "model_files": files, "device": "cpu"}
        body = {"state": {"deploy_params": params}}
        statuses[requests.post(f"{url}/deploy_from_api", json=body, headers=BEARER, timeout=120).status_code] += 1
        time.sleep(min(DEPLOY_EVERY_S, max(0.0, until - time.monotonic())))
    return statuses


def kill_clients(url: str, until: float) -> int:
    """Kill a caller with signal 9 in the middle of its request now and then; how many."""
    photo = encoded(np.zeros((128, 128, 3), np.uint8))
    code = (
        "import sys, requests; photo = sys.stdin.buffer.read(); "
        "requests.post(sys.argv[1] + '/inference_batch', files=[('files', ('a.png', photo))] * 8, timeout=60, "
        "headers={'Authorization': sys.argv[2]})"
    )
    killed = 0
    while time.monotonic() < until:
        with subprocess.Popen(
            [sys.executable, "-c", code, url, BEARER["Authorization"]], stdin=subprocess.PIPE
        ) as client:
            client.stdin.write(photo)
            client.stdin.close()
            time.sleep(random.uniform(0.3, 0.8))
            client.kill()
        killed += 1
        time.sleep(min(KILL_EVERY_S, max(0.0, until - time.monotonic())))
    return killed


def overload(url: str) -> Counter[int]:
    """Statuses of more requests at once than the queue takes."""
    photo = encoded(np.zeros((128, 128, 3), np.uint8))

    def ask(_: int) -> int:
        files = [("files", ("photo.png", photo))]
        return requests.post(f"{url}/inference_image", files=files, headers=BEARER, timeout=300).status_code

    with ThreadPoolExecutor(OVERLOAD) as pool:
        return Counter(pool.map(ask, range(OVERLOAD)))
