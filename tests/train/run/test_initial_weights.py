"""What a run starts from: asked for, found or refused before any work, and really in the network then."""

import pytest
import torch

from common.hrda import SettingsError, build_segmentor
from common.hrda.catalogue import ENCODERS
from common.hrda.network import downloads
from common.hrda.settings import ModelSettings
from tests.weights import NOWHERE, digest, encoder_state, publishing, save, under_segformer_names
from train.run.initial_weights import (
    Start,
    choose_start,
    frozen_encoder,
    load_initial_weights,
    on_this_machine,
    recorded_pretrained,
    start_from,
)
from train.settings.training import TrainSettings

MODEL = ModelSettings(encoder="mit_b0", crop_size=(64, 64), decoder_channels=8, attention_channels=8)
CLASSES = ("__bg__", "crack")
DISTANCE = ("self_training.feature_distance_weight=0.005", "self_training.feature_distance_classes=[crack]")


@pytest.fixture(scope="module")
def state():
    return encoder_state()


@pytest.fixture(scope="module")
def encoder_file(state, tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "mine.pth", state)


@pytest.fixture
def published(encoder_file, monkeypatch):
    """A server with ImageNet weights of mit_b0, as everything else believes."""
    with publishing(encoder_file, monkeypatch) as server:
        yield server


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.FOLDER, str(tmp_path / "kept"))
    monkeypatch.setenv(downloads.PRIVATE, "true")
    return tmp_path / "kept"


@pytest.fixture
def settings(kept):
    def make(*overrides):
        return TrainSettings().with_overrides(["model.encoder=mit_b0", *overrides])

    return make


def choose(settings, init=None, **options):
    said, told = [], []
    start = choose_start(settings, init, said.append, lambda *report: told.append(report), **options)
    return start, said, told


def test_default_starts_from_random_weights_and_asks_nobody(settings, published):
    assert TrainSettings().pretrained == "none"
    assert choose(settings()) == (Start(), [], [])
    assert published.asked == []


@pytest.mark.parametrize("wanted", ["imagenet", "auto"])
def test_imagenet_weights_are_fetched_and_their_licence_is_said(settings, published, kept, state, wanted):
    start, said, told = choose(settings(f"pretrained={wanted}"))
    assert start.pretrained == "imagenet" and start.encoder.parent == kept
    assert "non-commercial" in said[0]
    assert told[-1] == (start.encoder.name, start.encoder.stat().st_size, start.encoder.stat().st_size)
    student = build_segmentor(MODEL)
    start_from(student, start, CLASSES, said.append)
    assert all(torch.equal(value, state[name]) for name, value in student.backbone.state_dict().items())
    assert len(published.asked) == 1
    assert choose(settings(f"pretrained={wanted}"))[2] == [], "the second run finds them"


def test_weights_that_cannot_be_had_are_said_or_refused_as_the_setting_asks(settings, monkeypatch, kept):
    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
    start, [sentence], _ = choose(settings("pretrained=auto"))
    assert start == Start()
    assert "not used" in sentence and f"put it at {kept / ENCODERS['mit_b0'].weights_file}" in sentence
    with pytest.raises(SettingsError, match="put it at .* Or set pretrained: none"):
        choose(settings("pretrained=imagenet"))
    with pytest.raises(SettingsError, match="put it at"):
        choose(settings("pretrained=auto", *DISTANCE))


def test_file_of_ones_own_is_used_without_a_server(settings, encoder_file):
    start, said, _ = choose(settings(f"pretrained={encoder_file}"))
    assert (start, said) == (Start(None, encoder_file, str(encoder_file)), [])


def test_file_at_an_address_is_checked_by_its_sum(settings, published, encoder_file, kept):
    url = published.offer(encoder_file, "own.pth")
    start, _, _ = choose(settings(f"pretrained={url}#sha256={digest(encoder_file)}"))
    assert start.encoder == kept / "own.pth"
    with pytest.raises(SettingsError, match="does not say its SHA-256 sum"):
        choose(settings(f"pretrained={url}"))


def test_other_encoder_than_that_of_the_settings_is_refused_before_any_work(settings, encoder_file):
    with pytest.raises(SettingsError, match=r"mine.pth is mit_b0, and model.encoder is mit_b1"):
        choose(settings("model.encoder=mit_b1", f"pretrained={encoder_file}"))
    with pytest.raises(SettingsError, match="There is no file"):
        choose(settings("pretrained=weights/none.pth"))


