"""Files of encoder weights, made and served on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.hrda.catalogue import ENCODERS, MIT_SHAPES
from common.hrda.network import mmcv_operators

mmcv_operators.ensure_importable()

from mmseg.models.backbones.mit import MixVisionTransformer  # noqa: E402

NOWHERE = "http://127.0.0.1:9"
"""An address at which nobody answers."""
_SEGFORMER_PARTS = {
    "attn.attn.out_proj": "attn.proj",
    "ffn.layers.0": "mlp.fc1",
    "ffn.layers.1": "mlp.dwconv.dwconv",
    "ffn.layers.4": "mlp.fc2",
}


def encoder_state(encoder: str = "mit_b0", seed: int = 0) -> dict[str, Tensor]:
    """Random weights under mmsegmentation's names, by its own module."""
    embed_dims, depths = MIT_SHAPES[encoder]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MixVisionTransformer(
            embed_dims=embed_dims, num_layers=list(depths), num_heads=[1, 2, 5, 8], drop_path_rate=0.1
        )
        return {name: torch.randn_like(value) * 0.02 for name, value in module.state_dict().items()}


def under_segformer_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as SegFormer's own files name and shape them."""
    named = {}
    for name, value in state.items():
        stage, part, rest = re.fullmatch(r"layers\.(\d)\.(\d)\.(.+)", name).groups()
        number = int(stage) + 1
        if part == "0":
            named[f"patch_embed{number}.{rest.replace('projection', 'proj')}"] = value
        elif part == "2":
            named[f"norm{number}.{rest}"] = value
        elif "in_proj_" in rest:
            block, kind = rest.split(".")[0], rest.rpartition("_")[2]
            dims = len(value) // 3
            named[f"block{number}.{block}.attn.q.{kind}"] = value[:dims]
            named[f"block{number}.{block}.attn.kv.{kind}"] = value[dims:]
        else:
            for ours, theirs in _SEGFORMER_PARTS.items():
                rest = rest.replace(ours, theirs)
            is_linear = "mlp.fc" in rest and rest.endswith("weight")
            named[f"block{number}.{rest}"] = value[:, :, 0, 0] if is_linear else value
    return named


def save(path: Path, content: object) -> Path:
    """Write a file of weights."""
    torch.save(content, path)
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Server:
    """Serves files over HTTP, and notes who asks."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By path."""
        self.sent: int | None = None
        """So many bytes are sent before the connection ends; None: all."""
        self.asked: list[str] = []
        """Method and path of each request."""
        self.address = ""

    def offer(self, path: Path, name: str) -> str:
        """Offer a file under a name; returns its address."""
        self.files[f"/{name}"] = path.read_bytes()
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def _answer(self, with_body: bool) -> None:
            server.asked.append(f"{self.command} {self.path}")
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content[: server.sent])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


@contextlib.contextmanager
def publishing(path: Path, patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Let a file be what everything takes for the published weights of mit_b0, on a server of this machine."""
    name = f"mit_b0_made-{digest(path)[:8]}.pth"
    with serving() as server:
        server.offer(path, name)
        patch.setitem(ENCODERS, "mit_b0", dataclasses.replace(ENCODERS["mit_b0"], weights_source=name))
        patch.setenv("PRETRAINED_WEIGHTS_URL", server.address)
        yield server


def free_to_use(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, the weights of mit_b0 are as free as those of other encoders."""
    patch.setitem(ENCODERS, "mit_b0", dataclasses.replace(ENCODERS["mit_b0"], weights_licence="apache-2.0"))
