"""Weights of timm's encoders: fetched from a hub by its own client, read from files of one's own, strictly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from common.hrda.checks import CheckpointError, SettingsError
from common.hrda.network import encoders
from common.hrda.network.downloads import DownloadError
from common.hrda.network.encoder_weights import (
    fetch_published,
    load_encoder,
    published_origin,
    read_encoder,
    require_published,
)
from common.hrda.network.encoders import build_encoder
from tests.weights import NOWHERE

NAME, IN_TIMM = "efficientnet_lite0", "tf_efficientnet_lite0.in1k"


def whole(name: str = IN_TIMM, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Drawn weights of timm's whole model, with its classifier; None leaves one out."""
    from common.hrda.network import from_timm

    torch.manual_seed(5)
    state = from_timm.timm.create_model(name).state_dict() | changes
    return {each: value for each, value in state.items() if value is not None}


def saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    return path


class Hub:
    """A hub of this machine, which has one file."""

    def __init__(self) -> None:
        self.content, self.asked, self.address = b"", [], ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def _answer(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if self.path != f"/timm/{IN_TIMM}/resolve/main/model.safetensors" or not hub.content:
                self.send_error(404)
                return
            self.send_response(200)
            headers = {"ETag": '"0123"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(hub.content))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(hub.content)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        hub.address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            http.shutdown()
            thread.join()


def test_published_weights_come_from_the_hub_once_and_are_told_of(hub: Hub, tmp_path: Path) -> None:
    state = whole()
    hub.content = saved(tmp_path / "model.safetensors", state).read_bytes()
    require_published(NAME)
    file = f"/timm/{IN_TIMM}/resolve/main/model.safetensors"
    assert f"HEAD {file}" in hub.asked and f"GET {file}" not in hub.asked, hub.asked
    told = []
    path = fetch_published(NAME, lambda *report: told.append(report))
    assert told[-1] == (f"timm/{IN_TIMM}", len(hub.content), len(hub.content))
    encoder = build_encoder(NAME)
    load_encoder(encoder, read_encoder(path, NAME))
    own = encoder.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    hub.asked.clear()
    require_published(NAME)
    assert hub.asked == [], "what is on this machine is asked for nowhere"


def test_a_stop_ends_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.content = saved(tmp_path / "model.safetensors", whole()).read_bytes()

    def stop(*_: object) -> None:
        raise InterruptedError("stopped")

    with pytest.raises(InterruptedError, match="stopped"):
        fetch_published(NAME, stop)


@pytest.mark.parametrize("ask", [fetch_published, require_published])
def test_weights_that_cannot_be_had_say_what_the_hub_goes_by(hub: Hub, ask, monkeypatch) -> None:
    from huggingface_hub import constants

    remedy = r"HF_HOME .* HF_ENDPOINT .* HF_HUB_OFFLINE=1 .* give the path of the model's model.safetensors"
    with pytest.raises(DownloadError, match=rf"timm/{IN_TIMM} could not be had .*{remedy}"):
        ask(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(DownloadError, match=remedy):
        ask(NAME)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_of_ones_own_is_read_without_its_classifier(suffix: str, tmp_path: Path) -> None:
    state = whole()
    before = torch.random.get_rng_state()
    weights = read_encoder(saved(tmp_path / f"mine{suffix}", state), NAME)
    assert torch.equal(torch.random.get_rng_state(), before), "a run's random numbers do not depend on its file"
    assert sorted(weights.left_out) == ["classifier.bias", "classifier.weight"]
    encoder = build_encoder(NAME)
    load_encoder(encoder, weights)
    assert torch.equal(encoder.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"bn1.bias": None},
        {"conv_head.weight": None},
        {"conv_stem.weight": torch.zeros(32, 3, 5, 5)},
        {"another.weight": torch.zeros(3)},
    ],
    ids=["missing", "missing behind the features", "another shape", "too many"],
)
def test_file_that_is_not_all_of_the_encoder_is_refused(changes, tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.pth", whole(**changes))
    with pytest.raises(CheckpointError, match=f"mine.pth is no encoder to start from: it is no complete {IN_TIMM}"):
        read_encoder(path, NAME)


def test_numbers_that_are_not_finite_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.pth", whole(**{"bn1.bias": torch.full((32,), torch.nan)}))
    with pytest.raises(CheckpointError, match="no finite numbers in 'bn1.bias'"):
        read_encoder(path, NAME)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved(tmp_path / "whole.safetensors", whole()).read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged.safetensors is not a file of weights, or it is damaged"):
        read_encoder(damaged, NAME)


def test_any_other_model_of_timm_starts_from_a_file_of_ones_own(tmp_path: Path) -> None:
    name = "timm:test_vit3.r160_in1k"
    path = saved(tmp_path / "vit.safetensors", whole("test_vit3.r160_in1k"))
    encoder = build_encoder(name)
    load_encoder(encoder, read_encoder(path, name))
    maps = encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(each.shape[-2:]) for each in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert published_origin(name).licence == "apache-2.0 (as timm states it)"
    with pytest.raises(DownloadError, match="timm publishes no weights of vit_tiny_patch16_18x2_224 in its own format"):
        fetch_published("timm:vit_tiny_patch16_18x2_224")
    with pytest.raises(SettingsError, match="no model of this name: did you mean pvt_v2_b1"):
        build_encoder("timm:pvt_v2_b11")


def test_without_timm_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    for use in (build_encoder, fetch_published, lambda name: read_encoder(__file__, name)):
        with pytest.raises((SettingsError, CheckpointError), match="needs the package timm|not a file of weights"):
            use("pvt_v2_b0")
    assert build_encoder("mit_b0").channels == (32, 64, 160, 256)