@pytest.mark.parametrize(
    ("typed", "hint"), [("imagnet", "did you mean 'imagenet'"), ("3", "path or URL"), ("''", "path")]
)
def test_mistyped_setting_is_refused_with_what_was_meant(typed, hint):
    with pytest.raises(SettingsError, match=hint):
        TrainSettings().with_overrides([f"pretrained={typed}"])


def test_null_and_no_mean_none():
    assert {TrainSettings.from_yaml(f"pretrained: {typed}").pretrained for typed in ("null", "no", "none")} == {"none"}


def test_checkpoint_comes_before_pretrained_weights(settings, published, encoder_file):
    start, said, _ = choose(settings("pretrained=imagenet"), encoder_file)
    assert (start, said, published.asked) == (Start(encoder_file), [], [])


def test_resumed_run_needs_no_weights_and_keeps_what_it_started_from(settings, published, tmp_path):
    assert choose(settings("pretrained=auto"), resumed_from="imagenet")[0] == Start(pretrained="imagenet")
    assert choose(settings("pretrained=auto"), resumed_from="none")[0] == Start()
    assert published.asked == []
    (tmp_path / "settings.yaml").write_text(settings("pretrained=imagenet").to_yaml())
    assert recorded_pretrained(tmp_path / "settings.yaml") == "imagenet"
    (tmp_path / "settings.yaml").write_text("mode: uda")
    assert recorded_pretrained(tmp_path / "settings.yaml") == "none"
    assert recorded_pretrained(tmp_path / "missing.yaml") == "none"


def test_feature_distance_compares_with_the_pretrained_encoder_whatever_the_student_starts_from(
    settings, published, state, tmp_path
):
    other = save(tmp_path / "other.pth", encoder_state(seed=1))
    for init, resumed_from in ((other, None), (None, "imagenet"), (None, None)):
        chosen = settings("pretrained=auto", *DISTANCE)
        start, said, _ = choose(chosen, init, resumed_from=resumed_from)
        student = build_segmentor(MODEL)
        start_from(student, start, CLASSES, said.append)
        reference = frozen_encoder(student, start, chosen.self_training)
        assert all(torch.equal(value, state[name]) for name, value in reference.state_dict().items())
        assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    assert frozen_encoder(student, start, settings().self_training) is None


def test_feature_distance_without_pretrained_weights_compares_with_the_start(settings, encoder_file, state):
    chosen = settings(*DISTANCE)
    with pytest.raises(SettingsError, match="Set pretrained: imagenet"):
        choose(chosen)
    with pytest.raises(SettingsError, match="Set pretrained: imagenet"):
        choose(settings("pretrained=auto", *DISTANCE), resumed_from="none")
    start, said, _ = choose(chosen, encoder_file)
    student = build_segmentor(MODEL)
    start_from(student, start, CLASSES, said.append)
    reference = frozen_encoder(student, start, chosen.self_training)
    assert torch.equal(reference.state_dict()["layers.3.2.bias"], state["layers.3.2.bias"])


def test_process_on_another_machine_fetches_what_the_first_one_chose(settings, published, kept):
    elsewhere = Start(None, kept / "not here" / "file.pth", "imagenet")
    assert on_this_machine(elsewhere, settings("pretrained=imagenet")).encoder.is_file()
    assert on_this_machine(Start(), settings()) == Start()


def test_published_encoder_file_loads_without_its_imagenet_classifier(state, tmp_path):
    published = under_segformer_names(state) | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    path = save(tmp_path / "mit_b0.pth", published)
    student = build_segmentor(MODEL)
    sentence = load_initial_weights(student, path, CLASSES)
    assert sentence.startswith("Encoder weights loaded") and sentence.endswith("Left out: head.weight, head.bias.")
    assert all(torch.equal(value, state[name]) for name, value in student.backbone.state_dict().items())


def test_decoder_of_a_segmentor_is_left_out_and_counted(state, tmp_path):
    decoder = {f"decode_head.convs.{number}.bias": torch.zeros(8) for number in range(6)}
    path = save(tmp_path / "segformer.pth", {"state_dict": {f"backbone.{n}": v for n, v in state.items()} | decoder})
    assert load_initial_weights(build_segmentor(MODEL), path, CLASSES).endswith("Left out: 6 of decode_head.")


def test_incomplete_encoder_is_nothing_to_start_from(state, tmp_path):
    path = save(tmp_path / "half.pth", {n: v for n, v in state.items() if n != "layers.0.2.bias"})
    with pytest.raises(SettingsError, match=r"nothing to start from.*lacks 'layers.0.2.bias'"):
        load_initial_weights(build_segmentor(MODEL), path, CLASSES)
