"""Methods of projects."""

import json
import secrets
from sqlite3 import Row

from fastapi import Request

from sandbox import projectmeta
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store, address, content_path
from sandbox.paging import answer_page, whole
from sandbox.payload import integer, items, mapping, text
from sandbox.storage import USER_ID, Storage, dump, now

router = Methods()

_COLUMNS = {
    "id": "p.id", "name": "p.name", "title": "p.name", "workspaceId": "p.workspace_id", "type": "p.type",
    "createdAt": "p.created_at", "updatedAt": "p.updated_at",
}  # fmt: skip
_TABLE = "projects p JOIN workspaces w ON w.id=p.workspace_id"
_SELECT = """p.*, w.team_id,
    (SELECT COUNT(*) FROM datasets d WHERE d.project_id=p.id) AS datasets_count,
    (SELECT COUNT(*) FROM images i JOIN datasets d ON d.id=i.dataset_id WHERE d.project_id=p.id) AS images_count,
    (SELECT COUNT(*) FROM videos v JOIN datasets d ON d.id=v.dataset_id WHERE d.project_id=p.id) AS videos_count,
    (SELECT COALESCE(SUM(b.size), 0) FROM images i JOIN datasets d ON d.id=i.dataset_id
        JOIN image_blobs b ON b.hash=i.hash WHERE d.project_id=p.id) AS size,
    (SELECT i.hash FROM images i JOIN datasets d ON d.id=i.dataset_id WHERE d.project_id=p.id LIMIT 1) AS first_image,
    (SELECT json_object('id', v.id, 'version', v.number) FROM versions v WHERE v.project_id=p.id AND v.committed
        ORDER BY v.number DESC LIMIT 1) AS version"""


def _project(row: Row, base: str) -> dict:
    return {
        "id": row["id"], "name": row["name"], "title": row["name"], "description": row["description"],
        "size": str(row["size"]), "readme": row["readme"], "workspaceId": row["workspace_id"],
        "teamId": row["team_id"], "groupId": row["team_id"], "imagesCount": row["images_count"],
        "itemsCount": row["images_count"] + row["videos_count"], "datasetsCount": row["datasets_count"],
        "type": row["type"], "createdAt": row["created_at"], "updatedAt": row["updated_at"], "createdBy": USER_ID,
        # The SDK edits this address in production, so it is a string even when there is no image.
        "referenceImageUrl": base + content_path(row["first_image"]),
        "customData": json.loads(row["custom_data"]), "settings": json.loads(row["settings"]),
        "backupArchive": None, "importSettings": {}, "version": row["version"] and json.loads(row["version"]),
        "embeddingsEnabled": False, "embeddingsInProgress": False, "embeddingsUpdatedAt": None,
        "localEntitiesCount": row["images_count"], "remoteEntitiesCount": 0,
    }  # fmt: skip


def get(storage: Storage, project_id: int, base: str = "") -> dict:
    """A project as ``projects.info`` answers it.

    Args:
        storage: The state.
        project_id: The project.
        base: The sandbox's address, put before the addresses of images.

    Raises:
        ApiError: 404 if there is no such project.
    """
    row = storage.one(f"SELECT {_SELECT} FROM {_TABLE} WHERE p.id=?", project_id)
    if row is None:
        raise not_found("Project", project_id)
    return _project(row, base)


def create(storage: Storage, body: dict) -> int:
    """Add an empty project from the body of ``projects.add`` and return its id; call inside a transaction."""
    workspace_id, name, moment = integer(body, "workspaceId"), text(body, "name"), now()
    if storage.one("SELECT 1 FROM workspaces WHERE id=?", workspace_id) is None:
        raise not_found("Workspace", workspace_id)
    if storage.one("SELECT 1 FROM projects WHERE workspace_id=? AND name=?", workspace_id, name):
        raise ApiError(400, f"A project named {name!r} exists in workspace {workspace_id}.", type="NONUNIQUE")
    kind = text(body, "type", "images")
    return storage.run(
        "INSERT INTO projects (workspace_id, name, description, readme, type, meta, settings, custom_data, created_at,"
        " updated_at) VALUES (?,?,?,?,?,?,?,?,?,?)",
        workspace_id, name, text(body, "description", ""), body.get("readme"), kind, dump(projectmeta.empty(kind)),
        dump(mapping(body, "settings", {})), dump(mapping(body, "customData", {})), moment, moment,
    )  # fmt: skip


