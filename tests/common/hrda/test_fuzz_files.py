"""Thousands of damaged files of every kind that is read: each is refused in a sentence of ours, or read as a whole."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from common.hrda import load_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.network.mit_weights import read_encoder
from common.hrda.prediction.runtime import OnnxNetwork
from tests.common.hrda.test_hostile_files import SECRET, assert_says_nothing
from tests.tiny import tiny_checkpoint, tiny_description, tiny_encoder, tiny_export, tiny_model

Mutate = Callable[[bytes, random.Random], bytes]

HOSTILE = [
    None, True, False, 0, -1, 1, 3, 255, 256, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.5, 1e308, float("nan"),
    float("inf"), "", SECRET, "\x00", "\ud800", "9" * 5000, b"bytes", [], {}, (), [SECRET], {SECRET: SECRET}, {1: 2},
    {"short_edge": 64}, [[0, 0, 0]] * 3, ["a", "b", "c"], [1e999] * 3, [[[[[[]]]]]], "hrda-supervisely/9",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with tiny_encoder():
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, small: None) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    tiny_checkpoint(folder / "model.pth", teacher_state_dict=None)
    torch.save(tiny_model().backbone.state_dict(), folder / "encoder.pth")
    onnx.save_model(tiny_export(), folder / "model.onnx")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """Some bytes replaced, left out, doubled or added, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, length = rng.randrange(len(changed)), rng.choice((1, 1, 4, 64, 4096))
        match rng.randrange(6):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + length] = rng.randbytes(length)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + length] = bytes(length)
            case 5:
                del changed[max(place, 1) :]
        if not changed:
            break
    return bytes(changed)


