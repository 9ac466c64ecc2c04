"""Several processes that train one model: what they compute, and how they end."""

import multiprocessing
import re
import runpy
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from common.hrda import SettingsError
from common.hrda.training.ranks import Ranks
from sandbox.synthetic.projects import write_project
from train.process import run_in_process
from train.run.folder import resumable
from train.run.launched import Launched
from train.run.preparation import Domains
from train.run.processes import EndedElsewhere, device_name, part_of_batch
from train.run.request import RunRequest
from train.run.state import Progressed, TrainingError, TrainingState
from train.settings.training import TrainSettings

PROCESSES = multiprocessing.get_context("forkserver")
WORK = str(Path(__file__).with_name("ranks_at_work.py"))

SMALL = [
    "iterations=5",
    "batch_size=2",
    "log_interval=1",
    "model.encoder=mit_b0",
    "pretrained=none",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "optimizer.warmup_iterations=0",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "validation.interval=3",
    "validation.previews=0",
    "self_training.blur_probability=1",
    "self_training.jitter_probability=1",
    # Of the rules the one without a hard cut, at which rounding may decide about a pixel.
    "self_training.pseudo_label_rule=published",
]


def settings(*overrides):
    return TrainSettings().with_overrides([*SMALL, *overrides])


def together(name, *arguments, count=2, timeout=200, **options):
    """What the function `name` of ranks_at_work.py returns in each of `count` processes, or its error."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ends, processes = [], []
    for rank in range(count):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        task = (theirs, Launched(rank, count, rank, count), port, name, arguments, options)
        process = PROCESSES.Process(target=runpy.run_path, args=(WORK, {"task": task}, "at_work"), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        assert all(end.poll(timeout) for end in ends), f"no answer in {timeout} s"
        return [end.recv() for end in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, domain, count in (("source", "source", 4), ("target", "real_like", 3), ("val", "real_like", 1)):
        write_project(root / name, domain, count, seed=len(name), size=(80, 72), workers=1)
    return Domains(*(str(root / name) for name in ("source", "target", "val")))


@pytest.fixture(scope="module")
def one_and_two(domains, tmp_path_factory):
    """What one process with two crops tells, and two with one crop each."""
    root = tmp_path_factory.mktemp("runs")
    [one] = together("train", settings(), domains, root / "one", count=1)
    return one, together("train", settings(), domains, root / "two"), root


def test_two_processes_with_one_crop_learn_as_one_with_two(one_and_two):
    one, (first, second), _ = one_and_two
    assert len(one["scalars"]) == 5
    assert {"loss/source", "loss/mixed", "pseudo_label/confident_share"} <= one["scalars"][1].keys()
    for process in (first, second):
        for iteration, scalars in one["scalars"].items():
            assert process["scalars"][iteration] == pytest.approx(scalars, abs=1e-5, rel=0)


ENCODERS = pytest.mark.parametrize("encoder", ["mobilenetv4_small", "pvt_v2_b0"], ids=["batch norms", "layer norms"])


@ENCODERS
def test_norms_inside_an_encoder_see_the_whole_batch(encoder):
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64))
    [one] = together("encode", encoder, images, count=1)
    parts = together("encode", encoder, images)
    for name, wanted in one.items():
        for place, part in enumerate(parts):
            ours = wanted[place : place + 1] if name.startswith("map") else wanted
            np.testing.assert_allclose(
                part[name], ours, rtol=1e-7, atol=1e-9 * max(np.abs(ours).max(), 1), err_msg=name
            )


@ENCODERS
def test_two_processes_learn_on_another_encoder_as_one(encoder, domains, tmp_path):
    # Adam makes whole steps of rounding, of which batch norms over few values make more.
    wanted = settings(
        f"model.encoder={encoder}", "model.crop_size=[128, 128]", "iterations=2", "validation.interval=2",
        "optimizer.lr=1e-7",
    )  # fmt: skip
    [one] = together("train", wanted, domains, tmp_path / "one", count=1)
    first, second = together("train", wanted, domains, tmp_path / "two")
    for iteration, scalars in one["scalars"].items():
        assert first["scalars"][iteration] == pytest.approx(scalars, abs=1e-4, rel=0)
    for model in ("student", "teacher"):
        assert all(np.array_equal(values, second[model][name]) for name, values in first[model].items())
        for name, values in first[model].items():
            if "running" in name:
                assert values == pytest.approx(one[model][name], rel=1e-3, abs=1e-4), name


def test_class_balanced_pseudo_labels_are_those_of_the_whole_batch(domains, tmp_path):
    balanced = settings("self_training.pseudo_label_rule=class_balanced", "iterations=3")
    [one] = together("train", balanced, domains, tmp_path / "one", count=1)
    first, second = together("train", balanced, domains, tmp_path / "two")
    pixels = 2 * 64 * 64
    for iteration, scalars in one["scalars"].items():
        shares = {name: value for name, value in scalars.items() if name.startswith("pseudo_label/share")}
        assert 0 < shares["pseudo_label/share/1"] < 1
        for process in (first, second):
            found = process["scalars"][iteration]
            assert {name: found[name] for name in shares} == pytest.approx(shares, abs=4 / pixels)
            assert found["loss/mixed"] == pytest.approx(scalars["loss/mixed"], abs=1e-3)


def test_losses_of_thin_structures_are_those_of_the_whole_batch(domains, tmp_path):
    thin = settings("thin={border_px: 1, skeleton_weight: 1}", "iterations=3", "mode=control")
    [one] = together("train", thin, domains, tmp_path / "one", count=1)
    first, second = together("train", thin, domains, tmp_path / "two")
    assert one["scalars"][1]["loss/source_skeleton"] > 0
    for process in (first, second):
        for iteration, scalars in one["scalars"].items():
            assert process["scalars"][iteration] == pytest.approx(scalars, abs=1e-5, rel=0)


def test_student_and_teacher_are_the_same_in_all_processes(one_and_two):
    _, (first, second), _ = one_and_two
    for model in ("student", "teacher"):
        assert first[model].keys() == second[model].keys()
        different = [name for name, values in first[model].items() if not np.array_equal(values, second[model][name])]
        assert not different


def test_no_crop_is_trained_on_by_two_processes(one_and_two):
    one, (first, second), _ = one_and_two
    assert not set(first["sources"]) & set(second["sources"])
    assert np.add(first["sources"], second["sources"]) == pytest.approx(one["sources"], rel=1e-5)


def test_one_process_measures_and_writes(one_and_two):
    one, (first, second), _ = one_and_two
    assert (first["validated"], first["written"]) == (one["validated"], one["written"])
    assert (second["validated"], second["written"]) == (0, 0)


def test_run_goes_on_with_another_number_of_processes(one_and_two, domains):
    _, _, root = one_and_two
    more = settings("iterations=6")
    [one] = together("train", more, domains, root / "one", count=1, resume=True)
    first, second = together("train", more, domains, root / "two", resume=True)
    assert list(first["scalars"]) == [6]
    assert first["scalars"][6] == pytest.approx(one["scalars"][6], abs=1e-5, rel=0)
    assert first["iteration"] == second["iteration"] == 6


def test_wish_of_one_process_to_stop_is_all_processes_wish(domains, tmp_path):
    first, second = together("train", settings(), domains, tmp_path, stops=1)
    assert first["iteration"] == second["iteration"] == 2
    assert resumable(tmp_path).iteration == 2


def test_process_that_fails_ends_the_others_at_once(domains, tmp_path):
    first, second = together("train", settings(), domains, tmp_path, fails=1)
    assert isinstance(second, TrainingError)
    assert "Main memory has run out" in str(second)
    assert isinstance(first, EndedElsewhere)
    assert "Another of the 2 training processes has ended" in str(first)


def test_photo_that_one_process_cannot_read_is_named_by_the_first_which_saves(domains, tmp_path):
    lossy = settings("data.memory_cache_mb=0", "checkpoint.interval=99")
    first, second = together("train", lossy, domains, tmp_path, loses=1)
    assert isinstance(first, TrainingError)
    assert not isinstance(first, EndedElsewhere)
    assert re.search(r"Cannot read the image \S+: gone\. Put it back .* iteration 2 is intact", str(first))
    assert isinstance(second, EndedElsewhere)
    assert resumable(tmp_path).iteration == 2


def test_mistake_is_found_by_the_first_process_and_ends_all(domains, tmp_path):
    first, second = together("train", settings("batch_size=3"), domains, tmp_path)
    assert isinstance(first, SettingsError)
    assert "batch_size counts the crops of all 2 training processes" in str(first)
    assert isinstance(second, EndedElsewhere)
    assert str(second) == str(first)


def test_what_is_exchanged_arrives():
    for process in together("exchange"):
        assert process == {
            "gradients": [[0.5] * 3, [1.5] * 4, None],
            "scalars": {"a": 0.5},
            "any": [False, True],
            "first": "from 0",
            "copied": [[0.0, 0.0]],
        }


def test_layers_that_look_beyond_one_image_see_the_whole_batch():
    torch.manual_seed(3)
    images, weights = torch.randn(2, 4, 3, 5, 6).numpy()
    images = 3 * images + 20
    [alone] = together("normalise", images, weights, count=1)
    first, second = together("normalise", images, weights)
    for place in (0, 1):
        assert np.concatenate([first[place], second[place]]) == pytest.approx(alone[place], abs=1e-4)
    for values, same, expected in zip(first[2:], second[2:], alone[2:], strict=True):
        assert np.array_equal(values, same)
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_page_trains_in_several_processes_and_stops_them_all(domains, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    state, stop = TrainingState(), threading.Event()
    state.subscribe(lambda _, change: stop.set() if isinstance(change, Progressed) else None)
    request = RunRequest(settings("iterations=1000", "mode=source-only"), domains, tmp_path / "run", device="cpu,cpu")
    result = run_in_process(request, state=state, stop=stop)
    assert 0 < result.iteration < 1000
    assert state.phase == "stopped"
    assert [message for message in state.messages if message.startswith("Stopped")] == [
        f"Stopped after iteration {result.iteration} of 1000."
    ]
    assert resumable(tmp_path / "run").iteration == result.iteration


@pytest.mark.parametrize(
    ("wanted", "cards", "names"),
    [
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("auto", 0, ["cpu", "cpu"]),
        ("cuda", 4, ["cuda:0", "cuda:1"]),
        ("cuda:3, cuda:1", 4, ["cuda:3", "cuda:1"]),
        ("cpu", 4, ["cpu", "cpu"]),
    ],
)
def test_each_process_has_a_device_of_its_own(monkeypatch, wanted, cards, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert [device_name(wanted, Launched(rank, 2, rank, 2)) for rank in range(2)] == names


@pytest.mark.parametrize(("wanted", "cards"), [("auto", 1), ("cuda", 0), ("cuda:0", 2), ("cuda:0,cuda:0", 2)])
def test_two_processes_on_one_card_are_refused(monkeypatch, wanted, cards):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(SettingsError, match="2 training processes on this machine needs a device of its own"):
        device_name(wanted, Launched(1, 2, 1, 2))


def test_one_process_takes_the_device_that_it_is_told():
    assert [device_name(name, Launched()) for name in ("auto", "cuda:1", "gpu")] == ["auto", "cuda:1", "gpu"]
    with pytest.raises(SettingsError, match="cuda:0,cuda:1"):
        device_name("cuda:0,cuda:1", Launched())


def test_batch_is_shared_out_in_equal_parts():
    assert [part_of_batch(6, Ranks(index, 3)) for index in range(3)] == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(SettingsError, match=r"Set it to 4\. Received: 5"):
        part_of_batch(5, Ranks(0, 2))
    with pytest.raises(SettingsError, match=r"each in compute\.accumulate \(2\) parts.*Set it to 8"):
        part_of_batch(6, Ranks(0, 2), accumulate=2)


def test_variables_of_a_platform_that_are_not_torchruns_start_no_group():
    torchruns = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0"}
    assert Launched.from_environment(torchruns) == Launched(3, 4, 1, 2)
    assert Launched.from_environment({"RANK": "0", "WORLD_SIZE": "4"}).is_alone