@router.method("projects.list")
def projects_list(body: Json, store: Store, request: Request) -> dict:
    if body.get("workspaceId") is not None:
        where, values = ["p.workspace_id=?"], [integer(body, "workspaceId")]
    else:
        where, values = ["w.team_id=?"], [integer(body, "groupId")]
    base = address(request)
    return answer_page(
        store, body, table=_TABLE, select=_SELECT, columns=_COLUMNS, where=where, values=values,
        convert=lambda rows: [_project(row, base) for row in rows],
    )  # fmt: skip


@router.method("projects.info")
def projects_info(body: Json, store: Store, request: Request) -> dict:
    return get(store, integer(body, "id"), address(request))


@router.method("projects.add")
def projects_add(body: Json, store: Store, request: Request) -> dict:
    with store.transaction():
        project_id = create(store, body)
    return get(store, project_id, address(request))


@router.method("projects.editInfo")
def projects_edit(body: Json, store: Store, request: Request) -> dict:
    project_id = integer(body, "id")
    with store.transaction():
        project = get(store, project_id)
        if text(body, "name", project["name"]) != project["name"]:
            taken = "SELECT 1 FROM projects WHERE workspace_id=? AND name=?"
            if store.one(taken, project["workspaceId"], body["name"]):
                raise ApiError(400, f"A project named {body['name']!r} exists already.", type="NONUNIQUE")
        store.run(
            "UPDATE projects SET name=?, description=?, readme=?, custom_data=?, updated_at=? WHERE id=?",
            text(body, "name", project["name"]), body.get("description", project["description"]),
            body.get("readme", project["readme"]), dump(mapping(body, "customData", project["customData"])),
            # A silent edit is no change of the data: versions and caches must not see one.
            project["updatedAt"] if body.get("silent") else now(), project_id,
        )  # fmt: skip
    return get(store, project_id, address(request))


@router.method("projects.settings.update")
def projects_settings(body: Json, store: Store, request: Request) -> dict:
    project_id = integer(body, "id")
    with store.transaction():
        settings = {**get(store, project_id)["settings"], **mapping(body, "settings")}
        store.run("UPDATE projects SET settings=?, updated_at=? WHERE id=?", dump(settings), now(), project_id)
    return get(store, project_id, address(request))


@router.method("projects.archive")
def projects_archive(body: Json, store: Store) -> dict:
    _remove(store, [integer(body, "id")])
    return {"success": True}


@router.method("projects.remove.permanently")
def projects_remove(body: Json, store: Store) -> dict:
    _remove(store, [integer(item, "id") for item in items(body, "projects")])
    return {"success": True}


def _remove(storage: Storage, ids: list[int]) -> None:
    with storage.transaction():
        for project_id in ids:
            get(storage, project_id)
            storage.run("DELETE FROM projects WHERE id=?", project_id)


@router.method("projects.meta")
def projects_meta(body: Json, store: Store) -> dict:
    return projectmeta.read(store, integer(body, "id"))


@router.method("projects.meta.update")
def projects_meta_update(body: Json, store: Store) -> dict:
    project_id = integer(body, "id")
    with store.transaction():
        meta = projectmeta.write(store, project_id, mapping(body, "meta"))
        store.run("UPDATE projects SET updated_at=? WHERE id=?", now(), project_id)
    return meta


@router.method("advanced.object_classes.list")
def classes_list(body: Json, store: Store) -> dict:
    found = projectmeta.read(store, integer(body, "projectId"))["classes"]
    return whole([{**item, "name": item["title"]} for item in found])


@router.method("tags.list")
def tags_list(body: Json, store: Store) -> dict:
    return whole(projectmeta.read(store, integer(body, "projectId"))["tags"])


