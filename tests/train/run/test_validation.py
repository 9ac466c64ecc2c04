import copy

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.plain_sliding import plain_sliding_logits
from common.data.transforms import InputScale
from common.data.validation import validation_photos
from common.hrda import InferenceSettings, ModelSettings, Predictor, build_segmentor
from common.hrda.pixels import normalise
from common.metrics import SegmentationMetrics
from train.run.validation import measure

CLASSES = ("__bg__", "crack", "stain")


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiny = ModelSettings(encoder="mit_b0", num_classes=3, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    yield build_segmentor(tiny).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pairs of image and mask file of two photos, with ignored pixels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    pairs = []
    for number, size in enumerate(((64, 80), (50, 64))):
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
        truth = rng.integers(0, 3, size, dtype=np.uint8)
        truth[:5] = 255
        Image.fromarray(truth).save(mask)
        pairs.append((image, mask))
    return pairs


@pytest.mark.parametrize(
    ("scale", "inference"),
    [
        (InputScale(long_edge=None, short_edge=None), InferenceSettings()),
        (InputScale(long_edge=64, short_edge=64), InferenceSettings()),
        (InputScale(long_edge=None, short_edge=None), InferenceSettings(scales=(1.0, 0.5))),
    ],
    ids=["own size", "scaled", "several scales"],
)
def test_what_is_measured_is_what_serving_answers(model, labelled, scale, inference):
    """One pass gives labels and probabilities; each must be those of the routes that give one of them."""
    device = torch.device("cpu")
    predictor = Predictor(model, inference, device, scale.scale)
    expected = SegmentationMetrics(CLASSES)
    seen = []
    for photo in validation_photos(labelled):
        [prediction], [probabilities] = predictor.predict([photo.image]), predictor.probabilities([photo.image])
        expected.update(prediction, photo.truth, probabilities)
        seen.append(prediction)
    kept = []
    measured = measure(
        model,
        labelled,
        CLASSES,
        inference=inference,
        scale=scale,
        device=device,
        seen=lambda number, photo, prediction: kept.append(prediction),
    )
    assert np.array_equal(measured.counts, expected.counts)
    assert "ods/crack" in measured.compute()
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(kept, seen, strict=True))


def test_network_is_measured_as_it_serves_and_left_as_it_was(model, labelled):
    """Going on from a validation depends on weights, their layout and the modes of all modules."""
    scale, device = InputScale(long_edge=None, short_edge=None), torch.device("cpu")
    student = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    before = {name: (value.clone(), value.stride()) for name, value in student.state_dict().items()}
    found = measure(student, labelled, CLASSES, inference=InferenceSettings(), scale=scale, device=device).compute()
    assert all(module.training for module in student.modules())
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1], name
    plain = SegmentationMetrics(CLASSES)
    for photo in validation_photos(labelled):
        with torch.no_grad():
            logits = plain_sliding_logits(model, pixels_of(photo.image), InferenceSettings())[0]
        plain.update(logits.argmax(0).numpy().astype(np.uint8), photo.truth, logits.softmax(0).numpy())
    for name, value in plain.compute().items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def pixels_of(image):
    return normalise(torch.from_numpy(image).permute(2, 0, 1)[None])


def test_photo_that_cannot_be_counted_ends_the_measurement_with_its_error(model, labelled):
    with pytest.raises(ValueError, match="below 2, the number of classes"):
        measure(
            model,
            labelled,
            CLASSES[:2],
            inference=InferenceSettings(),
            scale=InputScale(long_edge=None, short_edge=None),
            device=torch.device("cpu"),
        )
