"""Listing, filtering and downloading of images."""

import numpy as np
import pytest
import requests
import supervisely as sly
from PIL import Image

from tests.sandbox import samples

COUNT = 1000


@pytest.fixture(scope="module")
def dataset(api, sandbox) -> sly.DatasetInfo:
    """1,000 images with one content, made by the same bulk method that the SDK's uploads use."""
    project = api.project.create(sandbox.workspace_id, "many")
    api.project.update_meta(project.id, samples.meta())
    dataset = api.dataset.create(project.id, "ds")
    first = api.image.upload_np(dataset.id, "0000.png", np.zeros((samples.HEIGHT, samples.WIDTH, 3), np.uint8))
    names = [f"{number:04}.png" for number in range(1, COUNT)]
    api.image.upload_hashes(dataset.id, names, [first.hash] * len(names), batch_size=500)
    return api.dataset.get_info_by_id(dataset.id)


def test_list_of_1000_images_is_whole_and_in_order(api, dataset):
    images = api.image.get_list(dataset.id)
    assert [image.name for image in images] == [f"{number:04}.png" for number in range(COUNT)]
    assert len({image.id for image in images}) == COUNT
    assert dataset.images_count == COUNT
    backwards = api.image.get_list(dataset.id, sort="name", sort_order="desc")
    assert [image.id for image in backwards] == [image.id for image in images][::-1]


def test_pages_are_of_the_asked_size_and_together_whole(api, dataset):
    body = {"datasetId": dataset.id, "per_page": 300}
    pages = [api.post("images.list", {**body, "page": page}).json() for page in (1, 2, 3, 4, 5)]
    assert [len(page["entities"]) for page in pages] == [300, 300, 300, 100, 0]
    assert {(page["total"], page["perPage"], page["pagesCount"]) for page in pages} == {(COUNT, 300, 4)}
    assert len({image["id"] for page in pages for image in page["entities"]}) == COUNT


def test_pages_by_token_are_together_whole(api, dataset):
    sizes = [len(page) for page in api.image.get_list_generator(dataset.id, batch_size=400)]
    assert sizes == [400, 400, 200]


def test_filters_are_honoured(api, dataset):
    ids = [image.id for image in api.image.get_list(dataset.id)]

    def names(*filters):
        wanted = [dict(zip(("field", "operator", "value"), item, strict=True)) for item in filters]
        return [image.name for image in api.image.get_list(dataset.id, wanted)]

    assert names(("name", "=", "0007.png")) == ["0007.png"]
    assert names(("id", "in", [ids[5], ids[3], 10**9])) == ["0003.png", "0005.png"]
    assert names(("id", "<", ids[2])) == ["0000.png", "0001.png"]
    assert names(("id", ">=", ids[998]), ("name", "!=", "0998.png")) == ["0999.png"]
    assert names(("name", "!in", [f"{number:04}.png" for number in range(1, COUNT)])) == ["0000.png"]
    assert len(names(("id", "in", ids))) == COUNT
    assert api.image.get_info_by_name(dataset.id, "none.png") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"filter": [{"field": "colour", "operator": "=", "value": 1}]},
        {"filter": [{"field": "id", "operator": "~", "value": 1}]},
        {"filters": [{"type": "unheard_of", "data": {}}]},
        {"filters": ["all"]},
        {"sort": "colour"},
        {"page": 0},
        {"datasetId": "seven"},
    ],
    ids=["field", "operator", "page filter", "no filter", "sort", "page", "type"],
)
def test_what_is_not_understood_is_refused_not_ignored(api, dataset, wrong):
    with pytest.raises(requests.HTTPError) as caught:
        api.post("images.list", {"datasetId": dataset.id, **wrong})
    assert caught.value.response.status_code == 400
    assert caught.value.response.json()["details"]["message"]


def test_filters_by_class_tag_and_name(api, dataset):
    images = api.image.get_list(dataset.id)[:4]
    meta = sly.ProjectMeta.from_json(api.project.get_meta(dataset.project_id))
    api.annotation.upload_anns([image.id for image in images], [samples.annotation(meta, n) for n in range(4)])
    labelled = api.image.get_list(dataset.id, only_labelled=True)
    assert [image.name for image in labelled] == ["0000.png", "0001.png", "0003.png"]
    assert labelled[0].labels_count == 7
    depth = meta.get_tag_meta("depth").sly_id
    by_tag = [{"type": "images_tag", "data": {"tagId": depth, "include": True, "value": 3.5}}]
    assert [image.name for image in api.image.get_filtered_list(dataset.id, by_tag)] == ["0001.png"]
    by_name = [{"type": "images_filename", "data": {"value": "012"}}]
    assert len(api.image.get_filtered_list(dataset.id, by_name)) == 11  # 0012 and 0120 to 0129


def test_infos_by_ids_keep_the_order_asked_for(api, dataset):
    ids = [image.id for image in api.image.get_list(dataset.id)][10:4:-1]
    assert [info.id for info in api.image.get_info_by_id_batch(ids)] == ids
    assert api.image.get_info_by_id(10**9) is None
    assert api.image.get_project_id(ids[0]) == dataset.project_id


