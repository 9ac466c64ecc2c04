"""Files that are wrong in one way each: refused in our words, with nothing of the file, before memory is used."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.hrda import load_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.network.mit_weights import read_encoder
from common.hrda.prediction.runtime import OnnxNetwork
from serve.model.deployment import Deployment
from serve.model.settings import ServeSettings
from tests.tiny import (
    CLASSES,
    PALETTE,
    SETTINGS,
    tiny_checkpoint,
    tiny_description,
    tiny_encoder,
    tiny_export,
    tiny_model,
)

MODEL = SETTINGS.to_dict()
LAST = "decode_head.head.conv_seg.weight"
SECRET = "root:x:0:0:/secret"


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with tiny_encoder():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model.pth")


@pytest.fixture(scope="module")
def content(checkpoint: Path) -> Mapping[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def model(**changes: Any) -> dict[str, Any]:
    return {"settings": {"model": MODEL | changes}}


def scale(value: Any) -> dict[str, Any]:
    return {"settings": {"model": MODEL, "input": value}}


def edges(short: Any, long: Any) -> dict[str, Any]:
    return scale({"short_edge": short, "long_edge": long})


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else SECRET


def wide(depth: int) -> Any:
    """Ten to the power of `depth` items in a few bytes: lists that name the same list again and again."""
    inner: Any = SECRET
    for _ in range(depth):
        inner = [inner] * 10
    return inner


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"classes": list(CLASSES[:2])}, "palette must be a colour for each of 2"),
    ({"classes": list(CLASSES[:2]), "palette": PALETTE[:2]}, "a name for each of 3 outputs"),
    ({"classes": ["__bg__", SECRET, SECRET]}, "names of which none comes twice"),
    ({"classes": ["__bg__", "a", ""]}, "1 to 255 characters"),
    ({"classes": ["__bg__", "a", SECRET * 20]}, "1 to 255 characters"),
    ({"classes": SECRET}, "names of classes"),
    ({"classes": None}, "names of classes"),
    ({"palette": [[0, 0, 0], [1, 1, 256], [0, 0, 0]]}, "from 0 to 255"),
    ({"palette": [[0, 0, 0], [1, 1, -1], [0, 0, 0]]}, "from 0 to 255"),
    ({"palette": [[0, 0, 0], [1, 1], [0, 0, 0]]}, "from 0 to 255"),
    ({"palette": [[0, 0, 0], SECRET, [0, 0, 0]]}, "from 0 to 255"),
    (scale(SECRET), "settings.input must be short_edge and long_edge"),
    (scale([640, 480]), "settings.input must be"),
    (scale({"short_edge": 64}), "at most long_edge"),
    (scale({"short_edge": 64, "long_edge": 64, SECRET: 1}), "settings.input must be"),
    (edges(0, 96), "from 16 to 16384"),
    (edges(-5, 96), "from 16 to 16384"),
    (edges(64, 10**6), "from 16 to 16384"),
    (edges(64, 1e30), "from 16 to 16384"),
    (edges(96, 64), "at most long_edge"),
    (edges(None, 64), "at most long_edge"),
    (scale({"factor": 100}), "from 0.1 to 4"),
    (scale({"factor": SECRET}), "from 0.1 to 4"),
    (scale({"short_edge": 64, "long_edge": 96, "factor": 2.0}), "1 where there are edges"),
    ({"state_dict": [1, 2]}, "no names with tensors"),
    ({"state_dict": {}}, "no names with tensors"),
    ({"state_dict": {0: torch.zeros(1)}}, "no names with tensors"),
    ({"state_dict": {SECRET: 1}}, "no dense tensors"),
    ({"state_dict": {SECRET: torch.zeros(2).expand(1000, 2)}}, "larger than the file"),
    ({"state_dict": {SECRET: torch.zeros(2)}}, "it lacks 'backbone.*1 weights that do not belong"),
    ({"teacher_state_dict": {SECRET: torch.zeros(2)}}, "it lacks 'backbone"),
    ({"teacher_state_dict": None, "serve_teacher": True}, "names the teacher as the better model and holds none"),
    ({"settings": None}, "settings must be"),
    ({"settings": {}}, "settings.model must be keys with values"),
    ({"settings": {"model": SECRET}}, "settings.model must be keys with values"),
    (model(encoder=SECRET), "encoder must be one of pvt_v2_b0"),
    (model(encoder=["mit_b0"]), "encoder must be one of pvt_v2_b0"),
    (model(crop_size=[65536, 65536]), "multiples of 64 up to 4096"),
    (model(crop_size=SECRET), "multiples of 64 up to 4096"),
    (model(decoder_channels=10**7), "decoder_channels must be a whole number from 1 to 4096"),
    (model(decoder_channels=4096, attention_channels=4096), "another shape of 'decode_head"),
    (model(num_classes=200), "a name for each of 200 outputs"),
    (model(num_classes=10**9), "num_classes must be a whole number from 2 to 255"),
    (model(**{SECRET: 1}), "keys that this version of the app does not know: update the app"),
    ({"metrics": None}, "metrics must be"),
    ({"metrics": {1: 0.5}}, "names that are no text"),
    ({"metrics": {"a": torch.zeros(2)}}, "no plain data"),
    ({"metrics": {"a": nested(60)}}, "too deeply nested"),
    ({"metrics": {"a": wide(12)}}, "too large"),
    ({"iteration": -1}, "iteration must be"),
    ({"iteration": 10**30}, "iteration must be"),
    ({"score": SECRET}, "score must be"),
    ({"serve_teacher": 1}, "serve_teacher must be"),
    ({"format": "hrda-supervisely/2"}, "has format 2 .* newer version. Update the app"),
    ({"format": SECRET}, "a format that this app does not know"),
    ({"format": 1}, "a format that this app does not know"),
    ({"format": torch.zeros(3)}, "a format that this app does not know"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES, ids=[sentence for _, sentence in CHANGES])
def test_what_a_checkpoint_says_of_itself_is_checked_as_a_whole(
    content: Mapping[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    torch.save(dict(content) | change, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=sentence) as refused:
        load_checkpoint(tmp_path / "model.pth")
    assert str(refused.value).startswith(str(tmp_path / "model.pth"))
    assert_says_nothing(str(refused.value))


def weights(change: Callable[[torch.Tensor], torch.Tensor], name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def changed(content: Mapping[str, Any]) -> dict[str, Any]:
        state = dict(content["state_dict"])
        return dict(content) | {"state_dict": state | {name: change(state[name].clone())}}

    return changed


BAD_WEIGHTS = [
    (weights(lambda w: w * torch.nan, LAST), "no finite numbers in"),
    (weights(lambda w: w / 0, LAST), "no finite numbers in"),
    (weights(lambda w: -w - 1, "decode_head.head.fuse_layer.bottleneck.bn.running_var"), "negative variances in"),
    (weights(lambda w: w.to(torch.int64), LAST), "numbers of another kind in"),
    (weights(lambda w: w.to(torch.complex64), LAST), "numbers of another kind in|not a checkpoint"),
    (weights(lambda w: w[:2], LAST), "another shape of"),
    (weights(lambda w: w.to_sparse(), LAST), "not a checkpoint|no dense tensors"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_WEIGHTS, ids=[sentence for _, sentence in BAD_WEIGHTS])
def test_weights_that_would_answer_nonsense_are_refused(
    content: Mapping[str, Any], change: Callable[..., Any], sentence: str, tmp_path: Path
) -> None:
    torch.save(change(content), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(tmp_path / "model.pth")


def test_former_checkpoints_pass_the_same_checks(tmp_path: Path) -> None:
    from tests.common.hrda.test_checkpoints import former_checkpoint

    student, teacher = tiny_model(), tiny_model(1)
    good = {"CLASSES": CLASSES, "PALETTE": PALETTE, "config": "crop_size = (64, 64)", "iter": 3}
    read = load_checkpoint(former_checkpoint(tmp_path / "good.pth", student, teacher, **good))
    assert (read.classes, read.palette, read.iteration) == (CLASSES, PALETTE, 3)
    for change, sentence in (
        ({"CLASSES": CLASSES[:2]}, "palette must be|a name for each"),
        ({"CLASSES": torch.zeros(3)}, "no plain data"),
        ({"CLASSES": [1, 2, 3]}, "names of classes"),
        ({"PALETTE": [[0, 0, 300]] * 3}, "from 0 to 255"),
        ({"iter": SECRET}, "iteration must be"),
        ({"config": "crop_size = (0, 64)"}, "multiples of 64"),
        ({"config": "img_scale = (999999, 64)"}, "from 16 to 16384"),
    ):
        with pytest.raises(CheckpointError, match=sentence) as refused:
            load_checkpoint(former_checkpoint(tmp_path / "bad.pth", student, teacher, **good | change))
        assert_says_nothing(str(refused.value))
    torch.save({"state_dict": {SECRET: torch.zeros(3)}, "meta": {}}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="not those of a HRDA network") as refused:
        load_checkpoint(tmp_path / "foreign.pth")
    assert_says_nothing(str(refused.value))


class Reserve:
    """Unpickled, it makes an object by a function that torch allows."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def bomb_of_zeros(path: Path, checkpoint: Path) -> None:
    """An archive with 100 MB of zeros in a few hundred kilobytes."""
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            long = entry.filename.endswith("data/0")
            target.writestr(entry.filename, bytes(100 * 2**20) if long else source.read(entry))


