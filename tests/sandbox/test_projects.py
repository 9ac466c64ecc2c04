"""Projects go through the real SDK to the sandbox and back unchanged."""

import numpy as np
import pytest
import supervisely as sly

from sandbox.testing import Sandbox
from tests.sandbox import samples


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> sly.Project:
    return samples.write(tmp_path_factory.mktemp("source") / "project")


@pytest.fixture(scope="module")
def project_id(api: sly.Api, sandbox: Sandbox, source: sly.Project) -> int:
    return sly.upload_project(source.directory, api, sandbox.workspace_id, "uploaded", log_progress=False)[0]


@pytest.mark.parametrize("download", [sly.download_project, sly.download_fast], ids=["one by one", "fast"])
def test_download_returns_every_byte_and_label_that_was_uploaded(api, project_id, source, tmp_path, download):
    target = str(tmp_path / "back")
    download(api, project_id, target, log_progress=False)
    back = sly.Project(target, sly.OpenMode.READ)
    assert samples.content(back) == samples.content(source)
    assert [c.name for c in back.meta.obj_classes] == [c.name for c in source.meta.obj_classes]


def test_labels_keep_the_order_in_which_they_are_drawn(api, project_id, tmp_path):
    sly.download_fast(api, project_id, str(tmp_path / "back"), log_progress=False)
    back = sly.Project(str(tmp_path / "back"), sly.OpenMode.READ)
    # The SDK itself sends multipolygons and alpha masks after the other labels.
    assert samples.order(back, "a", "photo_0.png") == ["crack", "joint", "frame", "any", "crack", "parts", "soft"]


def test_fast_upload_of_annotations_keeps_labels_and_tags(api, sandbox, tmp_path):
    meta = sly.ProjectMeta([sly.ObjClass("joint", sly.Polygon)], [sly.TagMeta("depth", sly.TagValueType.ANY_NUMBER)])
    project = api.project.create(sandbox.workspace_id, "async upload")
    meta = api.project.update_meta(project.id, meta)
    dataset = api.dataset.create(project.id, "ds")
    image = api.image.upload_np(dataset.id, "a.png", np.zeros((samples.HEIGHT, samples.WIDTH, 3), dtype=np.uint8))
    shape = sly.Polygon([sly.PointLocation(1, 1), sly.PointLocation(1, 9), sly.PointLocation(9, 9)])
    tag = sly.Tag(meta.get_tag_meta("depth"), 4)
    annotation = sly.Annotation((24, 32), [sly.Label(shape, meta.get_obj_class("joint"), [tag])], img_tags=[tag])
    api.annotation.upload_anns_fast([image.id], [annotation], dataset.id, log_progress=False)
    back = sly.Annotation.from_json(api.annotation.download_json(image.id), meta)
    assert [[t.value for t in label.tags] for label in back.labels] == [[4]]
    assert [t.value for t in back.img_tags] == [4]


def test_nested_datasets_keep_their_parents_and_share_names(api, project_id):
    paths = {"/".join([*parents, info.name]): info for parents, info in api.dataset.tree(project_id)}
    assert set(paths) == {"a", "a/inner", "a/inner/deep", "b"}
    assert {info.name for info in api.dataset.get_list(project_id)} == {"a", "b"}
    assert [info.name for info in api.dataset.get_list(project_id, parent_id=paths["a"].id)] == ["inner"]
    assert {info.images_count for info in paths.values()} == {3}
    names = {path: [i.name for i in api.image.get_list(info.id, sort="name")] for path, info in paths.items()}
    assert all(found == ["photo_0.png", "photo_1.png", "photo_2.png"] for found in names.values())


def test_statistics_count_images_labels_and_tags_of_each_dataset(api, project_id):
    stats = api.project.get_stats(project_id)
    objects = {item["objectClass"]["name"]: item for item in stats["objects"]["items"]}
    images = {item["objectClass"]["name"]: item["total"] for item in stats["images"]["objectClasses"]}
    # Images 2, 11 and 20, 32 carry nothing: 4 of 12.
    assert (objects["crack"]["total"], images["crack"], objects["joint"]["total"]) == (16, 8, 8)
    assert sum(dataset["count"] for dataset in objects["crack"]["datasets"]) == 16
    assert {item["tagMeta"]["name"]: item["total"] for item in stats["imageTags"]["items"]} == {"wet": 8, "depth": 8}
    assert {item["tagMeta"]["name"]: item["total"] for item in stats["objectTags"]["items"]} == {"wet": 0, "depth": 8}


