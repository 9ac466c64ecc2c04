"""The running app over HTTP, asked by the SDK's own clients and by plain requests as curl sends them."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from serve.model.settings import ServeSettings
from tests.common.hrda.test_checkpoints import bundle as former_bundle
from tests.common.hrda.test_checkpoints import former_checkpoint
from tests.serve.requests_of_clients import (
    CLASSES,
    deploy_files,
    encoded,
    expected,
    finished,
    post,
    refused,
    to_mask,
    upload,
)


def test_session_says_what_is_deployed(running):
    info = post(running, "get_session_info").json()
    assert info["task type"] == "semantic segmentation"
    assert info["sliding_window_support"] == "none", "the SDK's own sliding window is wrong for masks"
    assert info["batch_inference_support"] is True
    assert (info["number_of_classes"], info["model_name"]) == (3, "HRDA mit_b0")
    assert (info["checkpoint_name"], info["device"]) == ("model.pth", "cpu")
    assert info["encoder_weights"] is None, "the checkpoint does not say where they come from"
    deployed = post(running, "get_deploy_info").json()
    assert (deployed["checkpoint_name"], deployed["architecture"]) == ("model.pth", "HRDA")
    assert (deployed["model_source"], deployed["runtime"]) == ("Custom models", "PyTorch")
    assert post(running, "list_pretrained_models").json() == []
    assert post(running, "list_pretrained_model_infos").json() == []


def test_classes_have_the_order_of_the_masks_and_the_colours_of_the_checkpoint(running):
    meta = post(running, "get_output_classes_and_tags").json()
    assert [entry["title"] for entry in meta["classes"]] == CLASSES
    assert [entry["color"] for entry in meta["classes"]] == ["#000000", "#DC143C", "#1E3CC8"]
    assert {entry["shape"] for entry in meta["classes"]} == {"bitmap"}


def test_uploaded_image_comes_back_with_every_pixel_labelled_once(running, image):
    annotation = upload(running, encoded(image)).json()["annotation"]
    mask = to_mask(annotation)
    np.testing.assert_array_equal(mask, expected(running, image))
    assert len(annotation["objects"]) == len(np.unique(mask)), "one label a class"


def test_turned_photo_is_predicted_upright(running, image):
    exif = Image.Exif()
    exif[0x112] = 6
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", exif=exif)
    mask = to_mask(upload(running, stream.getvalue()).json()["annotation"])
    np.testing.assert_array_equal(mask, expected(running, np.rot90(image, -1)))


def test_sdk_session_gets_batches_of_different_sizes_in_order(running, image, photo, tmp_path):
    from supervisely import Api
    from supervisely.nn.inference import Session

    small = tmp_path / "small.png"
    Image.fromarray(image[:50, :70]).save(small)
    session = Session(Api("http://127.0.0.1:9", "no token"), session_url=running.url)
    assert set(session.get_default_inference_settings()) == {field.name for field in fields(ServeSettings)}
    annotations = session.inference_image_paths([str(photo), str(small)])
    assert [annotation.img_size for annotation in annotations] == [(90, 140), (50, 70)]
    np.testing.assert_array_equal(to_mask(annotations[1].to_json()), expected(running, image[:50, :70]))


def test_clients_that_name_their_images_alike_get_their_own_predictions(running, tmp_path):
    """The SDK's client names the images of every batch image_0.png: kept by name, one would get another's."""
    from supervisely.nn.model.model_api import ModelAPI

    images = [np.random.default_rng(seed).integers(0, 256, (64, 72 + 8 * seed, 3), np.uint8) for seed in range(6)]

    def predict(number: int) -> np.ndarray:
        path = tmp_path / str(number) / "image_0.png"
        path.parent.mkdir()
        path.write_bytes(encoded(images[number]))
        [prediction] = ModelAPI(url=running.url).predict(input=str(path), show_progress=False, batch_size=1)
        return to_mask(prediction.annotation.to_json())

    with ThreadPoolExecutor(len(images)) as clients:
        masks = list(clients.map(predict, range(len(images))))
    for mask, image in zip(masks, images, strict=True):
        np.testing.assert_array_equal(mask, expected(running, image))


def test_bad_file_among_uploaded_ones_is_named_and_the_others_are_predicted(running, image):
    contents = [encoded(image), b"no image", encoded(image[:50, :70])]
    files = [("files", (f"{n}.png", content)) for n, content in enumerate(contents)]
    results = requests.post(f"{running.url}/inference_batch", files=files, timeout=60).json()
    np.testing.assert_array_equal(to_mask(results[2]["annotation"]), expected(running, image[:50, :70]))
    assert "1.png" in results[1]["error"] and results[1]["annotation"]["objects"] == []
    report = finished(running, requests.post(f"{running.url}/inference_batch_async", files=files, timeout=60))
    assert len(report["pending_results"]) == 2
    assert [error["index"] for error in report["errors"]] == [1] and "1.png" in report["errors"][0]["message"]
    form = {"state": '{"settings": {"strict": true}}'}
    refused(requests.post(f"{running.url}/inference_batch", files=files, data=form, timeout=60), "1.png")


def test_settings_of_a_request_change_the_windows(running, image):
    default = to_mask(upload(running, encoded(image)).json()["annotation"])
    settings = {"window": 128, "stride": [64, 64], "batch_size": 1}
    changed = to_mask(upload(running, encoded(image), {"settings": settings}).json()["annotation"])
    np.testing.assert_array_equal(changed, expected(running, image, window=(128, 128), stride=(64, 64), batch_size=1))
    assert (changed != default).any()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"settings": {"windo": 64}}, ["windo", "did you mean 'window'"]),
        ({"settings": {"window": 65}}, ["window must be", "multiples of 64", "Received"]),
        ({"settings": {"stride": 512}}, ["stride must be at most the window (64, 64)"]),
        ({"settings": {"batch_size": "many"}}, ["batch_size must be a positive whole number"]),
        ({"settings": {"classes": ["crak"]}}, ["no class 'crak'", "did you mean 'crack'"]),
        ({"settings": {"classes": "crack"}}, ["classes must be a list"]),
        ({"settings": [1]}, ["settings must be names and values"]),
        ({"settings": {"rectangle": {"left": 1}}}, ["rectangle must be"]),
        ({"rectangle": {"points": {"exterior": [[0, 0], [500, 9]], "interior": []}}}, ["inside the image of 140×90"]),
        ("{", ["state must be JSON"]),
        ("[]", ["state must be a JSON object"]),
    ],
)
def test_bad_requests_are_answered_in_a_sentence(running, image, state, words):
    refused(upload(running, encoded(image), state), *words)


def test_bad_settings_by_id_are_refused_before_the_image_is_asked_for(running):
    refused(post(running, "inference_image_id", {"image_id": 1, "settings": {"windo": 64}}), "did you mean 'window'")
    refused(post(running, "inference_batch_ids_async", {"batch_ids": [1], "settings": {"stride": 3}}), "stride")


def test_files_that_are_no_image_are_refused_by_name(running, image):
    refused(upload(running, b"no image"), "photo.png")
    refused(upload(running, b""), "photo.png", "empty")
    two = [("files", ("a.png", encoded(image))), ("files", ("b.png", encoded(image)))]
    refused(requests.post(f"{running.url}/inference_image", files=two, timeout=60), "one file", "Received: 2")


def test_uploaded_name_is_never_a_path(running, image, no_instance, tmp_path):
    name = f"../../../../../../..{tmp_path}/written.png"
    files = [("files", (name, encoded(image)))]
    assert requests.post(f"{running.url}/inference_batch", files=files, timeout=60).status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_rectangle_is_predicted_alone_and_lies_at_its_place(running, image):
    rectangle = {"points": {"exterior": [[20, 10], [99, 79]], "interior": []}}
    for state in ({"rectangle": rectangle}, {"settings": {"rectangle": rectangle}}):
        mask = to_mask(upload(running, encoded(image), state).json()["annotation"])
        assert mask.shape == (90, 140)
        np.testing.assert_array_equal(mask[10:80, 20:100], expected(running, image[10:80, 20:100]))
        assert (mask == 255).sum() == mask.size - 70 * 80


def test_rectangle_of_null_means_the_whole_image(running, image):
    state = {"rectangle": None, "settings": {"rectangle": None}}
    np.testing.assert_array_equal(
        to_mask(upload(running, encoded(image), state).json()["annotation"]), expected(running, image)
    )


def test_class_filter_turns_other_pixels_into_background(running, image):
    mask = expected(running, image)
    wanted = CLASSES[int(np.bincount(mask.ravel(), minlength=3)[1:].argmax()) + 1]
    index = CLASSES.index(wanted)
    found = to_mask(upload(running, encoded(image), {"settings": {"classes": ["__bg__", wanted]}}).json()["annotation"])
    assert index in found
    np.testing.assert_array_equal(found, np.where(mask == index, index, 0))


def test_background_is_answered_only_where_it_is_among_the_wanted_classes(running, image):
    """A labelling tool whose user unticked the background keeps it out of the project."""
    mask = expected(running, image)
    wanted = CLASSES[int(np.bincount(mask.ravel(), minlength=3)[1:].argmax()) + 1]
    answer = upload(running, encoded(image), {"settings": {"classes": [wanted]}}).json()["annotation"]
    assert [label["classTitle"] for label in answer["objects"]] == [wanted]
    np.testing.assert_array_equal(to_mask(answer) == CLASSES.index(wanted), mask == CLASSES.index(wanted))
    assert upload(running, encoded(image), {"settings": {"classes": []}}).json()["annotation"]["objects"] == []


def test_other_model_is_deployed_by_request_and_a_bad_one_is_explained(running, checkpoint, image, tmp_path):
    original = former_bundle()
    meta = {"CLASSES": ["__bg__", "joint"], "PALETTE": [[0, 0, 0], [1, 2, 3]]}
    former = former_checkpoint(tmp_path / "best.pth", original.student, original.teacher, **meta)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(former.read_bytes()[:5000])

    def deploy(path: Path | None, **params) -> requests.Response:
        files = {} if path is None else {"checkpoint": str(path), "config": "/not/there/config.py"}
        return deploy_files(running, files, **params)

    try:
        assert deploy(former).status_code == 200
        meta = post(running, "get_output_classes_and_tags").json()
        assert [entry["title"] for entry in meta["classes"]] == ["__bg__", "joint"]
        assert post(running, "get_session_info").json()["checkpoint_name"] == "best.pth"
        mask = to_mask(upload(running, encoded(image)).json()["annotation"], ["__bg__", "joint"])
        np.testing.assert_array_equal(mask, expected(running, image))
        refused(deploy(tmp_path / "missing.pth"), "There is no checkpoint at", "missing.pth", "needs TEAM_ID")
        for nowhere in ("x" * 5000, "y/" * 3000, "a\0b"):
            answer = deploy(nowhere)
            refused(answer, "needs TEAM_ID")
            assert len(answer.json()["message"]) < 200
        refused(deploy(damaged), "damaged.pth")
        refused(deploy(None), "A checkpoint is needed")
        refused(deploy(former, device="cuda:77"), "'cuda:77'")
        assert post(running, "is_ready").status_code == 200, "what was deployed stays"
        assert post(running, "get_session_info").json()["checkpoint_name"] == "best.pth"
        pretrained = {"deploy_params": {"model_source": "Pretrained models"}, "model_name": "HRDA-b5"}
        refused(post(running, "deploy_from_api", pretrained), "no pretrained HRDA models")
    finally:
        assert deploy(checkpoint).status_code == 200
    assert post(running, "is_ready").status_code == 200
