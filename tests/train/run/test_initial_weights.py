"""What a run starts from: asked for, found or refused before any work, and really in the network then."""

from dataclasses import replace

import pytest
import torch

from common.hrda import CheckpointBundle, SettingsError, build_segmentor, save_checkpoint
from common.hrda.catalogue import DEFAULT, DEFAULT_ON_CPU, ENCODERS, is_non_commercial
from common.hrda.network import downloads
from common.hrda.settings import ModelSettings
from tests.weights import NOWHERE, digest, encoder_state, free_to_use, publishing, save, under_segformer_names
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


def test_random_weights_ask_nobody(settings, published):
    assert choose(settings("pretrained=none")) == (Start(), [], [])
    assert published.asked == []


def test_non_commercial_weights_are_taken_only_where_they_are_asked_for(settings, published, encoder_file):
    assert TrainSettings().pretrained == "auto"
    start, [sentence], _ = choose(settings())
    assert start == Start() and published.asked == []
    assert sentence.startswith("The encoder starts from random weights. The published weights of mit_b0 are non-comm")
    assert sentence.endswith("asked for, with pretrained: imagenet.")
    assert choose(settings(*DISTANCE), encoder_file)[1] == [sentence.partition("weights. ")[2]]
    with pytest.raises(SettingsError, match="non-commercial .* with pretrained: imagenet. .* or set it to 0"):
        choose(settings(*DISTANCE))


def test_the_default_encoder_has_weights_that_are_not_marked_non_commercial():
    for name in (DEFAULT, DEFAULT_ON_CPU, TrainSettings().model.encoder):
        assert not is_non_commercial(ENCODERS[name].weights_licence)
    assert all(is_non_commercial(said) for said in ("cc-by-nc-4.0", "CC BY-NC-SA", "non-commercial", "Noncommercial"))


@pytest.mark.parametrize("wanted", ["imagenet", "auto"])
def test_imagenet_weights_are_fetched_and_their_licence_is_said(settings, published, kept, state, wanted, monkeypatch):
    if wanted == "auto":
        free_to_use(monkeypatch)
    start, said, told = choose(settings(f"pretrained={wanted}"))
    assert start.pretrained == "imagenet" and start.encoder.parent == kept
    assert ("apache-2.0" if wanted == "auto" else "non-commercial") in said[0]
    assert told[-1] == (start.encoder.name, start.encoder.stat().st_size, start.encoder.stat().st_size)
    student = build_segmentor(MODEL)
    start_from(student, start, CLASSES, said.append)
    assert all(torch.equal(value, state[name]) for name, value in student.backbone.state_dict().items())
    assert len(published.asked) == 1
    assert choose(settings(f"pretrained={wanted}"))[2] == [], "the second run finds them"


def test_weights_that_cannot_be_had_are_said_or_refused_as_the_setting_asks(settings, monkeypatch, kept):
    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
    free_to_use(monkeypatch)
    start, [sentence], _ = choose(settings("pretrained=auto"))
    assert start == Start()
    assert "not used" in sentence and f"put it at {kept / ENCODERS['mit_b0'].weights_source}" in sentence
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
        chosen = settings("pretrained=imagenet", *DISTANCE)
        start, said, _ = choose(chosen, init, resumed_from=resumed_from)
        student = build_segmentor(MODEL)
        start_from(student, start, CLASSES, said.append)
        reference = frozen_encoder(student, start, chosen.self_training)
        assert all(torch.equal(value, state[name]) for name, value in reference.state_dict().items())
        assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    assert frozen_encoder(student, start, settings().self_training) is None


def test_feature_distance_without_pretrained_weights_compares_with_the_start(settings, encoder_file, state):
    chosen = settings("pretrained=none", *DISTANCE)
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
    sentence, origin = load_initial_weights(student, path, CLASSES)
    assert (origin.source, origin.licence) == ("the file mit_b0.pth", "of the file")
    assert sentence.startswith("Encoder weights loaded") and sentence.endswith("Left out: head.weight, head.bias.")
    assert all(torch.equal(value, state[name]) for name, value in student.backbone.state_dict().items())


def test_decoder_of_a_segmentor_is_left_out_and_counted(state, tmp_path):
    decoder = {f"decode_head.convs.{number}.bias": torch.zeros(8) for number in range(6)}
    path = save(tmp_path / "segformer.pth", {"state_dict": {f"backbone.{n}": v for n, v in state.items()} | decoder})
    assert load_initial_weights(build_segmentor(MODEL), path, CLASSES)[0].endswith("Left out: 6 of decode_head.")


def test_incomplete_encoder_is_nothing_to_start_from(state, tmp_path):
    path = save(tmp_path / "half.pth", {n: v for n, v in state.items() if n != "layers.0.2.bias"})
    with pytest.raises(SettingsError, match=r"nothing to start from.*lacks 'layers.0.2.bias'"):
        load_initial_weights(build_segmentor(MODEL), path, CLASSES)


