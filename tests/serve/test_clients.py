"""What the public apps of the ecosystem send: through an instance (the sandbox), with the SDK's own classes."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervisely as sly
import yaml
from requests import HTTPError
from supervisely.nn.inference import Session, SessionJSON
from supervisely.nn.model.model_api import ModelAPI

from sandbox.testing import Sandbox
from tests.serve.conftest import serving_beside
from tests.serve.requests_of_clients import expected, post, refused, to_mask

FOREIGN = {"confidence_threshold": 0.5, "iou_thres": 0.65, "classes": ["dog", "crack", "__bg__"]}
"""What a template of a detector leaves in the editor of a labelling tool."""


@pytest.fixture(scope="module")
def app(checkpoint: Path, instance: Sandbox) -> Iterator[SimpleNamespace]:
    with serving_beside(instance, checkpoint) as running:
        yield running


@pytest.fixture(scope="module")
def task(app, instance: Sandbox) -> int:
    """The app's task, through which the instance hands requests on."""
    task = instance.create_task("Serve HRDA")["id"]
    instance.set_task_address(task, app.url)
    return task


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, (64, 72 + 8 * n, 3), dtype=np.uint8) for n in range(3)]


@pytest.fixture
def project(api, instance: Sandbox, images) -> SimpleNamespace:
    """A project of its own for each test: clients write into it."""
    created = api.project.create(instance.workspace_id, "walls", change_name_if_conflict=True)
    dataset = api.dataset.create(created.id, "first")
    infos = api.image.upload_nps(dataset.id, [f"{n}.png" for n in range(len(images))], images)
    return SimpleNamespace(id=created.id, dataset_id=dataset.id, ids=[info.id for info in infos])


def titles(annotation: dict[str, Any]) -> set[str]:
    return {label["classTitle"] for label in annotation["objects"]}


# ------------------------------------------------------------------------------- NN Image Labeling, the tool's panel
def test_panel_connects_with_a_model_and_shows_what_it_is(api, task):
    info = api.task.send_request(task, "get_session_info", data={})
    assert info["task type"] == "semantic segmentation" and "botsort" not in str(info)
    meta = sly.ProjectMeta.from_json(api.task.send_request(task, "get_output_classes_and_tags", data={}))
    assert [one.name for one in meta.obj_classes] == ["__bg__", "crack", "stain"]
    settings = api.task.send_request(task, "get_custom_inference_settings", data={})["settings"]
    assert yaml.safe_load(settings)["thresholds"] == "best"


def test_panel_with_settings_of_another_model_gets_the_image_predicted(app, api, task, project, images):
    data = {"image_id": project.ids[0], "settings": {**FOREIGN, "stride": 64}}
    answer = api.task.send_request(task, "inference_image_id", data=data, raise_error=True)
    mask = expected(app, images[0], stride=(64, 64))
    np.testing.assert_array_equal(to_mask(answer["annotation"]), np.where(mask == 1, 1, 0))
    for name in ("'confidence_threshold'", "'iou_thres'", "'dog'"):
        assert name in answer["message"]
    plain = api.task.send_request(task, "inference_image_id", data={"image_id": project.ids[0]}, raise_error=True)
    assert "message" not in plain


def test_preview_by_sliding_windows_shows_the_whole_image(api, task, project, images):
    params = {"windowHeight": 32, "windowWidth": 32, "overlapY": 8, "overlapX": 8, "naive": False}
    settings = {"inference_mode": "sliding_window", "sliding_window_params": params}
    answer = api.task.send_request(task, "inference_image_id", data={"image_id": project.ids[0], "settings": settings})
    [slide] = answer["data"]["slides"]
    height, width = images[0].shape[:2]
    box = sly.Rectangle.from_json(slide["rectangle"])
    assert (box.top, box.left, box.bottom, box.right) == (0, 0, height - 1, width - 1)
    meta = sly.ProjectMeta.from_json(api.task.send_request(task, "get_output_classes_and_tags", data={}))
    assert [sly.Label.from_json(label, meta).area for label in slide["labels"]] == [
        label.area for label in sly.Annotation.from_json(answer["annotation"], meta).labels
    ]


def test_scripts_with_the_same_settings_are_refused_with_the_nearest_name(app, api, project):
    state = {"image_id": project.ids[0], "settings": {"confidence_threshold": 0.5}}
    refused(post(app, "inference_image_id", state, api_token=api.token), "confidence_threshold", "confidence")
    state["settings"] = {"classes": ["dog"]}
    refused(post(app, "inference_image_id", state, api_token=api.token), "no class 'dog'")
    session = Session(api, session_url=app.url)
    with pytest.raises(ValueError, match="'confidence_threshold' is not acceptable"):
        session.update_inference_settings(confidence_threshold=0.5)
    session.update_inference_settings(classes=["dog"])
    with pytest.raises(HTTPError, match="no class 'dog'"):
        session.inference_image_id(project.ids[0])


