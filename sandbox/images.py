"""Methods of images: listing, upload, download."""

import json
from sqlite3 import Row

from fastapi import Body, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from sandbox import datasets
from sandbox.errors import ApiError, not_found
from sandbox.imagefile import UnreadableImage, inspect, mime
from sandbox.methods import Json, Methods, Store, address, content_path
from sandbox.multipart import multipart
from sandbox.paging import answer_page
from sandbox.payload import integer, integers, items, mapping, text
from sandbox.storage import USER_ID, USER_LOGIN, Storage, dump, now

router = Methods()

_COLUMNS = {
    "id": "i.id", "name": "i.name", "title": "i.name", "hash": "i.hash", "datasetId": "i.dataset_id",
    "size": "b.size", "width": "b.width", "height": "b.height", "createdAt": "i.created_at",
    "updatedAt": "i.updated_at", "parentId": "i.parent_id",
}  # fmt: skip
_TABLE = "images i JOIN image_blobs b ON b.hash=i.hash JOIN datasets d ON d.id=i.dataset_id"
_SELECT = """i.*, b.size, b.format, b.width, b.height, d.project_id,
    (SELECT COUNT(*) FROM figures f WHERE f.image_id=i.id) AS labels_count"""


def _tags(storage: Storage, ids: list[int]) -> dict[int, list[dict]]:
    rows = storage.all(
        "SELECT * FROM tags WHERE figure_id IS NULL AND image_id IN (SELECT value FROM json_each(?)) ORDER BY id",
        dump(ids),
    )
    result: dict[int, list[dict]] = {image_id: [] for image_id in ids}
    for row in rows:
        result[row["image_id"]].append({
            "id": row["id"], "tagId": row["tag_id"], "value": json.loads(row["value"]), "entityId": row["image_id"],
            "labelerLogin": USER_LOGIN, "createdAt": row["created_at"], "updatedAt": row["updated_at"],
        })  # fmt: skip
    return result


def to_json(storage: Storage, rows: list[Row], base: str, fields: list[str] | None = None) -> list[dict]:
    """Images as ``images.info`` answers them, in the order of ``rows``; with ``fields``, only these and the id."""
    tags = _tags(storage, [row["id"] for row in rows])
    result = []
    for row in rows:
        path = content_path(row["hash"], row["name"])
        image = {
            "id": row["id"], "name": row["name"], "title": row["name"], "description": row["description"],
            "link": None, "hash": row["hash"], "mime": mime(row["format"], row["name"]), "size": str(row["size"]),
            "width": row["width"], "height": row["height"], "labelsCount": row["labels_count"],
            "datasetId": row["dataset_id"], "projectId": row["project_id"], "parentId": row["parent_id"],
            "createdAt": row["created_at"], "updatedAt": row["updated_at"], "createdBy": USER_ID,
            "meta": json.loads(row["meta"]), "tags": tags[row["id"]], "pathOriginal": path,
            "fullStorageUrl": base + path,
        }  # fmt: skip
        result.append(image if not fields else {key: image[key] for key in {*fields, "id"} if key in image})
    return result


def get_rows(storage: Storage, ids: list[int]) -> list[Row]:
    """The rows of images, in the order of ``ids``.

    Raises:
        ApiError: 404 naming the first image that does not exist.
    """
    found = {
        row["id"]: row
        for row in storage.all(
            f"SELECT {_SELECT} FROM {_TABLE} WHERE i.id IN (SELECT value FROM json_each(?))", dump(ids)
        )
    }
    for image_id in ids:
        if image_id not in found:
            raise not_found("Image", image_id)
    return [found[image_id] for image_id in ids]


