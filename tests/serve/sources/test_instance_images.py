"""Predictions by id: the app beside an instance (the sandbox), asked by the SDK's own clients and by plain requests."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sandbox.testing import Sandbox
from tests.serve.conftest import serving_beside
from tests.serve.requests_of_clients import busy, encoded, expected, finished, post, refused, to_mask, wait_until

SIZES = ((90, 140), (64, 72), (50, 70), (80, 64), (70, 90), (64, 64))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def uploaded(api, instance: Sandbox, images: list[np.ndarray], tmp_path_factory) -> SimpleNamespace:
    """A project with images, among them one that is turned by its EXIF entry; and one without any."""
    project = api.project.create(instance.workspace_id, "walls")
    dataset = api.dataset.create(project.id, "first")
    infos = api.image.upload_nps(dataset.id, [f"{n}.png" for n in range(len(images))], images)
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path_factory.mktemp("turned") / "turned.png"
    path.write_bytes(encoded(images[0], exif=exif))
    turned = api.image.upload_path(api.dataset.create(project.id, "second").id, path.name, str(path))
    empty = api.project.create(instance.workspace_id, "nothing")
    return SimpleNamespace(
        project=project, dataset=dataset, ids=[info.id for info in infos], turned=turned.id, empty=empty
    )


@pytest.fixture(scope="module")
def app(checkpoint: Path, instance: Sandbox) -> Iterator[SimpleNamespace]:
    with serving_beside(instance, checkpoint) as running:
        yield running


def test_sdk_session_predicts_images_by_id(app, api, uploaded, images):
    from supervisely.nn.inference import Session

    session = Session(api, session_url=app.url)
    annotation = session.inference_image_id(uploaded.ids[0])
    np.testing.assert_array_equal(to_mask(annotation.to_json()), expected(app, images[0]))
    annotations = session.inference_image_ids(uploaded.ids[:3])
    for annotation, image in zip(annotations, images, strict=False):
        np.testing.assert_array_equal(to_mask(annotation.to_json()), expected(app, image))
    session.update_inference_settings(stride=64)
    found = {name: annotation for _, name, annotation in _named(session.inference_image_ids_async(uploaded.ids))}
    assert len(found) == len(images)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(to_mask(found[f"{number}.png"]), expected(app, image, stride=(64, 64)))


def _named(infos) -> list[tuple]:
    return [(info.image_id, info.image_name, info.annotation) for info in infos]


def test_sdk_session_predicts_a_project(app, api, uploaded, images):
    from supervisely.nn.inference import Session

    infos = _named(Session(api, session_url=app.url).inference_project_id(uploaded.project.id))
    by_id = {image_id: annotation for image_id, _, annotation in infos}
    assert set(by_id) == {*uploaded.ids, uploaded.turned}
    np.testing.assert_array_equal(to_mask(by_id[uploaded.ids[4]]), expected(app, images[4]))
    upright = np.rot90(images[0], -1)
    np.testing.assert_array_equal(to_mask(by_id[uploaded.turned]), expected(app, upright))


def test_model_api_predicts_by_id_and_uploads_labels(app, api, instance, uploaded, images):
    from supervisely.nn.model.model_api import ModelAPI

    model = ModelAPI(api=api, url=app.url)
    [prediction] = model.predict(image_id=uploaded.ids[1], show_progress=False)
    np.testing.assert_array_equal(to_mask(prediction.annotation.to_json()), expected(app, images[1]))
    predictions = model.predict(image_id=uploaded.ids[2:4], upload_mode="append", show_progress=False)
    assert [prediction.image_id for prediction in predictions] == uploaded.ids[2:4]
    for number in (2, 3):
        labels = api.annotation.download_json(uploaded.ids[number])["objects"]
        assert {label["classTitle"] for label in labels} <= {"__bg__", "crack", "stain"} and labels


def test_region_and_classes_of_an_image_by_id(app, uploaded, images, body):
    rectangle = {"points": {"exterior": [[20, 10], [99, 79]], "interior": []}}
    for state in ({"rectangle": rectangle}, {"settings": {"rectangle": rectangle}}):
        answer = post(app, "inference_image_id", {"image_id": uploaded.ids[0], **state}, **body)
        mask = to_mask(answer.json()["annotation"])
        np.testing.assert_array_equal(mask[10:80, 20:100], expected(app, images[0][10:80, 20:100]))
        assert (mask == 255).sum() == mask.size - 70 * 80
    state = {"batch_ids": uploaded.ids[:2], "settings": {"classes": ["crack"]}}
    for result in post(app, "inference_batch_ids", state, **body).json():
        assert {label["classTitle"] for label in result["annotation"]["objects"]} <= {"__bg__", "crack"}


@pytest.mark.parametrize(
    ("route", "state"),
    [
        ("inference_image_id", {"image_id": 987654}),
        ("inference_batch_ids", {"batch_ids": [987654]}),
        ("inference_image_id_async", {"image_id": 987654}),
        ("inference_batch_ids_async", {"batch_ids": [987654]}),
        ("inference_project_id_async", {"projectId": 987654}),
        ("run_speedtest", {"projectId": 987654, "batch_size": 1, "num_iterations": 1}),
    ],
)
def test_what_is_not_on_the_instance_is_told_in_a_sentence(app, body, route, state):
    answer = post(app, route, state, **body)
    if "async" in route or route == "run_speedtest":
        error = finished(app, answer)["exception"]
        assert set(error) == {"type", "message"}, "no traceback"
        assert "987654" in error["message"]
    else:
        refused(answer, "987654", status=404)


def test_ids_known_and_unknown_at_once_are_refused_and_the_next_request_is_answered(app, uploaded, body):
    refused(post(app, "inference_batch_ids", {"batch_ids": [uploaded.ids[0], 987654]}, **body), "987654", status=404)
    refused(post(app, "inference_batch_ids", {"batch_ids": [uploaded.ids[0]] * 2}, **body), "twice")
    assert post(app, "inference_image_id", {"image_id": uploaded.ids[0]}, **body).status_code == 200


def test_image_that_was_deleted_is_not_predicted_from_memory(app, api, uploaded, images, body):
    [info] = api.image.upload_nps(uploaded.dataset.id, ["short_lived.png"], images[1:2])
    assert post(app, "inference_image_id", {"image_id": info.id}, **body).status_code == 200
    api.image.remove(info.id)
    refused(post(app, "inference_image_id", {"image_id": info.id}, **body), str(info.id), status=404)


def test_image_is_not_shown_to_a_client_who_may_not_see_it(app, uploaded, body):
    assert post(app, "inference_image_id", {"image_id": uploaded.ids[0]}, **body).status_code == 200
    answer = post(app, "inference_image_id", {"image_id": uploaded.ids[0]}, api_token="of somebody else")
    assert 400 <= answer.status_code < 500


def test_caller_cannot_send_the_service_to_another_address(app, uploaded, body):
    answer = post(app, "inference_image_id", {"image_id": uploaded.ids[0]}, server_address="http://127.0.0.1:9", **body)
    assert answer.status_code == 200


def test_images_of_the_instance_are_bounded_and_asked_for_once(app, api, uploaded):
    from common.data.images import ImageTooLarge
    from serve.errors import TooLarge
    from serve.limits import Limits
    from serve.sources.instance_api import WatchedApi
    from serve.sources.instance_images import InstanceImages

    folder, api = app.server.cache.tmp_path, WatchedApi(api, Limits())
    with pytest.raises(TooLarge, match=str(uploaded.ids[0])):
        InstanceImages(Limits(max_image_mb=0.001), folder).read_image(api, uploaded.ids[0])
    with pytest.raises(ImageTooLarge, match="140×90"):
        InstanceImages(Limits(max_megapixels=0.01), folder).read_image(api, uploaded.ids[0])
    images, asked = InstanceImages(Limits(), folder), []

    def ask(*args, **options):
        asked.append(args)
        return api.pieces(*args, **options)

    counting = SimpleNamespace(server_address="a", token="b", pieces=ask)
    images.prefetch(counting, uploaded.ids[:2])
    images.download_images(counting, uploaded.dataset.id, uploaded.ids[:2])
    assert len(asked) == 2


def test_of_rectangles_each_image_by_id_gets_its_own(app, uploaded, body):
    """In every batch, whether their labels are answered or written to the instance."""
    rectangles = [
        {"points": {"exterior": [[2 * n, n], [2 * n + 31, n + 31]], "interior": []}} for n in range(len(uploaded.ids))
    ]
    state = {"batch_ids": uploaded.ids, "batch_size": 2, "settings": {"rectangles": rectangles}}
    job = finished(app, post(app, "inference_batch_ids_async", state, **body))
    for answer in (post(app, "inference_batch_ids", state, **body).json(), job["pending_results"]):
        assert len(answer) == len(uploaded.ids)
        for n, result in enumerate(answer):
            rows, columns = np.nonzero(to_mask(result["annotation"]) != 255)
            assert (rows.min(), columns.min(), rows.max(), columns.max()) == (n, 2 * n, n + 31, 2 * n + 31)
    few = state | {"settings": {"rectangles": rectangles[1:]}}
    words = f"{len(uploaded.ids) - 1} rectangles for {len(uploaded.ids)} images"
    refused(post(app, "inference_batch_ids", few, **body), words)
    for more in ({}, {"upload_mode": "append"}):
        job = finished(app, post(app, "inference_batch_ids_async", few | more, **body))
        assert words in job["exception"]["message"]
    project = {"projectId": uploaded.project.id, "settings": {"rectangles": rectangles}}
    job = finished(app, post(app, "inference_project_id_async", project, **body))
    assert "Send rectangle, which holds for all images" in job["exception"]["message"]


def test_announced_images_are_fetched_before_they_are_asked_for(app, uploaded, body):
    assert post(app, "smart_cache", {"image_ids": [uploaded.ids[5]]}, **body).status_code == 200
    wait_until(lambda: app.server.cache.holds(uploaded.ids[5]))


@pytest.fixture(scope="module")
def partly_bad(api, instance: Sandbox, images, tmp_path_factory) -> SimpleNamespace:
    """A project in which the second of three images is no image any more, as a disk may leave it."""
    project = api.project.create(instance.workspace_id, "partly bad")
    dataset = api.dataset.create(project.id, "only")
    folder = tmp_path_factory.mktemp("partly_bad")
    paths = [folder / f"{n}.png" for n in range(3)]
    for path, image in zip(paths, images[1:], strict=False):
        Image.fromarray(image).save(path)
    infos = api.image.upload_paths(dataset.id, [path.name for path in paths], [str(path) for path in paths])
    return SimpleNamespace(project=project, dataset=dataset, ids=[info.id for info in infos], images=images[1:4])


@pytest.fixture
def damaged(app, partly_bad, monkeypatch) -> SimpleNamespace:
    from serve.sources import instance_images

    fetch = instance_images.fetch

    def fetch_damaged(api, method, body, name, limits):
        content = fetch(api, method, body, name, limits)
        return content[: len(content) // 2] if body["id"] == partly_bad.ids[1] else content

    monkeypatch.setattr(instance_images, "fetch", fetch_damaged)
    return partly_bad


def test_batch_answers_in_order_and_names_the_image_that_cannot_be_read(app, damaged, body):
    results = post(app, "inference_batch_ids", {"batch_ids": damaged.ids}, **body).json()
    assert [result["image_id"] for result in results] == damaged.ids
    for n in (0, 2):
        np.testing.assert_array_equal(to_mask(results[n]["annotation"]), expected(app, damaged.images[n]))
        assert "error" not in results[n]
    assert f"{damaged.ids[1]} of the instance" in results[1]["error"] and "incomplete" in results[1]["error"]
    height, width = damaged.images[1].shape[:2]
    assert results[1]["annotation"]["size"] == {"height": height, "width": width}
    assert results[1]["annotation"]["objects"] == []


@pytest.mark.parametrize("mode", ["append", "replace", None])
@pytest.mark.parametrize("route", ["inference_batch_ids_async", "inference_project_id_async"])
def test_job_goes_on_and_names_the_image_that_cannot_be_read(app, api, damaged, body, route, mode):
    api.annotation.upload_ann(damaged.ids[1], _painted(api, damaged))
    named = {"batch_ids": damaged.ids} if "batch" in route else {"projectId": damaged.project.id}
    report = finished(app, post(app, route, named | ({"upload_mode": mode} if mode else {}), **body))
    assert report["exception"] is None and report["stage"] == "Finished"
    assert [result["image_id"] for result in report["pending_results"]] == [damaged.ids[0], damaged.ids[2]]
    [error] = report["errors"]
    assert error["image_id"] == damaged.ids[1] and "incomplete" in error["message"] and report["failed"] == 1
    kept = [label["classTitle"] for label in api.annotation.download_json(damaged.ids[1])["objects"]]
    assert kept == ["stain"], "labels of an image that cannot be read stay as they are"


def _painted(api, damaged: SimpleNamespace):
    import supervisely as sly

    meta = sly.ProjectMeta.from_json(api.project.get_meta(damaged.project.id))
    if (stain := meta.get_obj_class("stain")) is None:
        stain = sly.ObjClass("stain", sly.Bitmap)
        api.project.update_meta(damaged.project.id, meta.add_obj_class(stain))
    size = damaged.images[1].shape[:2]
    return sly.Annotation(size, [sly.Label(sly.Bitmap(np.ones(size, bool)), stain)])


def test_strict_ends_a_job_and_a_batch_with_the_reason(app, damaged, body):
    state = {"batch_ids": damaged.ids, "settings": {"strict": True}, "batch_size": 1}
    refused(post(app, "inference_batch_ids", state, **body), str(damaged.ids[1]), "incomplete")
    report = finished(app, post(app, "inference_batch_ids_async", state, **body))
    assert "incomplete" in report["exception"]["message"] and len(report["pending_results"]) == 1


def test_request_of_which_no_image_can_be_read_is_refused(app, damaged, body):
    refused(post(app, "inference_image_id", {"image_id": damaged.ids[1]}, **body), "incomplete")
    refused(post(app, "inference_batch_ids", {"batch_ids": damaged.ids[1:2]}, **body), "incomplete")
    report = finished(app, post(app, "inference_image_id_async", {"image_id": damaged.ids[1]}, **body))
    assert "incomplete" in report["exception"]["message"]


def test_clients_of_the_sdk_get_the_others(app, api, damaged):
    from supervisely.nn.inference import Session
    from supervisely.nn.model.model_api import ModelAPI

    predictions = ModelAPI(api=api, url=app.url).predict(image_id=damaged.ids, show_progress=False)
    assert [prediction.image_id for prediction in predictions] == [damaged.ids[0], damaged.ids[2]]
    annotations = Session(api, session_url=app.url).inference_image_ids(damaged.ids)
    assert [len(annotation.labels) > 0 for annotation in annotations] == [True, False, True]


def test_measurement_of_speed_is_not_made_without_an_image(app, damaged, body):
    state = {"projectId": damaged.project.id, "batch_size": 3, "num_iterations": 1, "num_warmup": 0}
    assert "incomplete" in finished(app, post(app, "run_speedtest", state, **body))["exception"]["message"]


@pytest.mark.parametrize("route", ["inference_project_id_async", "run_speedtest"])
def test_dataset_that_the_project_does_not_have_is_an_error(app, api, uploaded, body, route):
    before = len(api.project.get_list(uploaded.project.workspace_id))
    state = {"projectId": uploaded.project.id, "dataset_ids": [uploaded.dataset.id, 987654], "upload_mode": "create"}
    report = finished(app, post(app, route, state | {"batch_size": 1, "num_iterations": 1}, **body))
    assert report["exception"]["message"] == f"Project {uploaded.project.id} has no dataset 987654."
    assert len(api.project.get_list(uploaded.project.workspace_id)) == before, "nothing was made for it"


def test_job_tells_its_progress_and_stops_when_told(app, uploaded, body):
    with busy(app) as go_on:
        answer = post(app, "inference_batch_ids_async", {"batch_ids": uploaded.ids, "batch_size": 1}, **body)
        state = {"inference_request_uuid": answer.json()["inference_request_uuid"]}
        wait_until(lambda: post(app, "get_inference_progress", state).json()["is_inferring"])
        progress = post(app, "get_inference_progress", state).json()
        assert progress["progress"] == progress["preparing_progress"]
        assert (progress["progress"]["current"], progress["progress"]["total"]) == (0, len(uploaded.ids))
        assert post(app, "get_inference_status", state).json()["stage"] == "Running inference..."
        assert post(app, "stop_inference", state).json()["success"] is True
        go_on.set()
        report = finished(app, answer)
    assert len(report["pending_results"]) < len(uploaded.ids)
    assert (report["stage"], report["stopped"], report["exception"]) == ("Cancelled", True, None)
    assert post(app, "clear_inference_request", state).json() == {"success": True}


def test_speed_is_measured_on_images_and_never_without(app, uploaded, body):
    state = {"projectId": uploaded.project.id, "batch_size": 2, "num_iterations": 2, "num_warmup": 1}
    results = finished(app, post(app, "run_speedtest", state, **body))["pending_results"]
    assert len(results) == 2 and all(result["inference"] > 0 for result in results)
    error = finished(app, post(app, "run_speedtest", state | {"projectId": uploaded.empty.id}, **body))["exception"]
    assert "no images" in error["message"]


def test_project_without_images_is_an_empty_answer(app, uploaded, body):
    report = finished(app, post(app, "inference_project_id_async", {"projectId": uploaded.empty.id}, **body))
    assert (report["pending_results"], report["stage"]) == ([], "Finished")


def test_checkpoint_of_team_files_is_deployed_on_the_command_line_too(app, api, instance, checkpoint):
    """The SDK's route knows either a page or no instance."""
    path = api.file.upload(instance.team_id, str(checkpoint), "/HRDA/cracks/best.pth").path
    params = {"model_source": "Custom models", "model_files": {"checkpoint": path}, "device": "cpu"}
    answer = post(app, "deploy_from_api", {"deploy_params": params})
    assert answer.json() == {"result": "model was successfully deployed"}
    assert post(app, "get_session_info").json()["checkpoint_name"] == "best.pth"