def trained(path, classes, **changes):
    """A checkpoint of a network with these classes, and the network."""
    model = replace(MODEL, num_classes=len(classes), **changes)
    torch.manual_seed(3)
    student = build_segmentor(model).eval()
    for module in student.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    palette = tuple((0, 0, index) for index in range(len(classes)))
    save_checkpoint(path, CheckpointBundle(student, tuple(classes), palette, settings={"model": model.to_dict()}))
    return student


def started(path, classes, **changes):
    """A network with these classes that starts from the checkpoint, what it was before, and what was said."""
    torch.manual_seed(4)
    student = build_segmentor(replace(MODEL, num_classes=len(classes), **changes)).eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    return student, before, load_initial_weights(student, path, classes)[0]


HAD = ("__bg__", "crack", "patch", "seal")
LAST = ("decode_head.head.conv_seg.weight", "decode_head.head.conv_seg.bias")
LAST_OF_ATTENTION = ("decode_head.scale_attention.conv_seg.weight", "decode_head.scale_attention.conv_seg.bias")


@pytest.mark.parametrize("classwise", [True, False], ids=["attention by class", "one attention"])
def test_same_classes_in_another_order_give_the_same_logits_in_that_order(tmp_path, classwise):
    original = trained(tmp_path / "a.pth", HAD, attention_classwise=classwise)
    wanted = ("seal", "__bg__", "patch", "crack")
    student, _, said = started(tmp_path / "a.pth", wanted, attention_classwise=classwise)
    assert said.startswith("All weights loaded") and "another order" in said
    photo = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, found = original.crop_logits(photo), student.crop_logits(photo)
    assert expected.std(dim=1).mean() > 1e-3, "classes that cannot be told apart prove nothing"
    torch.testing.assert_close(found, expected[:, [HAD.index(name) for name in wanted]])


def test_rows_of_shared_classes_are_kept_and_those_of_new_ones_are_random(tmp_path):
    original = trained(tmp_path / "a.pth", HAD).state_dict()
    student, before, said = started(tmp_path / "a.pth", ("__bg__", "moss", "seal"))
    assert "kept: __bg__, seal; starting from random weights: moss; left out: crack, patch" in said
    state = student.state_dict()
    for name in LAST + LAST_OF_ATTENTION:
        for place, former in ((0, 0), (2, 3)):
            assert torch.equal(state[name][place], original[name][former])
        assert torch.equal(state[name][1], before[name][1])
    others = state.keys() - set(LAST + LAST_OF_ATTENTION)
    assert all(torch.equal(state[name], original[name]) for name in others)


def test_fine_branch_begins_on_a_trained_network_as_if_it_were_not_there(tmp_path):
    original = trained(tmp_path / "a.pth", HAD)
    student, _, said = started(tmp_path / "a.pth", HAD, fine_branch=True)
    assert said.startswith("All weights loaded") and said.endswith("The fine branch is new.")
    photo = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        coarse, fine = original.detail_logits(photo), student.detail_logits(photo)
    expected = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    assert expected.std(dim=1).mean() > 1e-3
    torch.testing.assert_close(fine, expected)
    with_it = trained(tmp_path / "b.pth", HAD, fine_branch=True).state_dict()
    without, _, said = started(tmp_path / "b.pth", HAD)
    assert said.endswith("The fine branch is left out.")
    assert all(torch.equal(value, with_it[name]) for name, value in without.state_dict().items())


def test_decoder_of_another_build_starts_at_random_and_this_is_said(tmp_path):
    original = trained(tmp_path / "a.pth", HAD).state_dict()
    for change in ({"decoder_channels": 16}, {"attention_channels": 16}, {"attention_classwise": False}):
        student, before, said = started(tmp_path / "a.pth", HAD, **change)
        assert said.startswith("Encoder weights loaded") and "other channels or another attention" in said
        state = student.state_dict()
        assert all(torch.equal(state[name], original[name]) for name in state if name.startswith("backbone."))
        assert all(torch.equal(state[name], before[name]) for name in state if name.startswith("decode_head."))


@pytest.mark.parametrize("text", ["# A page\n", "croot:x:0\nroot:x:0\n"], ids=["page", "like a pickle"])
def test_file_that_is_no_weights_is_told_in_our_words_alone(settings, tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"nothing to start from: .*README.md is not .*not opened") as as_start:
        load_initial_weights(build_segmentor(MODEL), path, CLASSES)
    with pytest.raises(SettingsError, match=r"README.md is not .*not opened") as as_pretrained:
        choose(settings(f"pretrained={path}"))
    for refused in (as_start, as_pretrained):
        assert not any(word in str(refused.value) for word in ("weights_only", "pickle", "A page", "x:0", "torch"))