def test_single_and_bulk_downloads_give_the_uploaded_bytes(api, dataset, tmp_path):
    infos = []
    for number, (name, mode) in enumerate([("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.tif", "I;16"), ("d.bmp", "L")]):
        pixels = np.random.default_rng(number).integers(0, 255, (9, 7, 4), dtype=np.uint8)
        path = tmp_path / name
        source = pixels[..., 0].astype(np.uint16) if mode == "I;16" else pixels[..., : len(mode)].squeeze()
        Image.fromarray(source).save(path)
        infos.append(api.image.upload_path(dataset.id, name, str(path)))
    originals = [(tmp_path / name).read_bytes() for name in ("a.jpg", "b.png", "c.tif", "d.bmp")]
    ids = [info.id for info in infos]
    assert [info.name for info in infos] == ["a.jpg", "b.png", "c.tif", "d.bmp"]
    assert api.image.download_bytes(dataset.id, ids) == originals
    hashes = [info.hash for info in infos]
    api.image.download_paths_by_hashes(hashes, [str(tmp_path / f"hash{n}") for n in range(4)])
    for number, original in enumerate(originals):
        api.image.download_path(ids[number], str(tmp_path / "again"))
        assert (tmp_path / "again").read_bytes() == original == (tmp_path / f"hash{number}").read_bytes()
    assert requests.get(infos[0].full_storage_url, timeout=5).content == originals[0]
    assert api.image.download_np(ids[0]).shape == (9, 7, 3)
    api.image.remove_batch(ids)
    assert api.image.get_info_by_id(ids[0]) is None


def test_size_is_that_of_the_photo_as_shown(api, dataset, tmp_path):
    photo = Image.new("RGB", (40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    info = api.image.upload_path(dataset.id, "turned.jpg", str(tmp_path / "turned.jpg"))
    assert (info.width, info.height) == (20, 40)
    assert api.image.download_np(info.id).shape == (40, 20, 3)
    api.image.remove(info.id)


def test_file_that_is_no_image_is_refused(api, dataset, tmp_path):
    (tmp_path / "text.png").write_text("no pixels here")
    with pytest.raises(ValueError, match="Unable to upload images"):
        api.image.upload_path(dataset.id, "text.png", str(tmp_path / "text.png"))


def test_taken_names_are_resolved_as_the_sdk_asks(api, dataset):
    info = api.image.get_info_by_name(dataset.id, "0000.png")
    with pytest.raises(requests.HTTPError):
        api.image.upload_hash(dataset.id, "0000.png", info.hash)
    skipped = api.image.upload_hashes(dataset.id, ["0000.png"], [info.hash], conflict_resolution="skip")
    assert [image.id for image in skipped] == [info.id]
    renamed = api.image.upload_hashes(dataset.id, ["0000.png"], [info.hash], conflict_resolution="rename")
    assert renamed[0].name != "0000.png"
    assert renamed[0].id != info.id
    api.image.remove(renamed[0].id)


def test_copies_carry_their_annotations(api, dataset):
    meta = sly.ProjectMeta.from_json(api.project.get_meta(dataset.project_id))
    image = api.image.get_list(dataset.id)[0]
    api.annotation.upload_ann(image.id, samples.annotation(meta, 0))
    target = api.dataset.create(dataset.project_id, "copies")
    copied = api.image.copy_batch_optimized(dataset.id, [image], target.id)
    titles = [[o["classTitle"] for o in api.annotation.download_json(i)["objects"]] for i in (image.id, copied[0].id)]
    assert titles[0] == titles[1] != []
    assert copied[0].hash == image.hash


def test_figures_of_a_dataset_come_in_whole_pixels(api, dataset):
    meta = sly.ProjectMeta.from_json(api.project.get_meta(dataset.project_id))
    image = api.image.get_list(dataset.id)[0]
    api.annotation.upload_ann(image.id, samples.annotation(meta, 0))
    figures = api.image.figure.download(dataset.id, [image.id])[image.id]
    frame = next(figure for figure in figures if figure.class_id == meta.get_obj_class("frame").sly_id)
    assert frame.geometry["points"]["exterior"] == [[0, 0], [samples.WIDTH - 1, samples.HEIGHT - 1]]
    assert (frame.bbox.bottom, frame.bbox.right) == (samples.HEIGHT - 1, samples.WIDTH - 1)
    assert len(figures) == 7


def test_collections_hold_images_and_their_names_are_found(api, dataset):
    ids = [image.id for image in api.image.get_list(dataset.id)][:5]
    collection = api.entities_collection.create(dataset.project_id, "train_001", change_name_if_conflict=True)
    api.entities_collection.add_items(collection.id, ids)
    again = api.entities_collection.create(dataset.project_id, "train_001", change_name_if_conflict=True)
    assert again.name != collection.name
    listed = api.entities_collection.get_list(dataset.project_id)
    assert [item.name for item in listed] == [collection.name, again.name]
    assert [image.id for image in api.image.get_list(project_id=dataset.project_id,
            entities_collection_id=collection.id)] == ids  # fmt: skip
    with pytest.raises(RuntimeError, match="Failed to add"):
        api.entities_collection.add_items(collection.id, [10**9])
    api.entities_collection.remove_items(collection.id, ids[:2])
    api.entities_collection.remove(again.id)
    assert api.entities_collection.get_info_by_id(again.id) is None
