import numpy as np
import pytest
import torch
from PIL import Image

from common.data.labels import resize_labels
from common.data.validation import ValidationPhoto
from common.hrda import build_segmentor
from common.hrda.pixels import normalise
from common.hrda.sliding import sliding_logits
from common.hrda.training.pseudo_labels import pseudo_labels
from train.run import previews
from train.run.preparation import PreparedData
from train.run.previews import PreviewWriter, believe, evenly, heat_map, overlay, small_size
from train.run.validation import Measurement
from train.settings.training import TrainSettings

RED, BLUE = (220, 20, 60), (0, 0, 255)
SETTINGS = TrainSettings().with_overrides(
    ["data.scale={long_edge: null, short_edge: null}", "self_training.pseudo_label_threshold=0.9"]
)


def data(validation=0, target=()):
    photos = [(f"{number}.png", f"{number}.mask.png") for number in range(validation)]
    return PreparedData(("__bg__", "crack", "joint"), ((0, 0, 0), RED, BLUE), [], (1, 0, 0), list(target), photos)


def measurement(teacher_is_better=False, iteration=20):
    return Measurement(iteration, 0.5, teacher_is_better, {})


class Teacher(torch.nn.Module):
    num_classes = 3


def near(pixel, colour, tolerance=14):
    return (np.abs(pixel.astype(int) - np.array(colour)) <= tolerance).all()


def test_same_photos_every_time_and_all_where_there_are_few():
    assert evenly(100, 4) == [0, 33, 66, 99]
    assert evenly(3, 4) == [0, 1, 2]
    assert evenly(0, 4) == evenly(5, 0) == []
    assert evenly(5, 1) == [0]


def test_thin_crack_of_a_large_photo_is_seen_in_the_small_picture():
    labels = np.zeros((3000, 4000), np.uint8)
    labels[:, 1001:1003] = 2
    small = resize_labels(labels, small_size(labels.shape))
    assert small.shape == (480, 640)
    assert (small.max(axis=1) == 2).all()
    assert (small > 0).sum() <= 2 * 480


def test_small_photo_keeps_its_size_and_a_narrow_one_its_side():
    assert small_size((96, 80)) == (96, 80)
    assert small_size((5, 6400)) == (1, 640)


def test_overlay_colours_classes_and_leaves_the_background():
    photo = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(photo, np.array([[0, 1], [2, 0]]), ((0, 0, 0), RED, BLUE), np.array([[1, 1], [0.5, 1]]))
    assert shown[0, 0].tolist() == shown[1, 1].tolist() == [100, 100, 100]
    assert shown[0, 1].tolist() == list(RED)
    assert shown[1, 0].tolist() == [50, 50, 178]


def test_heat_map_runs_from_chance_to_certainty():
    colours = heat_map(np.array([[0.2, 1 / 3, 1.0]], np.float32), num_classes=3)
    assert colours[0, 0].tolist() == colours[0, 1].tolist()
    assert colours[0, 0].sum() < 250 < 400 < colours[0, 2].sum()


def test_validation_pictures_show_truth_and_the_better_model(tmp_path):
    photo = np.full((40, 60, 3), 100, np.uint8)
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 20:40], truth[:, 40:] = 1, 255
    writer = PreviewWriter(tmp_path, data(validation=9), SETTINGS.with_overrides(["validation.previews=2"]))
    for number in range(9):
        for model, index in (("student", 1), ("teacher", 2)):
            writer.keep(model, number, ValidationPhoto(f"{number}.png", photo, truth), np.full_like(truth, index))
    written = writer.write(measurement(teacher_is_better=True), Teacher(), torch.device("cpu"))
    assert [(preview.kind, preview.name) for preview in written] == [("validation", "0.png"), ("validation", "8.png")]
    pictures = {role: np.asarray(Image.open(path)) for role, path in written[0].pictures.items()}
    assert {path.parent for path in tmp_path.glob("*/*")} == {tmp_path / "000020"}
    assert all(picture.shape == (40, 60, 3) for picture in pictures.values())
    assert near(pictures["photo"], (100, 100, 100))
    assert near(pictures["truth"][20, 5], (100, 100, 100))
    assert near(pictures["truth"][20, 30], (178, 48, 74))
    assert near(pictures["truth"][20, 55], (118, 118, 118))
    assert near(pictures["prediction"][20, 30], (35, 35, 201))

    assert writer.write(measurement(iteration=40), Teacher(), torch.device("cpu")) == ()