def flipped(path: Path, checkpoint: Path) -> None:
    """One bit in the middle of the weights: a valid number, and not the one that was written."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES: dict[str, Callable[[Path, Path], object]] = {
    "zip bomb": bomb_of_zeros,
    "flipped bit": flipped,
    "memory as the file likes": lambda path, _: torch.save({"state_dict": {}, "a": Reserve(bytearray, 10**11)}, path),
    "tensor as the file likes": lambda path, _: torch.save({"state_dict": Reserve(torch.FloatTensor, 10**11)}, path),
    "the same in torch's old format": lambda path, _: torch.save(
        {"state_dict": {}, "a": Reserve(bytearray, 10**11)}, path, _use_new_zipfile_serialization=False
    ),
    "pickle": lambda path, _: path.write_bytes(pickle.dumps({SECRET: SECRET})),
    "text that begins like a pickle": lambda path, _: path.write_text(f"c{SECRET}\n{SECRET}\n"),
    "text": lambda path, _: path.write_text(SECRET),
    "nothing": lambda path, _: path.write_bytes(b""),
    "half": lambda path, checkpoint: path.write_bytes(checkpoint.read_bytes()[:30_000]),
    "empty archive": lambda path, _: zipfile.ZipFile(path, "w").close(),
    "archive of others": lambda path, _: zipfile.ZipFile(path, "w").writestr("a.txt", SECRET),
    "TorchScript": lambda path, _: path.write_bytes(scripted()),
}


def scripted() -> bytes:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Doubling(), torch.zeros(1)), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("read", [load_checkpoint, read_encoder])
def test_file_of_another_kind_is_refused_without_a_word_of_it(
    kind: str, read: Callable[[Path], object], checkpoint: Path, tmp_path: Path
) -> None:
    FILES[kind](tmp_path / "model.pth", checkpoint)
    with pytest.raises(CheckpointError, match="or it is damaged; it was not opened") as refused:
        read(tmp_path / "model.pth")
    assert_says_nothing(str(refused.value))


def test_bombs_are_refused_before_torch_reads_a_byte(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read the file"))
    for kind in ("zip bomb", "memory as the file likes", "tensor as the file likes", "the same in torch's old format"):
        FILES[kind](tmp_path / "model.pth", checkpoint)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "model.pth")


class LargestTensor(TorchDispatchMode):
    """Knows the bytes of the largest tensor in memory that is made within it."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            self.bytes = max(self.bytes, made.nbytes)
        return made


