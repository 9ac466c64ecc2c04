"""Encoder weights from files: every layout that is published, complete or refused."""

import pytest
import torch

from common.hrda.catalogue import ENCODERS, MIT_SHAPES
from common.hrda.checks import CheckpointError
from common.hrda.network.encoders import build_encoder
from common.hrda.network.mit_weights import load_encoder, published_weights, read_encoder
from tests.weights import encoder_state, save, under_segformer_names

CLASSIFIER = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def state():
    return encoder_state()


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("layout", "left_out"),
    [
        (lambda s: s, ()),
        (lambda s: {"state_dict": s, "meta": {"epoch": 3}}, ()),
        (lambda s: prefixed("module.", s), ()),
        (lambda s: under_segformer_names(s) | CLASSIFIER, ("head.weight", "head.bias")),
        (lambda s: {"model": under_segformer_names(s)}, ()),
        (
            lambda s: {"state_dict": prefixed("backbone.", s) | {"decode_head.conv_seg.bias": torch.zeros(19)}},
            ("decode_head.conv_seg.bias",),
        ),
        (lambda s: prefixed("backbone.", under_segformer_names(s)), ()),
    ],
    ids=["mmseg", "mmseg in a checkpoint", "parallel", "segformer", "timm", "mmseg segmentor", "segformer segmentor"],
)
def test_published_layouts_are_read_whole(state, tmp_path, layout, left_out):
    weights = read_encoder(save(tmp_path / "weights.pth", layout(state)))
    assert (weights.encoder, weights.left_out) == ("mit_b0", left_out)
    assert_same(weights.state, state)


def test_encoder_computes_what_the_weights_say(state, tmp_path):
    encoder = build_encoder("mit_b0")
    weights = read_encoder(save(tmp_path / "weights.pth", under_segformer_names(state)))
    load_encoder(encoder, weights)
    assert_same(encoder.state_dict(), state)
    with pytest.raises(CheckpointError, match="of mit_b0 and fit no other"):
        load_encoder(build_encoder("mit_b1"), weights)


def test_encoders_of_one_width_are_told_apart_by_their_depth(tmp_path):
    assert read_encoder(save(tmp_path / "weights.pth", encoder_state("mit_b2"))).encoder == "mit_b2"


def test_half_precision_files_become_float32(state, tmp_path):
    half = {name: value.half() for name, value in state.items()}
    weights = read_encoder(save(tmp_path / "weights.pth", half))
    assert {value.dtype for value in weights.state.values()} == {torch.float32}


def without(state, name):
    return {other: value for other, value in state.items() if other != name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: without(s, "layers.3.1.1.ffn.layers.4.bias"), "lacks 'layers.3.1.1.ffn.layers.4.bias'"),
        (lambda s: s | {"layers.0.1.0.gamma": torch.ones(3)}, "has 1 weights that do not belong"),
        (lambda s: s | {"layers.1.2.bias": torch.ones(3)}, "has another shape of 'layers.1.2.bias'"),
        (lambda s: s | {"layers.1.2.bias": torch.full((64,), torch.nan)}, "no finite numbers in 'layers.1.2.bias'"),
        (lambda s: s | {"layers.1.2.bias": torch.ones(64).long()}, "numbers of another kind in 'layers.1.2.bias'"),
        (lambda s: s | {"decode_head.conv_seg.bias": torch.ones(3)}, "has 1 weights that do not belong"),
        (lambda s: {n: v for n, v in s.items() if n[8:13] != ".1.1."}, r"depths \[1, 1, 1, 1\]: none of mit_b0"),
        (lambda s: without(s, "layers.0.2.weight"), "0 channels"),
        (lambda s: prefixed("backbone.", s) | {"ema.x": torch.ones(1)}, "more than an encoder and a decoder"),
        (lambda s: without(under_segformer_names(s), "block1.0.attn.q.bias"), "no complete MiT encoder of SegFormer"),
        (lambda s: without(under_segformer_names(s), "block1.0.attn.kv.bias"), "no complete MiT encoder of SegFormer"),
        (lambda s: under_segformer_names(s) | {"cls_token": torch.ones(1)}, "no complete MiT encoder of SegFormer"),
        (lambda s: {"conv1.weight": torch.ones(1)}, "holds no MiT encoder: neither 'patch_embed1"),
        (lambda s: {"state_dict": {}}, "no names with tensors"),
        (lambda s: {1: torch.ones(1)}, "no names with tensors"),
        (lambda s: {"conv1.weight": 1}, "no dense tensors"),
        (lambda s: {"conv1.weight": torch.ones(1).expand(1000)}, "larger than the file"),
        (lambda s: [1, 2], "no names with tensors"),
    ],
)
def test_incomplete_or_foreign_weights_are_refused_with_what_is_wanted(state, tmp_path, change, sentence):
    path = save(tmp_path / "weights.pth", change(dict(state)))
    with pytest.raises(CheckpointError, match=sentence) as said:
        read_encoder(path)
    assert str(path) in str(said.value)
    foreign = ("gamma", "decode_head", "ema.x", "cls_token", "conv1")
    assert not any(name in str(said.value) for name in foreign), "nothing of the file"


def test_file_that_would_run_code_is_not_opened(tmp_path):
    ran = tmp_path / "ran"
    path = save(tmp_path / "weights.pth", {"state_dict": Runs(ran)})
    with pytest.raises(CheckpointError, match="not a file of weights"):
        read_encoder(path)
    assert not ran.exists()


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.pth is not a file of weights, or it is damaged"):
        read_encoder(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="There is no file"):
        read_encoder(tmp_path / "other.pth")


def test_reading_weights_draws_no_random_numbers(state, tmp_path):
    """A run must not depend on what it read, or when."""
    from common.hrda.network.mit_weights import _unallocated

    _unallocated.cache_clear()
    before = torch.random.get_rng_state()
    read_encoder(save(tmp_path / "weights.pth", state))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("encoder", MIT_SHAPES)
def test_every_published_file_has_an_address_and_a_sum(encoder, monkeypatch):
    monkeypatch.delenv("PRETRAINED_WEIGHTS_URL", raising=False)
    remote = published_weights(encoder)
    assert remote.url.startswith("https://") and remote.url.endswith(f"/{remote.name}")
    assert remote.name.startswith(f"{encoder}_") and len(remote.sha256) == 8
    assert "non-commercial" in ENCODERS[encoder].weights_licence


def test_published_names_are_those_that_mmsegmentation_s_own_configs_have(monkeypatch):
    from importlib.metadata import distribution

    monkeypatch.delenv("PRETRAINED_WEIGHTS_URL", raising=False)
    files = [file for file in distribution("mmsegmentation").files or [] if "configs/segformer/" in str(file)]
    texts = [file.locate().read_text() for file in files if file.suffix == ".py"]
    assert texts
    for encoder in MIT_SHAPES:
        address = published_weights(encoder).url
        assert any(address in text for text in texts), address


def test_mirror_takes_the_place_of_the_publisher(monkeypatch):
    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", "http://mirror/weights/")
    remote = published_weights("mit_b0")
    assert remote.url == f"http://mirror/weights/{ENCODERS['mit_b0'].weights_source}"