@router.method("projects.stats")
def projects_stats(body: Json, store: Store) -> dict:
    project_id = integer(body, "id")
    meta = projectmeta.read(store, project_id)
    datasets = store.all(
        "SELECT d.id, d.name, COUNT(i.id) AS images FROM datasets d LEFT JOIN images i ON i.dataset_id=d.id"
        " WHERE d.project_id=? GROUP BY d.id ORDER BY d.id", project_id,
    )  # fmt: skip

    def count(what: str, table: str, column: str, condition: str = "1") -> dict[int, dict[int, int]]:
        rows = store.all(
            f"SELECT t.{column} AS item, i.dataset_id, {what} AS total FROM {table} t JOIN images i ON i.id=t.image_id"
            f" JOIN datasets d ON d.id=i.dataset_id WHERE d.project_id=? AND {condition} GROUP BY 1, 2", project_id,
        )  # fmt: skip
        result: dict[int, dict[int, int]] = {}
        for row in rows:
            result.setdefault(row["item"], {})[row["dataset_id"]] = row["total"]
        return result

    def listing(key: str, entries: list[dict], counts: dict[int, dict[int, int]]) -> list[dict]:
        return [
            {
                key: {**entry, "name": entry.get("name", entry.get("title"))},
                "total": sum(counts.get(entry["id"], {}).values()),
                "datasets": [
                    {"id": d["id"], "name": d["name"], "count": counts.get(entry["id"], {}).get(d["id"], 0)}
                    for d in datasets
                ],
            }
            for entry in entries
        ]

    labelled = count("COUNT(DISTINCT t.image_id)", "figures", "class_id")
    figures = count("COUNT(*)", "figures", "class_id")
    of_images = count("COUNT(*)", "tags", "tag_id", "t.figure_id IS NULL")
    of_figures = count("COUNT(*)", "tags", "tag_id", "t.figure_id IS NOT NULL")
    return {
        "images": {
            "total": sum(d["images"] for d in datasets),
            "objectClasses": listing("objectClass", meta["classes"], labelled),
            "datasets": [{"id": d["id"], "name": d["name"], "imagesCount": d["images"]} for d in datasets],
        },
        "objects": {
            "total": sum(sum(per_dataset.values()) for per_dataset in figures.values()),
            "items": listing("objectClass", meta["classes"], figures),
        },
        "imageTags": {"items": listing("tagMeta", meta["tags"], of_images)},
        "objectTags": {"items": listing("tagMeta", meta["tags"], of_figures)},
    }


@router.method("projects.versions.reserve")
def versions_reserve(body: Json, store: Store) -> dict:
    with store.transaction():
        project = get(store, integer(body, "projectId"))
        last = store.one("SELECT * FROM versions WHERE project_id=? AND committed ORDER BY number DESC", project["id"])
        if last is not None and last["project_updated_at"] == project["updatedAt"]:
            raise ApiError(
                400, "The project has not changed since its last version.", useExistingVersion=True,
                version={"id": last["id"], "version": last["number"]},
            )  # fmt: skip
        token = secrets.token_hex(16)
        version_id = store.run(
            "INSERT INTO versions (project_id, number, commit_token, committed, project_updated_at, info, created_at)"
            " VALUES (?,?,?,0,?,'{}',?)",
            project["id"], (last["number"] if last else 0) + 1, token, project["updatedAt"], now(),
        )  # fmt: skip
    return {"id": version_id, "commitToken": token}


def _reserved(store: Storage, body: dict) -> Row:
    row = store.one("SELECT * FROM versions WHERE id=? AND NOT committed", integer(body, "id"))
    if row is None or row["commit_token"] != body.get("commitToken"):
        raise ApiError(400, f"No version {body['id']} is reserved with this commit token.")
    return row


@router.method("projects.versions.commit")
def versions_commit(body: Json, store: Store) -> dict:
    with store.transaction():
        row = _reserved(store, body)
        info = {key: body.get(key) for key in ("teamFileId", "title", "description", "previewProjectId")}
        store.run(
            "UPDATE versions SET committed=1, project_updated_at=?, info=? WHERE id=?",
            text(body, "projectUpdatedAt"), dump(info), row["id"],
        )  # fmt: skip
    return {"success": True}


@router.method("projects.versions.cancel-reservation")
def versions_cancel(body: Json, store: Store) -> dict:
    with store.transaction():
        store.run("DELETE FROM versions WHERE id=?", _reserved(store, body)["id"])
    return {"success": True}


@router.method("projects.versions.list")
def versions_list(body: Json, store: Store) -> dict:
    project = get(store, integer(body, "projectId"))

    def convert(rows: list[Row]) -> list[dict]:
        entities = []
        for row in rows:
            info = json.loads(row["info"])
            entities.append({
                "id": row["id"], "projectId": row["project_id"], "createdBy": USER_ID, "version": row["number"],
                "status": "committed", "createdAt": row["created_at"], "updatedAt": row["created_at"],
                "projectUpdatedAt": row["project_updated_at"], "teamId": project["teamId"], "name": info["title"],
                "description": info["description"], "teamFileId": info["teamFileId"],
                "previewProjectId": info["previewProjectId"],
            })  # fmt: skip
        return entities

    return answer_page(
        store, body, table="versions", columns={"id": "id", "version": "number"}, convert=convert,
        where=["project_id=?", "committed"], values=[project["id"]],
    )  # fmt: skip