@pytest.mark.parametrize(("scaling", "is_shown"), [("keep_thin", True), ("nearest", False)])
def test_pictures_show_labels_as_training_shrinks_them(tmp_path, scaling, is_shown):
    photo, truth = np.full((960, 1280, 3), 100, np.uint8), np.zeros((960, 1280), np.uint8)
    truth[:, 500] = 1
    settings = SETTINGS.with_overrides([f"data.label_scaling={scaling}"])
    writer = PreviewWriter(tmp_path, data(validation=1), settings)
    writer.keep("student", 0, ValidationPhoto("a.png", photo, truth), truth)
    [preview] = writer.write(measurement(), Teacher(), torch.device("cpu"))
    pictures = {role: np.asarray(Image.open(path)).astype(int) for role, path in preview.pictures.items()}
    for role in ("truth", "prediction"):
        is_red = pictures[role][240, 250, 0] > pictures[role][240, 250, 1] + 30
        assert is_red == is_shown


def test_target_pictures_show_sure_labels_stronger(tmp_path, monkeypatch):
    path = tmp_path / "street.png"
    Image.fromarray(np.full((40, 60, 3), 100, np.uint8)).save(path)
    labels, confidence = np.zeros((20, 30), np.uint8), np.full((20, 30), 0.5, np.float32)
    labels[:, 10:], confidence[:, 20:] = 1, 0.95
    monkeypatch.setattr(previews, "believe", lambda *_: (labels, confidence))
    teacher = Teacher().train()
    writer = PreviewWriter(tmp_path / "previews", data(target=[path]), SETTINGS)
    [preview] = writer.write(measurement(), teacher, torch.device("cpu"))
    assert (preview.kind, preview.name) == ("target", "street.png")
    pictures = {role: np.asarray(Image.open(path)) for role, path in preview.pictures.items()}
    assert list(pictures) == ["photo", "pseudo_label", "confidence"]
    unsure, sure = (pictures["pseudo_label"][20, column].astype(int) for column in (30, 55))
    assert near(pictures["pseudo_label"][20, 5], (100, 100, 100))
    assert 100 < unsure[0] < 150 < sure[0]
    assert pictures["confidence"][20, 55].sum() > pictures["confidence"][20, 5].sum() + 100
    assert teacher.training


def test_no_previews_and_no_folder_where_none_are_wanted(tmp_path):
    settings = SETTINGS.with_overrides(["validation.previews=0"])
    writer = PreviewWriter(tmp_path / "previews", data(validation=3, target=["nowhere.png"]), settings)
    writer.keep("student", 0, None, None)
    assert writer.write(measurement(), Teacher(), torch.device("cpu")) == ()
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("rule", ["published", "per_class", "class_balanced"])
def test_whole_photo_is_labelled_by_the_rule_of_training(rule):
    settings = SETTINGS.with_overrides(
        [f"self_training.pseudo_label_rule={rule}", "model.encoder=mit_b0", "model.crop_size=[64, 64]"]
        + ["model.decoder_channels=8", "model.attention_channels=8"]
    )
    torch.manual_seed(0)
    teacher = build_segmentor(settings.model).eval()
    image = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    scale, inference, rules = settings.data.scale, settings.inference, settings.self_training
    cuts = torch.tensor([0.6, 0.45]) if rule == "class_balanced" else None
    labels, confidence = believe(teacher, image, scale, inference, rules, torch.device("cpu"), cuts)
    tensor = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    expected = pseudo_labels(sliding_logits(teacher, tensor, inference), rules, cuts)
    assert np.array_equal(labels, expected.labels[0].numpy())
    np.testing.assert_allclose(confidence, expected.confidence[0].numpy(), atol=1e-6)
