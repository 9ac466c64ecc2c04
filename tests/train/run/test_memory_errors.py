"""Running out of memory, on devices that pretend to be small."""

import dataclasses

import pytest
import torch

from common.data.datasets import Batch
from common.hrda import Predictor
from common.hrda.training.ranks import ALONE
from common.hrda.training.self_training import SelfTraining
from sandbox.synthetic.projects import write_project
from train.run import memory_errors
from train.run.engine import run
from train.run.learner import Learner
from train.run.memory_errors import explained_measuring, explained_memory, is_out_of_memory, learn_or_explain
from train.run.preparation import Domains
from train.run.request import RunRequest
from train.run.state import TrainingError, TrainingState
from train.run.watch import FINITE
from train.settings.training import TrainSettings

CPU = torch.device("cpu")
SETTINGS = TrainSettings().with_overrides(["batch_size=4", "model.crop_size=[1024, 1024]"])
CUDA_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


class SmallDevice:
    """Learns from as many images as it has room for."""

    device, ranks = CPU, ALONE

    def __init__(self, room, error=CPU_ERROR):
        self.room, self.error, self.tried, self.freed = room, error, [], 0

    def learn(self, batch, done):
        count = len(batch.source_images)
        assert len(batch.source_labels) == len(batch.target_images) == count
        self.tried.append(count)
        if count > self.room:
            raise self.error
        return {"loss": torch.tensor(0.5)}

    def forget_gradients(self):
        self.freed += 1


def batch(count):
    return Batch(torch.zeros(count, 3, 8, 8), torch.zeros(count, 8, 8), torch.zeros(count, 3, 8, 8), None)


@pytest.mark.parametrize("error", [CUDA_ERROR, CPU_ERROR, RuntimeError("cublas: CUBLAS_STATUS_ALLOC_FAILED")])
def test_batch_that_does_not_fit_ends_with_the_one_that_does(error, monkeypatch):
    monkeypatch.setattr(memory_errors, "describe", lambda device: "cuda:0 (23.6 GiB)")
    device = SmallDevice(2, error)
    with pytest.raises(TrainingError) as caught:
        learn_or_explain(device, batch(4), 0, SETTINGS)
    assert str(caught.value) == (
        "Out of memory on cuda:0 (23.6 GiB) at iteration 1: batch_size 4 with crop_size 1024×1024 does not fit; "
        "batch_size 2 does. With compute.accumulate 2 the batch can stay as large as it is, in more time. Or choose "
        "compute.activation_checkpointing (less memory in more time), crop_size 768×768 or a smaller encoder than "
        "pvt_v2_b2."
    )
    assert device.tried == [4, 3, 2]
    assert device.freed == 2


def test_crop_that_never_fits_is_what_has_to_change():
    smallest = SETTINGS.with_overrides(["model.encoder=mit_b0", "compute.activation_checkpointing=true"])
    with pytest.raises(TrainingError, match=r"not even with batch_size 1\. Choose crop_size 768×768\.$"):
        learn_or_explain(SmallDevice(0), batch(4), 9, smallest)


def test_other_errors_of_a_step_stay_what_they_are():
    other = RuntimeError("shapes differ")
    device = SmallDevice(0, other)
    with pytest.raises(RuntimeError) as caught:
        learn_or_explain(device, batch(4), 0, SETTINGS)
    assert caught.value is other
    assert device.tried == [4]
    assert not is_out_of_memory(ValueError("out of memory"))
    assert learn_or_explain(SmallDevice(4), batch(4), 0, SETTINGS) == {"loss": torch.tensor(0.5)}


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        (
            "inference.batch_size=4",
            r"Lower inference\.batch_size \(4 windows of 1024×1024 at once\) to 2, and continue",
        ),
        ("inference.batch_size=1", r"Set inference\.window to \[768, 768\] \(now 1024×1024\), and continue"),
    ],
)
def test_measuring_that_does_not_fit_names_what_bounds_it(override, remedy):
    settings = SETTINGS.with_overrides([override])
    message = rf"the CPU \([\d.]+ GiB\) while validation photos .* after iteration 7. {remedy}"
    with pytest.raises(TrainingError, match=message), explained_measuring(settings, CPU, 7):
        raise CPU_ERROR


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            MemoryError(),
            r"Main memory has run out \(there are \d+\.\d GiB\)\. Lower data\.workers \(2\), data\.memory_cache_mb",
        ),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "ended a process that prepares"),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "ended a process that prepares"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's"),
            "Shared memory.*--shm-size",
        ),
        (CPU_ERROR, "Main memory has run out"),
    ],
)
def test_memory_that_runs_out_elsewhere_has_a_sentence_too(error, message):
    with pytest.raises(TrainingError, match=message), explained_memory(SETTINGS, CPU):
        raise error
    with pytest.raises(RuntimeError, match="shapes differ"), explained_memory(SETTINGS, CPU):
        raise RuntimeError("shapes differ")