def test_project_info_has_what_production_reads(api, project_id, sandbox):
    info = api.project.get_info_by_id(project_id)
    assert (info.images_count, info.datasets_count, info.team_id) == (12, 4, sandbox.team_id)
    assert info.reference_image_url.startswith(sandbox.address)
    assert api.project.get_info_by_name(sandbox.workspace_id, "uploaded").id == project_id
    assert api.project.get_info_by_id(10**6) is None


def test_update_of_meta_keeps_ids_and_removes_labels_of_removed_classes(api, sandbox):
    project = api.project.create(sandbox.workspace_id, "changing meta")
    meta = api.project.update_meta(project.id, samples.meta())
    dataset = api.dataset.create(project.id, "ds")
    image = api.image.upload_np(dataset.id, "a.png", np.zeros((samples.HEIGHT, samples.WIDTH, 3), dtype=np.uint8))
    api.annotation.upload_ann(image.id, samples.annotation(meta, 0))
    crack = meta.get_obj_class("crack").sly_id
    smaller = sly.ProjectMeta([meta.get_obj_class("joint"), meta.get_obj_class("crack")], meta.tag_metas)
    changed = api.project.update_meta(project.id, smaller.add_obj_class(sly.ObjClass("new", sly.Bitmap)))
    assert changed.get_obj_class("crack").sly_id == crack
    assert len({c.sly_id for c in changed.obj_classes}) == 3
    titles = {o["classTitle"] for o in api.annotation.download_json(image.id)["objects"]}
    assert titles == {"crack", "joint"}


def test_change_of_an_annotation_shows_in_the_dates_that_caches_compare(api, project_id):
    dataset = api.dataset.get_list(project_id)[0]
    image = api.image.get_list(dataset.id)[0]
    before = api.project.get_info_by_id(project_id).updated_at
    meta = sly.ProjectMeta.from_json(api.project.get_meta(project_id))
    api.annotation.upload_ann(image.id, sly.Annotation.from_json(api.annotation.download_json(image.id), meta))
    assert api.dataset.get_info_by_id(dataset.id).updated_at > dataset.updated_at
    assert api.image.get_info_by_id(image.id).updated_at > image.updated_at
    assert api.project.get_info_by_id(project_id).updated_at > before


def test_names_that_are_taken_are_refused_or_changed(api, sandbox, project_id):
    with pytest.raises(Exception, match="exists"):
        api.project.create(sandbox.workspace_id, "uploaded")
    renamed = api.project.create(sandbox.workspace_id, "uploaded", change_name_if_conflict=True)
    assert renamed.name == "uploaded_001"
    with pytest.raises(Exception, match="exists"):
        api.dataset.create(project_id, "a")
    api.project.remove(renamed.id)
    assert api.project.get_info_by_id(renamed.id) is None


def test_annotation_of_an_unknown_class_is_refused_with_the_classes_there_are(api, project_id):
    dataset = api.dataset.get_list(project_id)[0]
    image = api.image.get_list(dataset.id)[0]
    label = {"classTitle": "nope", "geometryType": "rectangle", "tags": [], "points": {"exterior": [[0, 0], [1, 1]],
             "interior": []}}  # fmt: skip
    bad = {"size": {"height": 24, "width": 32}, "tags": [], "objects": [label], "description": ""}
    before = api.annotation.download_json(image.id)
    with pytest.raises(Exception, match="no class 'nope'.*crack"):
        api.annotation.upload_json(image.id, bad)
    assert api.annotation.download_json(image.id) == before


def test_version_of_a_project_is_made_and_not_repeated_without_changes(api, sandbox, project_id, monkeypatch):
    monkeypatch.setenv("ENV", "production")
    first = api.project.version.create(project_id, "title", "description")
    assert first is not None
    assert api.project.version.create(project_id, "title", "description") == first
    assert api.project.version.get_list(project_id)[0].version == 1
    assert api.project.get_info_by_id(project_id).version == {"id": first, "version": 1}
    restored = api.project.version.restore(project_id, version_id=first)
    assert api.project.get_info_by_id(restored.id).images_count == 12
    stats = api.project.get_stats(restored.id)
    assert stats["objects"]["total"] == api.project.get_stats(project_id)["objects"]["total"]
