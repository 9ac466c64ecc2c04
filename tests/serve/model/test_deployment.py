"""A checkpoint made ready: the right pixels, classes and device, one forward pass at a time."""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor, load_checkpoint
from common.hrda.checks import CheckpointError, SettingsError
from common.hrda.prediction.runtime import TorchNetwork
from serve.errors import OutOfMemory, RequestError
from serve.model import deployment as deployment_module
from serve.model.deployment import Deployment, resolve_device
from serve.model.settings import ServeSettings
from tests.common.hrda.test_checkpoints import former_checkpoint

ROOT = Path(__file__).resolve().parents[3]


def masks_of(deployment: Deployment, images: list[np.ndarray], settings: ServeSettings) -> list[np.ndarray]:
    return [found.labels for found in deployment.predict(images, settings)]


def network(checkpoint: Path) -> TorchNetwork:
    return TorchNetwork(load_checkpoint(checkpoint).model.eval(), "cpu")


def test_masks_are_those_of_the_predictor_with_the_requests_windows(checkpoint: Path, image: np.ndarray):
    deployment = Deployment.from_file(checkpoint, "cpu")
    other = image[:70, :64]
    settings = ServeSettings(window=(64, 128), stride=(32, 64), batch_size=3)
    masks = masks_of(deployment, [image, other], settings)
    expected = Predictor(network(checkpoint), InferenceSettings(window=(64, 128), stride=(32, 64), batch_size=3))
    for mask, wanted in zip(masks, expected.predict([image, other]), strict=True):
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, wanted)
    assert masks[0].shape == (90, 140)
    assert len(np.unique(masks[0])) > 1, "a model that predicts one class everywhere proves nothing"


def test_scale_of_training_is_used_unless_told_otherwise(make_checkpoint, image: np.ndarray):
    path = make_checkpoint("scaled.pth", input={"short_edge": 64, "long_edge": 96})
    deployment = Deployment.from_file(path, "cpu")
    [trained] = masks_of(deployment, [image], ServeSettings())
    [original] = masks_of(deployment, [image], ServeSettings(input_scale="original"))
    [capped] = masks_of(deployment, [image], ServeSettings(input_scale="original", long_side=100))
    model = network(path)
    np.testing.assert_array_equal(trained, Predictor(model, input_scale=(64, 96)).predict([image])[0])
    np.testing.assert_array_equal(original, Predictor(model).predict([image])[0])
    np.testing.assert_array_equal(capped, Predictor(model, long_side=100).predict([image])[0])
    assert (trained != original).any()
    assert (capped != original).any()


def test_requests_take_turns_and_get_their_own_masks(checkpoint: Path):
    deployment = Deployment.from_file(checkpoint, "cpu")
    images = [np.random.default_rng(seed).integers(0, 256, (64, 64 + 8 * seed, 3), np.uint8) for seed in range(6)]
    alone = [masks_of(deployment, [image], ServeSettings())[0] for image in images]
    inside, most = 0, 0
    counter = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with counter:
            inside += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside
        with counter:
            inside -= 1

    answer = deployment.networks["float32", False].detail_logits

    def watched(images: torch.Tensor) -> torch.Tensor:
        enter()
        try:
            return answer(images)
        finally:
            leave()

    deployment.networks["float32", False].detail_logits = watched
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda image: masks_of(deployment, [image], ServeSettings())[0], images))
    assert most == 1
    for mask, wanted in zip(together, alone, strict=True):
        np.testing.assert_array_equal(mask, wanted)


def test_thresholds_areas_and_confidence_are_asked_for_by_class_name(checkpoint: Path, image: np.ndarray):
    deployment = Deployment.from_file(checkpoint, "cpu")
    [whole] = deployment.predict([image], ServeSettings(), probabilities=True)
    probabilities = whole.probabilities
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (len(deployment.classes), 90, 140)
    name, index = deployment.classes[1], 1
    cut = float(np.quantile(probabilities[index], 0.7))
    [found] = deployment.predict([image], ServeSettings(thresholds={name: cut}, confidence=True))
    # Float16 has rounded what lies at the cut itself.
    assert ((found.labels == index) != (probabilities[index] >= cut)).mean() < 0.01
    assert abs(found.confidences[index] - probabilities[index][found.labels == index].mean()) < 1e-2
    [cleaned] = deployment.predict([image], ServeSettings(thresholds={name: cut}, min_component=40))
    assert (cleaned.labels != found.labels).any()
    assert cleaned.confidences is None
    with pytest.raises(SettingsError, match="thresholds names 'crak'.*did you mean"):
        deployment.predict([image], ServeSettings(thresholds={"crak": 0.5}))