def test_no_network_takes_memory_for_weights_that_do_not_fit(content: Mapping[str, Any], tmp_path: Path) -> None:
    """`decoder_channels` may be at most 4096, and a decoder of that width would be of gigabytes."""
    torch.save(dict(content) | model(decoder_channels=4096, attention_channels=4096), tmp_path / "model.pth")
    with LargestTensor() as largest, pytest.raises(CheckpointError, match="another shape"):
        load_checkpoint(tmp_path / "model.pth")
    assert 0 < largest.bytes < 2**20


def test_a_good_checkpoint_is_read_from_either_format_of_torch(checkpoint: Path, tmp_path: Path) -> None:
    legacy = tmp_path / "legacy.pth"
    torch.save(torch.load(checkpoint, weights_only=True), legacy, _use_new_zipfile_serialization=False)
    wanted = load_checkpoint(checkpoint).model.state_dict()
    for name, value in load_checkpoint(legacy).model.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_reading_a_checkpoint_draws_no_random_numbers(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def describe(**changes: Any) -> Callable[[Any], None]:
    """An exported network that says another thing of itself."""

    def change(network: onnx.ModelProto) -> None:
        network.metadata_props[0].value = json.dumps(tiny_description() | changes)

    return change


def say(text: str) -> Callable[[Any], None]:
    return lambda network: setattr(network.metadata_props[0], "value", text)


def lie_elsewhere(network: onnx.ModelProto) -> None:
    """Its weights are said to be in a file of the machine."""
    weight = network.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def count_to_nothing(network: onnx.ModelProto) -> None:
    weight = network.graph.initializer[0]
    weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()


def hold_a_graph(network: onnx.ModelProto) -> None:
    network.graph.node[0].attribute.append(onnx.helper.make_attribute("body", onnx.GraphProto()))


def take_one_size(network: onnx.ModelProto) -> None:
    network.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64


EXPORTS: list[tuple[Callable[[Any], None], str]] = [
    (describe(classes=list(CLASSES[:2]), palette=PALETTE[:2]), "a name for each of 3 outputs"),
    (describe(classes=["__bg__", SECRET, SECRET]), "names of which none comes twice"),
    (describe(palette=[[0, 0, 999]] * 3), "from 0 to 255"),
    (describe(settings={"model": MODEL, "input": [1, 2]}), "settings.input must be"),
    (describe(**edges(-5, 10**6)), "from 16 to 16384"),
    (describe(**model(crop_size=[65536, 64])), "multiples of 64 up to 4096"),
    (describe(**model(encoder=SECRET)), "encoder must be one of"),
    (describe(**model(num_classes=4)), "a name for each of 4 outputs"),
    (
        describe(classes=[*CLASSES, "more"], palette=[*PALETTE, [1, 1, 1]], **model(num_classes=4)),
        "logits are no float32 maps of 4 channels",
    ),
    (describe(**model(fine_branch=True)), "its ends are not images, logits, attention, detail"),
    (describe(best_thresholds={SECRET: 0.5}), "best_thresholds must be"),
    (describe(best_thresholds={"crack": 7}), "best_thresholds must be"),
    (describe(format=2), "format 2 of exported networks.*newer version. Update the app"),
    (describe(format=SECRET), "a format that this app does not know"),
    (say("[1]"), "not a network exported by this app"),
    (say(f"{{{SECRET}"), "not a network exported by this app"),
    (say("[" * 10_000), "not a network exported by this app"),
    (lambda network: network.metadata_props.pop(), "not a network exported by this app"),
    (lambda network: network.graph.output.pop(), "its ends are not images, logits, attention"),
    (lie_elsewhere, "its weights lie in other files"),
    (hold_a_graph, "graphs within its graph"),
    (take_one_size, "images of one size alone"),
    (count_to_nothing, "not a network exported by this app"),
]


def test_exported_network_is_served_at_the_factor_of_its_training(tmp_path: Path) -> None:
    network = tiny_export()
    describe(**scale({"factor": 2.0}))(network)
    (tmp_path / "model.onnx").write_bytes(network.SerializeToString())
    deployment = Deployment.from_file(tmp_path / "model.onnx", "cpu", "ONNXRuntime")
    assert deployment.work((50, 70), ServeSettings()).pixels == 100 * 140


@pytest.mark.parametrize(("change", "sentence"), EXPORTS, ids=[sentence for _, sentence in EXPORTS])
def test_exported_network_passes_the_same_checks(change: Callable[[Any], None], sentence: str, tmp_path: Path) -> None:
    network = tiny_export()
    change(network)
    (tmp_path / "model.onnx").write_bytes(network.SerializeToString())
    with pytest.raises(CheckpointError, match=sentence) as refused:
        OnnxNetwork(tmp_path / "model.onnx")
    assert_says_nothing(str(refused.value))


def assert_says_nothing(sentence: str) -> None:
    """Neither of the file nor of torch; and it is a sentence of one line."""
    assert "root" not in sentence.replace("pytest-of-root", "") and "secret" not in sentence
    assert not re.search(r"weights_only|pickl|torch|Traceback|0x|\n", sentence), sentence
    assert len(sentence) < 600