def test_device_without_room_for_the_networks_is_named(monkeypatch):
    monkeypatch.setattr(memory_errors, "describe", lambda device: "cuda:1 (15.7 GiB)")
    message = (
        r"^Out of memory on cuda:1 \(15\.7 GiB\): there is no room for the networks\..* or choose crop_size 768×768"
    )
    with pytest.raises(TrainingError, match=message), explained_memory(SETTINGS, torch.device("cuda", 1)):
        raise CUDA_ERROR


@pytest.fixture
def domains(tmp_path):
    for seed, name in enumerate(("photos", "val")):
        write_project(tmp_path / name, "source", 1, seed=seed, size=(64, 64), workers=1)
    return Domains(str(tmp_path / "photos"), None, str(tmp_path / "val"))


SMALL = TrainSettings().with_overrides(
    [
        "mode=source-only",
        "iterations=2",
        "batch_size=2",
        "model.encoder=mit_b0",
        "data.scale={long_edge: null, short_edge: null}",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=8",
        "model.attention_channels=8",
        "optimizer.warmup_iterations=0",
        "data.workers=0",
        "validation.interval=1",
    ]
)


def test_run_names_the_batch_that_fits(domains, tmp_path, monkeypatch):
    step = SelfTraining.step

    def small(training, images, *arguments, **options):
        if len(images) > 1:
            raise CPU_ERROR
        return step(training, images, *arguments, **options)

    monkeypatch.setattr(SelfTraining, "step", small)
    with pytest.raises(TrainingError, match="at iteration 1: batch_size 2 .*; batch_size 1 does"):
        run(RunRequest(SMALL, domains, tmp_path / "run", device="cpu"))


def test_what_was_learnt_before_a_failed_measurement_is_kept(domains, tmp_path, monkeypatch):
    predict = Predictor.predict_with_probabilities

    def small(predictor, image):
        if predictor.settings.batch_size > 2:
            raise CPU_ERROR
        return predict(predictor, image)

    monkeypatch.setattr(Predictor, "predict_with_probabilities", small)
    monkeypatch.setattr(Learner, "learn", lambda *_: {FINITE: torch.tensor(True)})
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"after iteration 1\. Lower inference\.batch_size \(4 .*\) to 2"):
        run(RunRequest(SMALL, domains, out, device="cpu"))
    state = TrainingState()
    smaller = dataclasses.replace(SMALL, inference=dataclasses.replace(SMALL.inference, batch_size=2))
    assert run(RunRequest(smaller, domains, out, device="cpu", resume=True), state=state).iteration == 2
    assert [validated.iteration for validated in state.validations] == [2]


def test_batch_that_is_computed_in_parts_is_tried_and_advised_in_whole_parts():
    parts = SETTINGS.with_overrides(["batch_size=8", "compute.accumulate=2"])
    device = SmallDevice(4)
    with pytest.raises(TrainingError, match="batch_size 4 does. With compute.accumulate 4 the batch can stay"):
        learn_or_explain(device, batch(8), 0, parts)
    assert device.tried == [8, 6, 4]


def test_memory_of_a_container_counts_as_the_machines(tmp_path, monkeypatch):
    limits = [tmp_path / name for name in ("memory.max", "limit_in_bytes", "missing")]
    monkeypatch.setattr(memory_errors, "_CONTAINER_LIMITS", limits)
    limits[0].write_text("max\n")
    machine = memory_errors.main_memory()
    assert machine > 2**28
    limits[1].write_text(f"{2**20}\n")
    assert memory_errors.main_memory() == 2**20