def test_compile_is_left_out_where_it_does_not_work_and_this_is_said_once(
    checkpoint: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(deployment_module, "why_not_compiled", lambda kind: f"no compiler for {kind}")
    monkeypatch.setattr(torch, "compile", lambda *_: pytest.fail("it was compiled"))
    deployment = Deployment.from_file(checkpoint, "cpu")
    [plain] = masks_of(deployment, [image], ServeSettings())
    for _ in range(2):
        [found] = masks_of(deployment, [image], ServeSettings(compile=True))
        np.testing.assert_array_equal(found, plain)
    assert [record.getMessage() for record in caplog.records] == ["no compiler for cpu"]
    assert list(deployment.networks) == [("float32", False)]


def test_compiler_that_is_missing_is_found_out_by_a_small_trial(tmp_path: Path):
    program = "from common.hrda.prediction.runtime import why_not_compiled; print(why_not_compiled('cpu'))"
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    env = kept | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "needs a C++ compiler (g++). Predicted without it." in done.stdout


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_FULL, MemoryError()], ids=["GPU", "CPU", "Python"]
)
def test_less_memory_than_a_batch_needs_makes_batches_smaller(checkpoint: Path, image: np.ndarray, error: Exception):
    deployment = Deployment.from_file(checkpoint, "cpu")
    expected = masks_of(deployment, [image], ServeSettings())
    answer, most = deployment.networks["float32", False].detail_logits, 2

    def scarce(images: torch.Tensor) -> torch.Tensor:
        if len(images) > most:
            raise error
        return answer(images)

    deployment.networks["float32", False].detail_logits = scarce
    np.testing.assert_array_equal(masks_of(deployment, [image], ServeSettings(batch_size=8))[0], expected[0])
    most = 0
    with pytest.raises(OutOfMemory, match=r"does not suffice for one window of \(64, 64\) pixels.*long_side"):
        deployment.predict([image], ServeSettings())


def test_error_of_another_kind_is_not_tried_again(checkpoint: Path, image: np.ndarray):
    deployment, tries = Deployment.from_file(checkpoint, "cpu"), []

    def fail(images: torch.Tensor) -> torch.Tensor:
        tries.append(len(images))
        raise RuntimeError("shapes do not match")

    deployment.networks["float32", False].detail_logits = fail
    with pytest.raises(RuntimeError, match="shapes do not match"):
        deployment.predict([image], ServeSettings())
    assert len(tries) == 1


@pytest.mark.parametrize(
    "array", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), "u1")]
)
def test_arrays_that_are_no_rgb_images_are_refused(checkpoint: Path, array: np.ndarray):
    with pytest.raises(RequestError, match="8-bit RGB images.*Received"):
        Deployment.from_file(checkpoint, "cpu").predict([array], ServeSettings())


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "'cpu' or 'cuda:N'"), ("meta", "'cpu' or 'cuda:N'"), (None, "'cpu' or"), ("cuda:77", "torch sees")],
)
def test_devices_that_are_not_here_are_refused(device: str | None, message: str):
    with pytest.raises(RequestError, match=message):
        resolve_device(device)


def test_class_that_is_named_twice_is_refused(make_checkpoint):
    with pytest.raises(CheckpointError, match="names of which none comes twice"):
        Deployment.from_file(make_checkpoint("twice.pth", classes=("__bg__", "crack", "crack")), "cpu")


def test_former_apps_checkpoint_brings_its_classes_and_palette_and_runs_nothing(tmp_path: Path, image: np.ndarray):
    settings = ModelSettings(
        encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=16, attention_channels=16
    )
    ran = tmp_path / "ran"
    program = f"crop_size = (64, 64)\nopen({str(ran)!r}, 'w')"
    (tmp_path / "config.py").write_text(program, encoding="utf-8")
    model, teacher = build_segmentor(settings).eval(), build_segmentor(settings)
    meta = {"CLASSES": ["__bg__", "crack"], "PALETTE": [[0, 0, 0], [255, 0, 0]], "config": program}
    deployment = Deployment.from_file(former_checkpoint(tmp_path / "best.pth", model, teacher, **meta), "cpu")
    assert deployment.classes == ("__bg__", "crack")
    assert deployment.palette == ((0, 0, 0), (255, 0, 0))
    assert deployment.encoder == "mit_b0"
    [mask] = masks_of(deployment, [image], ServeSettings())
    np.testing.assert_array_equal(mask, Predictor(TorchNetwork(model, "cpu")).predict([image])[0])
    assert not ran.exists()


def test_checkpoint_that_would_run_code_is_refused_unopened(tmp_path: Path):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"state_dict": {}, "extra": Attack()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Attack()}))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not opened"):
            Deployment.from_file(tmp_path / name, "cpu")
    assert not ran.exists()