def ends_changed(content: bytes, rng: random.Random) -> bytes:
    """As `bytes_changed`, among the first or the last bytes, where files of most kinds say what they are."""
    edge = min(2048, len(content) // 2)
    if rng.random() < 0.5:
        return bytes_changed(content[:edge], rng) + content[edge:]
    return content[:-edge] + bytes_changed(content[-edge:], rng)


def pickle_changed(content: bytes, rng: random.Random) -> bytes:
    """Bytes of what is pickled in an archive, whose sums are right again: torch gets to see it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                kept = bytearray(data)
                for _ in range(rng.choice((1, 2, 5))):
                    kept[rng.randrange(len(kept))] = rng.randrange(256)
                data = bytes(kept)
            archive.writestr(entry.filename, data)
    return target.getvalue()


def value_changed(data: Any, rng: random.Random) -> Any:
    """Plain data of which one value somewhere is another one, missing, or under another name."""
    data = deepcopy(data)
    at, key = data, rng.choice(list(data))
    while isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
        at = at[key]
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    if isinstance(at, dict) and rng.random() < 0.2:
        moved = at.pop(key)
        if rng.random() < 0.5:
            at[rng.choice((SECRET, "format", 7))] = moved
    else:
        at[key] = rng.choice(HOSTILE)
    return data


@functools.cache
def loaded(content: bytes) -> Mapping[str, Any]:
    return torch.load(io.BytesIO(content), weights_only=True)


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def checkpoint_values_changed(content: bytes, rng: random.Random) -> bytes:
    read = dict(loaded(content))
    weights = read.pop("state_dict")
    changed = value_changed(read | {"state_dict": None}, rng)
    return saved(
        {name: weights if name == "state_dict" and value is None else value for name, value in changed.items()}
    )


def weights_changed(content: bytes, rng: random.Random) -> bytes:
    """A weight of another shape or kind, of no number, under another name, or missing."""
    read = loaded(content)
    state = dict(read.get("state_dict", read))
    name = rng.choice(list(state))
    match rng.randrange(7):
        case 0:
            del state[name]
        case 1:
            state[f"{name}.{SECRET}"] = state.pop(name)
        case 2:
            state[name] = state[name].unsqueeze(0)
        case 3:
            state[name] = torch.full_like(state[name].float(), rng.choice((float("nan"), float("inf"))))
        case 4:
            state[name] = rng.choice(HOSTILE)
        case 5:
            state[name] = torch.zeros(1).expand(rng.choice((10, 10**12)))
        case 6:
            state[name] = state[name].to(rng.choice((torch.int8, torch.float16, torch.complex64)))
    return saved({**read, "state_dict": state} if "state_dict" in read else state)


def described_changed(content: bytes, rng: random.Random) -> bytes:
    """Another value in what an exported network says of itself, or another text in its place."""
    model = onnx.load_model_from_string(content)
    [entry] = model.metadata_props
    changed = value_changed(tiny_description(), rng)
    text = json.dumps(changed, default=str)
    entry.value = text if rng.random() < 0.9 else bytes_changed(text.encode(), rng).decode(errors="replace")
    return model.SerializeToString()


def graph_changed(content: bytes, rng: random.Random) -> bytes:
    """Another graph than the metadata describe."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    match rng.randrange(6):
        case 0:
            end = rng.choice([*graph.input, *graph.output])
            end.name = rng.choice((SECRET, "logits", "images"))
        case 1:
            end = rng.choice([*graph.input, *graph.output])
            end.type.tensor_type.shape.dim[rng.randrange(4)].dim_value = rng.choice((0, 1, 2, 5, 2**40))
        case 2:
            weight = rng.choice(graph.initializer)
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=rng.choice(("/etc/passwd", "../x", "model.onnx")))
        case 3:
            weight = rng.choice(graph.initializer)
            weight.raw_data = struct.pack("<f", rng.choice((float("nan"), float("inf")))) * (len(weight.raw_data) // 4)
        case 4:
            node = rng.choice(graph.node)
            node.op_type = rng.choice((SECRET, "Loop", "Conv", "Shape", "Identity"))
        case 5:
            graph.output.pop() if rng.random() < 0.5 else graph.node.pop()
    return model.SerializeToString()


def require_whole_checkpoint(path: Path) -> None:
    bundle = load_checkpoint(path)
    count = bundle.model.num_classes
    assert (len(bundle.classes), len(set(bundle.classes)), len(bundle.palette)) == (count, count, count)
    assert bundle.input_scale is None or min(bundle.input_scale) >= 16
    assert all(torch.isfinite(value).all() for value in bundle.model.state_dict().values())


def require_whole_encoder(path: Path) -> None:
    assert all(torch.isfinite(value).all() for value in read_encoder(path).state.values())


def require_whole_export(path: Path) -> None:
    network = OnnxNetwork(path)
    logits, attention = network.context_logits(torch.ones(2, 3, 64, 64))
    assert logits.shape[:2] == (2, len(network.metadata.classes))
    assert attention.shape[1] in (1, len(network.metadata.classes))


READERS: Mapping[str, Callable[[Path], None]] = {
    "model.pth": require_whole_checkpoint,
    "encoder.pth": require_whole_encoder,
    "model.onnx": require_whole_export,
}
CASES: list[tuple[str, Mutate, int]] = [
    ("model.pth", bytes_changed, 400),
    ("model.pth", ends_changed, 400),
    ("model.pth", pickle_changed, 250),
    ("model.pth", checkpoint_values_changed, 200),
    ("model.pth", weights_changed, 100),
    ("encoder.pth", bytes_changed, 400),
    ("encoder.pth", pickle_changed, 200),
    ("encoder.pth", weights_changed, 100),
    ("model.onnx", bytes_changed, 350),
    ("model.onnx", ends_changed, 200),
    ("model.onnx", described_changed, 300),
    ("model.onnx", graph_changed, 100),
]
"""File, how it is damaged, and how often."""


@pytest.mark.parametrize(("name", "mutate", "count"), CASES, ids=[f"{name} {how.__name__}" for name, how, _ in CASES])
def test_damaged_file_is_refused_in_our_words_or_read_as_a_whole(
    name: str, mutate: Mutate, count: int, originals: Mapping[str, bytes], tmp_path: Path
) -> None:
    refused, path = 0, tmp_path / name
    for seed in range(count):
        path.write_bytes(mutate(originals[name], random.Random(f"{name} {mutate.__name__} {seed}")))
        try:
            READERS[name](path)
        except CheckpointError as error:
            refused += 1
            assert_says_nothing(str(error))
        except Exception as error:
            raise AssertionError(f"mutation {seed} ended in {error!r}") from error
    assert refused > count // 4, "mutations that change nothing prove nothing"


def test_originals_are_read(originals: Mapping[str, bytes], tmp_path: Path) -> None:
    for name, read in READERS.items():
        (tmp_path / name).write_bytes(originals[name])
        read(tmp_path / name)


def test_fuzz_is_of_three_thousand_mutations() -> None:
    assert sum(count for _, _, count in CASES) == 3000
