"""A run from pretrained weights: told as it goes, recorded in what it leaves behind, continued without a server."""

import threading

import pytest

from common.hrda import load_checkpoint
from sandbox.synthetic.projects import write_project
from tests.weights import NOWHERE, encoder_state, free_to_use, publishing, save
from train.page.monitor import _doing
from train.run.engine import run
from train.run.preparation import Domains
from train.run.readers import ProgressLines
from train.run.request import RunRequest
from train.run.state import Downloading, PhaseChanged, Progressed, Said, TrainingError, TrainingState, decode, encode
from train.settings.training import TrainSettings


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, domain in (("source", "source"), ("val", "real_like")):
        write_project(root / name, domain, 2, size=(64, 80), workers=1)
    return Domains(str(root / "source"), None, str(root / "val"))


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAINED_WEIGHTS_DIR", str(tmp_path / "kept"))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "mine.pth", encoder_state())


def settings(*overrides):
    """One in which nothing is random once the weights are drawn: at first, the student's features are the encoder's."""
    return TrainSettings().with_overrides(
        [
            "mode=source-only", "iterations=2", "batch_size=2", "log_interval=1", "pretrained=imagenet",
            "model.encoder=mit_b0", "model.crop_size=[64, 64]",
            "model.decoder_channels=8", "model.attention_channels=8", "model.drop_path=0", "model.dropout=0",
            "self_training.feature_distance_weight=1", "self_training.feature_distance_classes=[__bg__]",
            "optimizer.lr=1e-3", "optimizer.warmup_iterations=0", "data.workers=0",
            "data.scale={long_edge: null, short_edge: null}", "validation={max_images: 1, previews: 0}", *overrides,
        ]
    )  # fmt: skip


def test_run_starts_from_the_weights_and_records_it(domains, encoder_file, tmp_path, monkeypatch, capsys):
    changes, state = [], TrainingState()
    state.subscribe(lambda _, change: changes.append(change))
    state.subscribe(ProgressLines())
    out = tmp_path / "run"
    with publishing(encoder_file, monkeypatch):
        run(RunRequest(settings(), domains, out, device="cpu"), state=state)
    coming = [change for change in changes if isinstance(change, Downloading)]
    assert coming[-1].received == coming[-1].size == encoder_file.stat().st_size
    assert state.downloading is None
    said = [change.text for change in changes if isinstance(change, Said)]
    assert any("non-commercial" in text for text in said)
    assert any(text.startswith("Encoder weights loaded from") for text in said)
    assert "downloading mit_b0_made" in capsys.readouterr().out
    distances = [change.scalars["loss/feature_distance"] for change in changes if isinstance(change, Progressed)]
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert distances[1] > 1e-3
    for recorded in (
        TrainSettings.from_yaml((out / "settings.yaml").read_text()).pretrained,
        load_checkpoint(out / "checkpoints" / "last.pth").settings["pretrained"],
    ):
        assert recorded == "imagenet"

    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
    with monkeypatch.context() as patch, publishing(encoder_file, patch):
        patch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
        run(RunRequest(settings("iterations=3"), domains, out, device="cpu", resume=True))
    last = load_checkpoint(out / "checkpoints" / "last.pth")
    assert last.iteration == 3
    assert "mmsegmentation" in last.metadata.weights_origin.source
    assert "non-commercial" in last.metadata.weights_origin.licence
    assert TrainSettings.from_yaml((out / "settings.yaml").read_text()).pretrained == "imagenet"


def test_run_without_a_server_says_so_and_starts_from_random_weights(domains, tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
    free_to_use(monkeypatch)
    state, off = TrainingState(), ("self_training.feature_distance_weight=0", "pretrained=auto")
    run(RunRequest(settings(*off, "iterations=1"), domains, tmp_path / "run", device="cpu"), state=state)
    assert any("not used" in text and "put it at" in text for text in state.messages)
    assert TrainSettings.from_yaml((tmp_path / "run" / "settings.yaml").read_text()).pretrained == "none"


def test_stop_during_a_download_ends_it(domains, encoder_file, tmp_path, monkeypatch):
    stop = threading.Event()
    stop.set()
    with publishing(encoder_file, monkeypatch), pytest.raises(TrainingError, match="Stopped while mit_b0_made"):
        run(RunRequest(settings(), domains, tmp_path / "run", device="cpu"), stop=stop)
    assert not list((tmp_path / "kept").iterdir())


def test_page_and_other_processes_hear_how_far_a_download_is():
    state = TrainingState()
    for change in (PhaseChanged("preparing"), Downloading("mit_b5.pth", 120_000_000, 328_000_000)):
        assert decode(encode(change)) == change
        state.apply(change)
    assert _doing(state) == "Preparing: downloading mit_b5.pth, 120 of 328 MB"
    state.apply(Downloading("mit_b5.pth", 328_000_000, 328_000_000))
    assert _doing(state) == "Preparing: reading the photos"
    state.apply(Downloading("mit_b5.pth", 5_000_000, None))
    assert _doing(state) == "Preparing: downloading mit_b5.pth, 5 MB"
    state.apply(PhaseChanged("training"))
    assert state.downloading is None
