"""Methods of entity collections: named sets of a project's images."""

import json
from sqlite3 import Row

from sandbox import projects
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store
from sandbox.paging import answer_page
from sandbox.payload import integer, integers, items, mapping, text
from sandbox.storage import USER_ID, Storage, dump, now

router = Methods()

_COLUMNS = {
    "id": "c.id", "name": "c.name", "title": "c.name", "type": "c.type", "createdAt": "c.created_at",
    "updatedAt": "c.updated_at",
}  # fmt: skip


_TABLE = "collections c JOIN projects p ON p.id=c.project_id JOIN workspaces w ON w.id=p.workspace_id"
_SELECT = "c.*, w.team_id"


def _to_json(rows: list[Row]) -> list[dict]:
    return [
        {
            "id": row["id"], "name": row["name"], "teamId": row["team_id"], "projectId": row["project_id"],
            "description": row["description"],
            "type": row["type"], "meta": json.loads(row["meta"]), "createdAt": row["created_at"],
            "updatedAt": row["updated_at"], "createdBy": USER_ID, "options": {},
        }
        for row in rows
    ]  # fmt: skip


def _get(storage: Storage, collection_id: int) -> dict:
    rows = storage.all(f"SELECT {_SELECT} FROM {_TABLE} WHERE c.id=?", collection_id)
    if not rows:
        raise not_found("Collection", collection_id)
    return _to_json(rows)[0]


@router.method("entities-collections.list")
def collections_list(body: Json, store: Store) -> dict:
    project_id = integer(body, "projectId")
    projects.get(store, project_id)
    where, values = ["c.project_id=?"], [project_id]
    if body.get("type") not in (None, "all"):
        where.append("c.type=?")
        values.append(text(body, "type"))
    return answer_page(
        store, body, table=_TABLE, select=_SELECT, columns=_COLUMNS, convert=_to_json, where=where, values=values
    )


@router.method("entities-collections.info")
def collections_info(body: Json, store: Store) -> dict:
    return _get(store, integer(body, "id"))


def _check_name(storage: Storage, project_id: int, name: str) -> None:
    if storage.one("SELECT 1 FROM collections WHERE project_id=? AND name=?", project_id, name):
        raise ApiError(400, f"A collection named {name!r} exists in project {project_id}.", type="NONUNIQUE")


@router.method("entities-collections.add")
def collections_add(body: Json, store: Store) -> dict:
    project_id, name, moment = integer(body, "projectId"), text(body, "name"), now()
    with store.transaction():
        projects.get(store, project_id)
        _check_name(store, project_id, name)
        collection_id = store.run(
            "INSERT INTO collections (project_id, name, description, type, meta, created_at, updated_at)"
            " VALUES (?,?,?,?,?,?,?)",
            project_id, name, text(body, "description", ""), text(body, "type", "default"),
            dump(mapping(body, "meta", {})), moment, moment,
        )  # fmt: skip
    return _get(store, collection_id)


@router.method("entities-collections.editInfo")
def collections_edit(body: Json, store: Store) -> dict:
    collection_id = integer(body, "id")
    with store.transaction():
        collection = _get(store, collection_id)
        name = text(body, "name", collection["name"])
        if name != collection["name"]:
            _check_name(store, collection["projectId"], name)
        store.run(
            "UPDATE collections SET name=?, description=?, updated_at=? WHERE id=?",
            name, body.get("description", collection["description"]), now(), collection_id,
        )  # fmt: skip
    return _get(store, collection_id)


@router.method("entities-collections.remove")
def collections_remove(body: Json, store: Store) -> dict:
    with store.transaction():
        store.run("DELETE FROM collections WHERE id=?", _get(store, integer(body, "id"))["id"])
    return {"success": True}


@router.method("entities-collections.items.bulk.add")
def items_add(body: Json, store: Store) -> dict:
    collection_id = integer(body, "collectionId")
    if body.get("entityItems") is not None:
        wanted = [(integer(item, "entityId"), item.get("meta") or {}) for item in items(body, "entityItems")]
    else:
        wanted = [(entity_id, {}) for entity_id in integers(body, "entityIds")]
    with store.transaction():
        project_id = _get(store, collection_id)["projectId"]
        known = {
            row["id"]
            for row in store.all(
                "SELECT i.id FROM images i JOIN datasets d ON d.id=i.dataset_id WHERE d.project_id=?"
                " AND i.id IN (SELECT value FROM json_each(?))",
                project_id, dump([entity_id for entity_id, _ in wanted]),
            )
        }  # fmt: skip
        for entity_id, meta in wanted:
            if entity_id in known:
                store.run(
                    "INSERT OR REPLACE INTO collection_items (collection_id, image_id, meta) VALUES (?,?,?)",
                    collection_id, entity_id, dump(meta),
                )  # fmt: skip
    return {
        "items": [{"entityId": entity_id} for entity_id, _ in wanted if entity_id in known],
        "missing": [{"id": entity_id} for entity_id, _ in wanted if entity_id not in known],
    }


@router.method("entities-collections.items.bulk.remove")
def items_remove(body: Json, store: Store) -> dict:
    collection_id, ids = integer(body, "collectionId"), integers(body, "entityIds")
    with store.transaction():
        _get(store, collection_id)
        rows = store.all("SELECT image_id FROM collection_items WHERE collection_id=?", collection_id)
        present = {row["image_id"] for row in rows} & set(ids)
        for entity_id in present:
            store.run("DELETE FROM collection_items WHERE collection_id=? AND image_id=?", collection_id, entity_id)
    return {
        "items": [{"entityId": entity_id} for entity_id in ids if entity_id in present],
        "missing": [{"id": entity_id} for entity_id in ids if entity_id not in present],
    }