def _advanced(filters: list[dict]) -> tuple[list[str], list[object]]:
    """SQL conditions of ``filters``, the page's own filters (by class, tag, name, collection)."""
    where: list[str] = []
    values: list[object] = []
    for item in filters:
        kind, data = text(item, "type"), mapping(item, "data", {})
        negation = "" if data.get("include", True) else "NOT "
        if kind == "images_filename":
            where.append("instr(i.name, ?) > 0")
            values.append(text(data, "value"))
        elif kind == "entities_collection":
            where.append(f"i.id {negation}IN (SELECT image_id FROM collection_items WHERE collection_id=?)")
            values.append(integer(data, "collectionId"))
        elif kind == "objects_class":
            where.append(
                "(SELECT COUNT(*) FROM figures f WHERE f.image_id=i.id AND (? IS NULL OR f.class_id=?))"
                f" {negation}BETWEEN ? AND ?"
            )
            class_id = data.get("classId")
            values += [class_id, class_id, data.get("from", 1), data.get("to", 9999)]
        elif kind == "images_tag":
            where.append(
                f"i.id {negation}IN (SELECT image_id FROM tags WHERE figure_id IS NULL AND tag_id=?"
                " AND (? IS NULL OR value=?))"
            )
            value = None if data.get("value") is None else dump(data["value"])
            values += [integer(data, "tagId"), value, value]
        else:
            raise ApiError(
                400,
                "The sandbox knows the filters images_filename, images_tag, objects_class and entities_collection. "
                f"Received: {kind!r}",
            )
    return where, values


@router.method("images.list")
def images_list(body: Json, store: Store, request: Request) -> dict:
    where, values = _advanced(body.get("filters") or [])
    if body.get("datasetId") is not None:
        dataset_id = integer(body, "datasetId")
        datasets.get(store, dataset_id)
        if body.get("recursive"):
            where.append(
                "i.dataset_id IN (WITH RECURSIVE tree(id) AS (VALUES(?) UNION ALL SELECT c.id FROM datasets c"
                " JOIN tree t ON c.parent_id=t.id) SELECT id FROM tree)"
            )
        else:
            where.append("i.dataset_id=?")
        values.append(dataset_id)
    elif body.get("projectId") is not None:
        where.append("d.project_id=?")
        values.append(integer(body, "projectId"))
    else:
        raise ApiError(400, "Field 'datasetId' or 'projectId' is required: expected an integer.")
    base, fields = address(request), body.get("fields")
    return answer_page(
        store, body, table=_TABLE, select=_SELECT, columns=_COLUMNS, where=where, values=values,
        convert=lambda rows: to_json(store, rows, base, fields),
    )  # fmt: skip


@router.method("images.info")
def images_info(body: Json, store: Store, request: Request) -> dict:
    return to_json(store, get_rows(store, [integer(body, "id")]), address(request))[0]


@router.method("images.internal.hashes.list")
def hashes_list(hashes: list[str] = Body(), *, store: Store) -> list[str]:  # noqa: B008
    stored = "SELECT hash FROM image_blobs UNION SELECT hash FROM video_blobs"
    rows = store.all(f"SELECT hash FROM ({stored}) WHERE hash IN (SELECT value FROM json_each(?))", dump(hashes))
    return [row["hash"] for row in rows]


def add_content(storage: Storage, content_hash: str, size: int) -> None:
    """Note the size and format of an image whose content is in the store.

    Raises:
        UnreadableImage: If the content is no image that can be decoded.
    """
    kind, width, height = inspect(storage.blobs.path(content_hash))
    storage.run("INSERT OR IGNORE INTO image_blobs VALUES (?,?,?,?,?)", content_hash, size, kind, width, height)


@router.method("images.bulk.upload")
async def images_upload(request: Request, store: Store) -> list[dict]:
    def take(file: UploadFile) -> dict:
        content_hash, size = store.blobs.put(file.file)
        try:
            add_content(store, content_hash, size)
        except UnreadableImage as error:
            return {"errors": [{"message": str(error)}]}
        return {"hash": content_hash, "size": size}

    async with request.form(max_files=float("inf")) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [await run_in_threadpool(take, file) for file in files]


def _hash_of(storage: Storage, item: dict) -> str:
    if item.get("imageId") is not None:
        return get_rows(storage, [integer(item, "imageId")])[0]["hash"]
    if item.get("hash") is None:
        raise ApiError(400, f"The sandbox adds images by 'hash' or 'imageId', not by link. Received: {sorted(item)}")
    if storage.one("SELECT 1 FROM image_blobs WHERE hash=?", item["hash"]) is None:
        raise ApiError(400, f"No image with hash {item['hash']!r} was uploaded: call images.bulk.upload before.")
    return item["hash"]


