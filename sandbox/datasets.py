"""Methods of datasets, which may be nested."""

import json
from collections.abc import Callable
from sqlite3 import Row

from fastapi import Request

from sandbox import projects
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store, address, content_path
from sandbox.paging import answer_page
from sandbox.payload import integer, items, mapping, text
from sandbox.storage import USER_ID, Storage, dump, now

router = Methods()

_COLUMNS = {
    "id": "d.id", "name": "d.name", "title": "d.name", "parentId": "d.parent_id", "projectId": "d.project_id",
    "createdAt": "d.created_at", "updatedAt": "d.updated_at",
}  # fmt: skip
_TABLE = "datasets d JOIN projects p ON p.id=d.project_id JOIN workspaces w ON w.id=p.workspace_id"
_SELECT = """d.*, p.workspace_id, w.team_id,
    (SELECT COUNT(*) FROM images i WHERE i.dataset_id=d.id) AS images_count,
    (SELECT COUNT(*) FROM videos v WHERE v.dataset_id=d.id) AS videos_count,
    (SELECT COALESCE(SUM(b.size), 0) FROM images i JOIN image_blobs b ON b.hash=i.hash WHERE i.dataset_id=d.id) AS size,
    (SELECT i.hash FROM images i WHERE i.dataset_id=d.id LIMIT 1) AS first_image"""


def _converter(base: str, *, custom_data: bool) -> Callable[[list[Row]], list[dict]]:
    def convert(rows: list[Row]) -> list[dict]:
        return [
            {
                "id": row["id"], "name": row["name"], "title": row["name"], "description": row["description"],
                "size": str(row["size"]), "projectId": row["project_id"], "parentId": row["parent_id"],
                "imagesCount": row["images_count"], "itemsCount": row["images_count"] + row["videos_count"],
                "createdAt": row["created_at"], "updatedAt": row["updated_at"], "createdBy": USER_ID,
                "referenceImageUrl": base + content_path(row["first_image"]),
                "teamId": row["team_id"], "workspaceId": row["workspace_id"],
                "customData": json.loads(row["custom_data"]) if custom_data else None,
            }
            for row in rows
        ]  # fmt: skip

    return convert


def get(storage: Storage, dataset_id: int, base: str = "") -> dict:
    """A dataset as ``datasets.info`` answers it.

    Raises:
        ApiError: 404 if there is no such dataset.
    """
    row = storage.one(f"SELECT {_SELECT} FROM {_TABLE} WHERE d.id=?", dataset_id)
    if row is None:
        raise not_found("Dataset", dataset_id)
    return _converter(base, custom_data=True)([row])[0]


def create(storage: Storage, body: dict) -> int:
    """Add an empty dataset from the body of ``datasets.add`` and return its id; call inside a transaction."""
    project_id, name, moment = integer(body, "projectId"), text(body, "name"), now()
    parent_id = integer(body, "parentId", None)
    projects.get(storage, project_id)
    if parent_id is not None and get(storage, parent_id)["projectId"] != project_id:
        raise ApiError(400, f"Parent dataset {parent_id} is in another project than {project_id}.")
    _check_name(storage, project_id, parent_id, name)
    storage.run("UPDATE projects SET updated_at=? WHERE id=?", moment, project_id)
    return storage.run(
        "INSERT INTO datasets (project_id, parent_id, name, description, custom_data, created_at, updated_at)"
        " VALUES (?,?,?,?,?,?,?)",
        project_id, parent_id, name, text(body, "description", ""), dump(mapping(body, "customData", {})), moment,
        moment,
    )  # fmt: skip


def _check_name(storage: Storage, project_id: int, parent_id: int | None, name: str) -> None:
    query = "SELECT 1 FROM datasets WHERE project_id=? AND parent_id IS ? AND name=?"
    if storage.one(query, project_id, parent_id, name):
        raise ApiError(400, f"A dataset named {name!r} exists at this place already.", type="NONUNIQUE")


@router.method("datasets.list")
def datasets_list(body: Json, store: Store, request: Request) -> dict:
    project_id = integer(body, "projectId")
    projects.get(store, project_id)
    where = ["d.project_id=?"] + ([] if body.get("recursive") else ["d.parent_id IS NULL"])
    return answer_page(
        store, body, table=_TABLE, select=_SELECT, columns=_COLUMNS, where=where, values=[project_id],
        convert=_converter(address(request), custom_data="customData" in (body.get("extraFields") or [])),
    )  # fmt: skip


@router.method("datasets.info")
def datasets_info(body: Json, store: Store, request: Request) -> dict:
    return get(store, integer(body, "id"), address(request))


@router.method("datasets.add")
def datasets_add(body: Json, store: Store, request: Request) -> dict:
    with store.transaction():
        dataset_id = create(store, body)
    return get(store, dataset_id, address(request))


@router.method("datasets.editInfo")
def datasets_edit(body: Json, store: Store, request: Request) -> dict:
    dataset_id = integer(body, "id")
    with store.transaction():
        dataset = get(store, dataset_id)
        name = text(body, "name", dataset["name"])
        if name != dataset["name"]:
            _check_name(store, dataset["projectId"], dataset["parentId"], name)
        store.run(
            "UPDATE datasets SET name=?, description=?, custom_data=? WHERE id=?",
            name, body.get("description", dataset["description"]),
            dump(mapping(body, "customData", dataset["customData"])), dataset_id,
        )  # fmt: skip
        store.touch_dataset(dataset_id)
    return get(store, dataset_id, address(request))


@router.method("datasets.archive")
def datasets_archive(body: Json, store: Store) -> dict:
    _remove(store, [integer(body, "id")])
    return {"success": True}


@router.method("datasets.remove.permanently")
def datasets_remove(body: Json, store: Store) -> dict:
    _remove(store, [integer(item, "id") for item in items(body, "datasets")])
    return {"success": True}


def _remove(storage: Storage, ids: list[int]) -> None:
    with storage.transaction():
        for dataset_id in ids:
            get(storage, dataset_id)
            storage.touch_dataset(dataset_id)
            storage.run("DELETE FROM datasets WHERE id=?", dataset_id)
