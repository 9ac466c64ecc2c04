"""Methods of annotations, figures and tags."""

import json
from sqlite3 import Row

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from sandbox import datasets
from sandbox.coordinates import bounds, to_pixel
from sandbox.errors import ApiError, not_found
from sandbox.images import get_rows
from sandbox.labels import Names, add_figure, add_tag, annotations, set_annotation, tag_json
from sandbox.methods import Json, Methods, Store
from sandbox.multipart import multipart
from sandbox.paging import answer_page
from sandbox.payload import integer, integers, items, mapping
from sandbox.storage import Storage, dump, now

router = Methods()

_FIGURE_COLUMNS = {
    "id": "f.id", "classId": "f.class_id", "entityId": "f.image_id", "imageId": "f.image_id",
    "geometryType": "f.geometry_type", "createdAt": "f.created_at", "updatedAt": "f.updated_at",
}  # fmt: skip
_FIGURE_TABLE = "figures f JOIN images i ON i.id=f.image_id JOIN datasets d ON d.id=i.dataset_id"
_FIGURE_SELECT = "f.*, i.dataset_id, i.hash, d.project_id"


def _touch(storage: Storage, rows: list[Row]) -> None:
    for dataset_id in {row["dataset_id"] for row in rows}:
        storage.touch_dataset(dataset_id)


@router.method("annotations.bulk.add")
def annotations_add(body: Json, store: Store) -> dict:
    entries = items(body, "annotations")
    with store.transaction():
        rows = get_rows(store, [integer(entry, "imageId") for entry in entries])
        names = {project_id: Names(store, project_id) for project_id in {row["project_id"] for row in rows}}
        for row, entry in zip(rows, entries, strict=True):
            set_annotation(store, names[row["project_id"]], row["id"], mapping(entry, "annotation"))
        _touch(store, rows)
    return {"success": True}


def _info(store: Storage, ids: list[int], body: dict) -> list[dict]:
    rows = get_rows(store, ids)
    if not rows:
        return []
    projects = {row["project_id"] for row in rows}
    if len(projects) > 1:
        raise ApiError(400, f"Images of one request must be of one project. Received images of {sorted(projects)}")
    return annotations(store, Names(store, projects.pop()), rows, custom_data=bool(body.get("withCustomBigData")))


@router.method("annotations.info")
def annotations_info(body: Json, store: Store) -> dict:
    return _info(store, [integer(body, "imageId")], body)[0]


@router.method("annotations.bulk.info")
def annotations_bulk_info(body: Json, store: Store) -> list[dict]:
    return _info(store, integers(body, "imageIds"), body)


@router.method("annotations.list")
def annotations_list(body: Json, store: Store) -> dict:
    dataset_id = integer(body, "datasetId")
    datasets.get(store, dataset_id)
    columns = {"id": "i.id", "imageId": "i.id", "imageName": "i.name", "name": "i.name"}
    return answer_page(
        store, body, table="images i", select="i.id", columns=columns, where=["i.dataset_id=?"], values=[dataset_id],
        convert=lambda rows: _info(store, [row["id"] for row in rows], body),
    )  # fmt: skip


@router.method("annotations.bulk.copy")
def annotations_copy(body: Json, store: Store) -> dict:
    sources, targets = integers(body, "srcImageIds"), integers(body, "destImageIds")
    if len(sources) != len(targets):
        raise ApiError(400, f"As many images must be copied to as from. Received: {len(sources)} and {len(targets)}")
    copied = _info(store, sources, {"withCustomBigData": True})
    entries = [
        {"imageId": target, "annotation": item["annotation"]} for target, item in zip(targets, copied, strict=True)
    ]
    return annotations_add({"annotations": entries}, store)


@router.method("figures.bulk.add")
def figures_add(body: Json, store: Store) -> list[dict]:
    entries, shared = items(body, "figures"), body.get("entityId")
    with store.transaction():
        ids = [integer(entry, "entityId", shared) for entry in entries]
        if None in ids:
            raise ApiError(400, "Field 'entityId' is required, for all figures or in each: expected an image's id.")
        rows = get_rows(store, ids)
        names = {project_id: Names(store, project_id) for project_id in {row["project_id"] for row in rows}}
        figures = [
            {"id": add_figure(store, names[row["project_id"]], row["id"], entry), "entityId": row["id"]}
            for row, entry in zip(rows, entries, strict=True)
        ]
        for image_id in set(ids):
            store.run("UPDATE images SET updated_at=? WHERE id=?", now(), image_id)
        _touch(store, rows)
    return figures


def _figures(storage: Storage, ids: list[int]) -> list[Row]:
    found = {
        row["id"]: row
        for row in storage.all(
            f"SELECT {_FIGURE_SELECT} FROM {_FIGURE_TABLE} WHERE f.id IN (SELECT value FROM json_each(?))", dump(ids)
        )
    }
    for figure_id in ids:
        if figure_id not in found:
            raise not_found("Figure", figure_id)
    return [found[figure_id] for figure_id in ids]


@router.method("figures.bulk.remove")
def figures_remove(body: Json, store: Store) -> dict:
    with store.transaction():
        rows = _figures(store, integers(body, "figureIds"))
        for row in rows:
            store.run("DELETE FROM figures WHERE id=?", row["id"])
        _touch(store, rows)
    return {"success": True}


