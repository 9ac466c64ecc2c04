"""A project's meta: its classes and tags, to which the instance gives ids."""

import json

from sandbox.errors import ApiError, not_found
from sandbox.storage import Storage, dump


def read(storage: Storage, project_id: int) -> dict:
    """The meta of a project: ``{"classes": [...], "tags": [...], "projectType": ...}``, each item with its id.

    Raises:
        ApiError: 404 if there is no such project.
    """
    meta = storage.value("SELECT meta FROM projects WHERE id=?", project_id)
    if meta is None:
        raise not_found("Project", project_id)
    return json.loads(meta)


def empty(project_type: str) -> dict:
    """The meta of a new project."""
    return {"classes": [], "tags": [], "projectType": project_type}


def _with_ids(storage: Storage, kind: str, key: str, wanted: list[dict], present: list[dict]) -> list[dict]:
    """Give each wanted item the id it has, by id (it was renamed) or by name, or else a new one."""
    names = [item.get(key) for item in wanted]
    if len(set(names)) != len(names) or None in names:
        raise ApiError(400, f"Each {kind} of a project needs a {key} of its own. Received: {names}")
    ids = {item["id"] for item in present}
    by_name = {item[key]: item["id"] for item in present}
    result, used = [], set()
    # Names go first: an id from another project may by chance be that of another class here.
    known = {name: by_name[name] for name in names if name in by_name}
    used.update(known.values())
    for item, name in zip(wanted, names, strict=True):
        item_id = known.get(name)
        if item_id is None and item.get("id") in ids and item["id"] not in used:
            item_id = item["id"]
        if item_id is None:
            item_id = storage.run("INSERT INTO meta_ids DEFAULT VALUES")
        used.add(item_id)
        result.append({**item, "id": item_id})
    return result


def write(storage: Storage, project_id: int, meta: dict) -> dict:
    """Replace a project's meta; labels and tags of what is no longer in it are removed, as on an instance.

    Args:
        storage: The state; call inside a transaction.
        project_id: The project.
        meta: As the SDK's ``ProjectMeta.to_json``; ids of other projects in it are not taken over.

    Returns:
        The meta as it is now, with ids.
    """
    old = read(storage, project_id)
    classes = _with_ids(storage, "class", "title", meta.get("classes", []), old["classes"])
    tags = _with_ids(storage, "tag", "name", meta.get("tags", []), old["tags"])
    of_project = "image_id IN (SELECT i.id FROM images i JOIN datasets d ON d.id=i.dataset_id WHERE d.project_id=?)"
    for table, column, kept, before in (
        ("figures", "class_id", classes, old["classes"]),
        ("tags", "tag_id", tags, old["tags"]),
    ):
        gone = {item["id"] for item in before} - {item["id"] for item in kept}
        if gone:
            storage.run(
                f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?)) AND {of_project}",
                dump(sorted(gone)), project_id,
            )  # fmt: skip
    new = {"classes": classes, "tags": tags, "projectType": old["projectType"]}
    storage.run("UPDATE projects SET meta=? WHERE id=?", dump(new), project_id)
    return new