def test_panel_with_a_value_that_cannot_work_is_refused_all_the_same(api, task, project):
    data = {"image_id": project.ids[0], "settings": {"stride": 63}}
    with pytest.raises(HTTPError, match="stride must be"):
        api.task.send_request(task, "inference_image_id", data=data, raise_error=True)


def test_panel_asks_for_a_region(app, api, task, project, images):
    region = sly.Rectangle(8, 4, 63, 67)
    data = {"image_id": project.ids[0], "settings": {}, "rectangle": region.to_json()}
    answer = api.task.send_request(task, "inference_image_id", data=data, raise_error=True)
    mask = to_mask(answer["annotation"])
    np.testing.assert_array_equal(mask[8:64, 4:68], expected(app, images[0][8:64, 4:68]))
    assert (mask == 255).sum() == mask.size - 56 * 64


# ---------------------------------------------------------------------------------------- Apply NN to Images Project
def test_preview_gets_a_result_for_each_image_in_order(app, api, task, project, images):
    data = {"dataset_id": project.dataset_id, "batch_ids": project.ids, "settings": {"confidence_threshold": 0.5}}
    answers = api.task.send_request(task, "inference_batch_ids", data=data)
    assert len(answers) == len(images)
    for answer, image in zip(answers, images, strict=True):
        np.testing.assert_array_equal(to_mask(answer["annotation"]), expected(app, image))
        assert "'confidence_threshold'" in answer["message"]


def test_app_applies_chosen_classes_to_a_dataset(app, api, task, project, images):
    settings = yaml.safe_load(api.task.send_request(task, "get_custom_inference_settings", data={})["settings"])
    session = Session(api, session_url=app.url, inference_settings=settings | {"classes": ["crack"]})
    found = {info.image_id: info for info in session.inference_project_id_async(project.id, [project.dataset_id])}
    assert set(found) == set(project.ids)
    for image_id, image in zip(project.ids, images, strict=True):
        annotation = found[image_id].annotation
        annotation = annotation if isinstance(annotation, dict) else annotation.to_json()
        assert titles(annotation) <= {"crack"}
        np.testing.assert_array_equal(to_mask(annotation) == 1, expected(app, image) == 1)


# ------------------------------------------------------------------------------------------------------- Predict App
@pytest.mark.parametrize("mode", ["append", "replace", "iou_merge"])
def test_class_that_was_unticked_stays_out_of_the_users_project(app, api, project, images, mode):
    model = ModelAPI(api=api, url=app.url)
    settings = yaml.safe_load(model.get_settings())
    with model.predict_detached(
        image_ids=project.ids, upload_mode=mode, classes=["crack", "stain"], inference_settings=settings
    ) as session:
        assert {prediction.image_id for prediction in session} == set(project.ids)
    assert {one["title"] for one in api.project.get_meta(project.id)["classes"]} <= {"crack", "stain"}
    for image_id, image in zip(project.ids, images, strict=True):
        mask = expected(app, image)
        found = to_mask(api.annotation.download_json(image_id))
        np.testing.assert_array_equal(found, np.where(mask == 0, 255, mask))


def test_predictions_go_into_a_new_project_with_the_classes_that_were_chosen(app, api, project):
    model = ModelAPI(api=api, url=app.url)
    predictions = model.predict(
        dataset_id=project.dataset_id, upload_mode="create", classes=["crack"], show_progress=False
    )
    assert len(predictions) == len(project.ids)
    workspace = api.project.get_info_by_id(project.id).workspace_id
    [created] = [one for one in api.project.get_list(workspace) if one.name.startswith("Predictions from task")]
    assert created.items_count == len(project.ids)
    assert {one["title"] for one in api.project.get_meta(created.id)["classes"]} <= {"crack"}


# ---------------------------------------------------------------------------- Model-benchmark evaluator and its report
def test_evaluator_finds_the_background_that_it_needs(app, api, instance, project):
    """It names the classes that the truth has, and looks for a background among the predictions."""
    session = SessionJSON(api, session_url=app.url)
    assert min(session.get_session_info()["max_batch_size"], 16) == 16
    session.set_inference_settings({"classes": ["crack"]})
    output = api.project.create(instance.workspace_id, "evaluation", change_name_if_conflict=True)
    results = list(
        session.inference_project_id_async(
            project.id, [project.dataset_id], output_project_id=output.id, cache_project_on_model=False, batch_size=16
        )
    )
    assert len(results) == len(project.ids)
    assert "__bg__" in {one["title"] for one in api.project.get_meta(output.id)["classes"]}