@router.method("figures.bulk.upload.geometry")
async def figures_upload_geometry(request: Request, store: Store) -> dict:
    async with request.form(max_files=float("inf"), max_fields=float("inf")) as form:
        pairs = form.multi_items()
        ids = [int(value) for key, value in pairs if key == "figureId"]
        contents = [await v.read() for key, v in pairs if key == "geometry" and isinstance(v, UploadFile)]
    if len(ids) != len(contents):
        raise ApiError(400, f"Each 'figureId' needs a 'geometry'. Received: {len(ids)} ids, {len(contents)} geometries")

    def keep() -> None:
        with store.transaction():
            rows = _figures(store, ids)
            for figure_id, content in zip(ids, contents, strict=True):
                geometry = {"bitmap": json.loads(content)}
                store.run("UPDATE figures SET geometry=?, updated_at=? WHERE id=?", dump(geometry), now(), figure_id)
            _touch(store, rows)

    await run_in_threadpool(keep)
    return {"success": True}


@router.method("figures.bulk.download.geometry")
def figures_download_geometry(body: Json, store: Store) -> object:
    rows = _figures(store, integers(body, "ids"))
    return multipart((str(row["id"]), dump(json.loads(row["geometry"]).get("bitmap", {})).encode()) for row in rows)


def _figure_json(storage: Storage, rows: list[Row], *, whole_pixels: bool, fields: list[str] | None) -> list[dict]:
    names = {project_id: Names(storage, project_id) for project_id in {row["project_id"] for row in rows}}
    tags: dict[int, list[dict]] = {row["id"]: [] for row in rows}
    project_of = {row["id"]: row["project_id"] for row in rows}
    for row in storage.all(
        "SELECT * FROM tags WHERE figure_id IN (SELECT value FROM json_each(?)) ORDER BY id", dump(list(tags))
    ):
        tags[row["figure_id"]].append(tag_json(row, names[project_of[row["figure_id"]]]))
    result = []
    for row in rows:
        geometry, extra = json.loads(row["geometry"]), json.loads(row["extra"])
        if whole_pixels:
            size = storage.one("SELECT width, height FROM image_blobs WHERE hash=?", row["hash"])
            to_pixel(geometry, row["geometry_type"], tuple(size))
        box = bounds(geometry)
        figure = {
            "id": row["id"], "classId": row["class_id"], "imageId": row["image_id"], "entityId": row["image_id"],
            "objectId": None, "projectId": row["project_id"], "datasetId": row["dataset_id"],
            "geometryType": row["geometry_type"], "geometry": geometry, "geometryMeta": box and {"bbox": box},
            "tags": tags[row["id"]], "meta": extra.get("meta", {}), "area": None, "priority": row["priority"],
            "customData": extra.get("customData", {}), "nnCreated": extra.get("nnCreated", False),
            "nnUpdated": extra.get("nnUpdated", False), "createdAt": row["created_at"], "updatedAt": row["updated_at"],
        }  # fmt: skip
        result.append({k: v for k, v in figure.items() if not fields or k in fields or k in ("id", "entityId")})
    return result


@router.method("figures.list")
def figures_list(body: Json, store: Store) -> dict:
    if body.get("filters"):
        raise ApiError(400, f"The sandbox does not know the 'filters' of figures. Received: {body['filters']}")
    if body.get("datasetId") is not None:
        where, values = ["i.dataset_id=?"], [integer(body, "datasetId")]
    else:
        where, values = ["d.project_id=?"], [integer(body, "projectId")]
    return answer_page(
        store, body, table=_FIGURE_TABLE, select=_FIGURE_SELECT, columns=_FIGURE_COLUMNS, where=where, values=values,
        convert=lambda rows: _figure_json(
            store, rows, whole_pixels=bool(body.get("integerCoords", True)), fields=body.get("fields")
        ),
    )  # fmt: skip


@router.method("figures.info")
def figures_info(body: Json, store: Store) -> dict:
    return _figure_json(store, _figures(store, [integer(body, "id")]), whole_pixels=True, fields=body.get("fields"))[0]


@router.method("image-tags.bulk.add-to-image")
def image_tags_add(body: Json, store: Store) -> list[dict]:
    tag_id, value = integer(body, "tagId"), body.get("value")
    return _tag_images(store, [(image_id, tag_id, value) for image_id in integers(body, "ids")])


@router.method("tags.entities.bulk.add")
def entity_tags_add(body: Json, store: Store) -> list[dict]:
    return _tag_images(
        store, [(integer(t, "entityId"), integer(t, "tagId"), t.get("value")) for t in items(body, "tags")]
    )


def _tag_images(storage: Storage, tags: list[tuple[int, int, object]]) -> list[dict]:
    with storage.transaction():
        rows = get_rows(storage, [image_id for image_id, _, _ in tags])
        names = {project_id: Names(storage, project_id) for project_id in {row["project_id"] for row in rows}}
        added = [
            {"id": add_tag(storage, row["id"], None, names[row["project_id"]].tag_id({"tagId": tag_id}), value),
             "tagId": tag_id, "entityId": row["id"], "value": value}
            for row, (_, tag_id, value) in zip(rows, tags, strict=True)
        ]  # fmt: skip
        _touch(storage, rows)
    return added


@router.method("figures.tags.bulk.add")
def figure_tags_add(body: Json, store: Store) -> list[dict]:
    entries = items(body, "tags")
    with store.transaction():
        rows = _figures(store, [integer(entry, "figureId") for entry in entries])
        names = {project_id: Names(store, project_id) for project_id in {row["project_id"] for row in rows}}
        added = []
        for row, entry in zip(rows, entries, strict=True):
            tag_id = names[row["project_id"]].tag_id({"tagId": integer(entry, "tagId")})
            added_id = add_tag(store, row["image_id"], row["id"], tag_id, entry.get("value"))
            added.append({"id": added_id, "tagId": tag_id, "figureId": row["id"], "value": entry.get("value")})
        _touch(store, rows)
    return added