def add(storage: Storage, dataset_id: int, entries: list[dict]) -> list[int]:
    """Add images to a dataset, by content hash or as copies of other images; call inside a transaction.

    Args:
        storage: The state.
        dataset_id: The dataset.
        entries: As in ``images.bulk.add``: ``title``, ``hash`` or ``imageId``, and optionally ``meta``, ``parentId``.

    Returns:
        The ids, in the order of ``entries``.

    Raises:
        ApiError: 400 with ``type="NONUNIQUE"`` if names are taken; the SDK's conflict resolution reads the details.
    """
    datasets.get(storage, dataset_id)
    names = [text(entry, "title", None) or text(entry, "name") for entry in entries]
    taken = storage.all(
        "SELECT id, name FROM images WHERE dataset_id=? AND name IN (SELECT value FROM json_each(?))",
        dataset_id, dump(names),
    )  # fmt: skip
    if taken or len(set(names)) != len(names):
        raise ApiError(
            400, f"Images of these names exist in dataset {dataset_id}: {[row['name'] for row in taken] or names}",
            type="NONUNIQUE", errors=[dict(row) for row in taken],
        )  # fmt: skip
    moment = now()
    ids = [
        storage.run(
            "INSERT INTO images (dataset_id, name, hash, meta, description, parent_id, custom_big_data, created_at,"
            " updated_at) VALUES (?,?,?,?,?,?,?,?,?)",
            dataset_id, name, _hash_of(storage, entry), dump(mapping(entry, "meta", {})),
            text(entry, "description", ""), integer(entry, "parentId", None), "{}", moment, moment,
        )
        for name, entry in zip(names, entries, strict=True)
    ]  # fmt: skip
    storage.touch_dataset(dataset_id)
    return ids


@router.method("images.bulk.add")
def images_add(body: Json, store: Store, request: Request) -> list[dict]:
    with store.transaction():
        ids = add(store, integer(body, "datasetId"), items(body, "images"))
    return to_json(store, get_rows(store, ids), address(request))


@router.method("images.editInfo")
def images_edit(body: Json, store: Store, request: Request) -> dict:
    image_id = integer(body, "id")
    with store.transaction():
        row = get_rows(store, [image_id])[0]
        name = text(body, "name", row["name"])
        taken = store.one(
            "SELECT 1 FROM images WHERE dataset_id=? AND name=? AND id<>?", row["dataset_id"], name, image_id
        )
        if taken:
            raise ApiError(400, f"An image named {name!r} exists in this dataset.", type="NONUNIQUE")
        store.run(
            "UPDATE images SET name=?, description=?, meta=?, updated_at=? WHERE id=?",
            name, body.get("description", row["description"]), dump(mapping(body, "meta", json.loads(row["meta"]))),
            now(), image_id,
        )  # fmt: skip
        store.touch_dataset(row["dataset_id"])
    return images_info({"id": image_id}, store, request)


@router.method("images.bulk.remove")
def images_remove(body: Json, store: Store) -> dict:
    with store.transaction():
        ids = integers(body, "imageIds")
        videos = store.all("SELECT * FROM videos WHERE id IN (SELECT value FROM json_each(?))", dump(ids))
        known = {row["id"] for row in videos}
        rows = [*videos, *get_rows(store, [each for each in ids if each not in known])]
        for table in ("images", "videos"):
            store.run(f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))", dump(ids))
        for dataset_id in {row["dataset_id"] for row in rows}:
            store.touch_dataset(dataset_id)
    return {"success": True}


@router.method("images.download")
def images_download(body: Json, store: Store) -> FileResponse:
    row = get_rows(store, [integer(body, "id")])[0]
    return FileResponse(
        store.blobs.path(row["hash"]), media_type=mime(row["format"], row["name"]), filename=row["name"],
        headers={"x-content-checksum-sha256": row["hash"]},
    )  # fmt: skip


@router.method("images.bulk.download")
def images_bulk_download(body: Json, store: Store) -> object:
    rows = get_rows(store, integers(body, "imageIds"))
    dataset_id = integer(body, "datasetId")
    strangers = [row["id"] for row in rows if row["dataset_id"] != dataset_id]
    if strangers:
        raise ApiError(400, f"Images {strangers} are not in dataset {dataset_id}.")
    return multipart((str(row["id"]), store.blobs.path(row["hash"]).read_bytes()) for row in rows)


@router.method("images.bulk.download-by-hash")
def images_download_by_hash(body: Json, store: Store) -> object:
    hashes = items(body, "hashes")
    known = hashes_list(hashes, store=store)
    for content_hash in hashes:
        if content_hash not in known:
            raise not_found("Image with hash", content_hash)
    return multipart((content_hash, store.blobs.path(content_hash).read_bytes()) for content_hash in hashes)
