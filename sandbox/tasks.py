"""Methods of tasks: runs of apps, which the sandbox does not start but keeps account of."""

import json
import secrets
from sqlite3 import Row

from fastapi import Request

from sandbox import ecosystem
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store
from sandbox.paging import answer_page
from sandbox.payload import integer, items, mapping, text
from sandbox.storage import USER_ID, USER_LOGIN, WORKSPACE_ID, Storage, dump, now
from sandbox.teams import AGENT_ID

router = Methods()

_ENDED = {"consumed_error", "error", "finished", "stopped", "terminating"}
_STATUSES = _ENDED | {"queued", "consumed", "started", "deployed"}
_COLUMNS = {
    "id": "t.id", "status": "t.status", "name": "t.name", "moduleId": "t.module_id", "workspaceId": "t.workspace_id",
    "startedAt": "t.created_at", "createdAt": "t.created_at", "updatedAt": "t.updated_at",
}  # fmt: skip


def to_json(storage: Storage, row: Row) -> dict:
    """A task as ``tasks.info`` answers it."""
    module_id = row["module_id"]
    module = ecosystem.module_json(ecosystem.get(storage, module_id)) if module_id is not None else None
    version = module["meta"]["releases"][0]["version"] if module else "0.0.1"
    app = {
        "id": module_id or row["id"], "moduleId": module_id, "name": module["name"] if module else row["name"],
        "version": version, "slug": module["slug"] if module else None,
    }  # fmt: skip
    return {
        "id": row["id"], "taskId": row["id"], "type": "app", "name": row["name"], "description": row["description"],
        "status": row["status"], "createdBy": USER_ID, "userId": USER_ID, "userLogin": USER_LOGIN,
        "moduleId": module_id, "appId": app["id"], "agentId": AGENT_ID, "agentName": "this machine",
        "workspaceId": row["workspace_id"],
        "teamId": storage.value("SELECT team_id FROM workspaces WHERE id=?", row["workspace_id"]),
        "createdAt": row["created_at"], "startedAt": row["created_at"], "updatedAt": row["updated_at"],
        "finishedAt": row["finished_at"], "settings": {"message": {"appInfo": app, **json.loads(row["params"])}},
        "meta": {
            **json.loads(row["meta"]), "app": app, "name": row["name"], "sessionToken": row["session_token"],
            "params": json.loads(row["params"]), "output": json.loads(row["output"]),
        },
    }  # fmt: skip


def get(storage: Storage, task_id: int) -> Row:
    """The row of a task.

    Raises:
        ApiError: 404 if there is no such task.
    """
    row = storage.one("SELECT * FROM tasks WHERE id=?", task_id)
    if row is None:
        raise not_found("Task", task_id)
    return row


def _http(address: str | None) -> str | None:
    if address is not None and not address.startswith(("http://", "https://")):
        raise ApiError(400, f"The address of an app starts with http://. Received: {address!r}")
    return address and address.rstrip("/")


def create(storage: Storage, body: dict) -> int:
    """Add a task and return its id; call inside a transaction. See :func:`tasks_add` for the body."""
    workspace_id, module_id, moment = integer(body, "workspaceId", WORKSPACE_ID), integer(body, "moduleId", None), now()
    if storage.one("SELECT 1 FROM workspaces WHERE id=?", workspace_id) is None:
        raise not_found("Workspace", workspace_id)
    module = ecosystem.get(storage, module_id) if module_id is not None else None
    return storage.run(
        "INSERT INTO tasks (workspace_id, module_id, name, description, status, params, meta, output, fields, content,"
        " session_token, address, created_at, updated_at) VALUES (?,?,?,?,'started',?,'{}','{}','{}','{}',?,?,?,?)",
        workspace_id, module_id, text(body, "name", module["name"] if module else "app"),
        text(body, "description", ""), dump(mapping(body, "params", {})), secrets.token_hex(16),
        _http(text(body, "address", None)), moment, moment,
    )  # fmt: skip


@router.method("sandbox.tasks.add")
def tasks_add(body: Json, store: Store) -> dict:
    """Add a task for an app that you start yourself (no method of an instance).

    Body, all optional: ``name``; ``description``; ``workspaceId``; ``moduleId``, of a module told to the sandbox;
    ``address``, the app's http address, if it is known yet; ``params``, e.g. ``{"state": {...}}``.
    The answer is the task's info; its ``id`` goes into the app's variable TASK_ID.
    """
    with store.transaction():
        task_id = create(store, body)
    return to_json(store, get(store, task_id))


@router.method("sandbox.tasks.set-address")
def tasks_set_address(body: Json, store: Store) -> dict:
    """Say where the app of a task is reached (no method of an instance).

    Body: ``id`` of the task, ``address`` such as ``http://127.0.0.1:8000``. From then on ``/net/<session token>/…``
    and ``tasks.request.direct`` lead there.
    """
    task_id = integer(body, "id")
    with store.transaction():
        get(store, task_id)
        store.run("UPDATE tasks SET address=?, updated_at=? WHERE id=?", _http(text(body, "address")), now(), task_id)
    return to_json(store, get(store, task_id))


@router.method("tasks.run.app")
def tasks_run(body: Json, store: Store, request: Request) -> list[dict]:
    module_id = integer(body, "moduleId", None) or integer(body, "appId")
    module, agent = ecosystem.get(store, module_id), request.app.state.agent
    wanted = {key: body.get(key) for key in ("workspaceId", "description", "params")}
    wanted |= {"moduleId": module_id, "name": text(body, "taskName", module["name"])}
    if agent is not None and agent.starts(module_id):
        return [to_json(store, get(store, agent.start(wanted)))]
    if module["address"] is None:
        raise ApiError(
            400,
            f"The sandbox starts no apps but those of --apps: run {module['name']!r} yourself and tell its address by "
            "sandbox.modules.add, or add a task by sandbox.tasks.add.",
        )
    with store.transaction():
        task_id = create(store, {**wanted, "address": module["address"]})
    return [to_json(store, get(store, task_id))]


@router.method("tasks.info")
def tasks_info(body: Json, store: Store) -> dict:
    return to_json(store, get(store, integer(body, "id")))


@router.method("tasks.list")
def tasks_list(body: Json, store: Store) -> dict:
    return _page(store, body, "t.workspace_id=?", integer(body, "workspaceId"))


@router.method("apps.tasks.list")
def app_tasks_list(body: Json, store: Store) -> dict:
    return _page(store, body, "t.module_id=?", integer(body, "appId"))


def _page(storage: Storage, body: dict, where: str, value: int) -> dict:
    return answer_page(
        storage, body, table="tasks t", columns=_COLUMNS, where=[where], values=[value],
        convert=lambda rows: [to_json(storage, row) for row in rows],
    )  # fmt: skip


def _set_status(storage: Storage, task_id: int, status: str) -> None:
    if status not in _STATUSES:
        raise ApiError(400, f"A task's status is one of {sorted(_STATUSES)}. Received: {status!r}")
    with storage.transaction():
        get(storage, task_id)
        moment = now()
        finished = moment if status in _ENDED else None
        storage.run(
            "UPDATE tasks SET status=?, updated_at=?, finished_at=? WHERE id=?", status, moment, finished, task_id
        )


@router.method("tasks.status.update")
def tasks_status(body: Json, store: Store) -> dict:
    _set_status(store, integer(body, "id"), text(body, "status"))
    return {"success": True}


def end(storage: Storage, task_id: int, status: str) -> None:
    """Note how the app of a task ended, unless that is known already: who stops a task has said so."""
    with storage.transaction():
        if get(storage, task_id)["status"] not in _ENDED:
            _set_status(storage, task_id, status)


@router.method("tasks.stop")
def tasks_stop(body: Json, store: Store, request: Request) -> dict:
    """Marks the task as stopped. An app that the sandbox has not started runs on."""
    task_id, agent = integer(body, "id"), request.app.state.agent
    _set_status(store, task_id, "stopped")
    if agent is not None:
        agent.stop(task_id)
    return {"status": "stopped"}


def _merge(storage: Storage, task_id: int, column: str, value: dict) -> dict:
    with storage.transaction():
        merged = {**json.loads(get(storage, task_id)[column]), **value}
        storage.run(f"UPDATE tasks SET {column}=?, updated_at=? WHERE id=?", dump(merged), now(), task_id)
    return merged


@router.method("tasks.meta.update")
def tasks_meta(body: Json, store: Store) -> dict:
    task_id = integer(body, "id")
    _merge(store, task_id, "meta", {key: value for key, value in body.items() if key != "id"})
    return tasks_info({"id": task_id}, store)


@router.method("tasks.output.set")
def tasks_output(body: Json, store: Store) -> dict:
    return {"output": _merge(store, integer(body, "taskId"), "output", mapping(body, "output"))}


@router.method("tasks.data.set")
def tasks_data_set(body: Json, store: Store) -> dict:
    fields = {text(item, "field"): item.get("payload") for item in items(body, "fields")}
    _merge(store, integer(body, "taskId"), "fields", fields)
    return {"success": True}


@router.method("tasks.data.get")
def tasks_data_get(body: Json, store: Store) -> dict:
    fields = json.loads(get(store, integer(body, "taskId"))["fields"])
    return {"result": {field: fields[field] for field in items(body, "fields") if field in fields}}


@router.method("tasks.app-v2.data.set")
def tasks_content(body: Json, store: Store) -> dict:
    """Keeps the last state and the last patch of the data; there is no page here that would show them."""
    _merge(store, integer(body, "taskId"), "content", mapping(body, "payload"))
    return {"success": True}


@router.method("tasks.logs.add")
def logs_add(body: Json, store: Store) -> dict:
    with store.transaction():
        for line in items(body, "logs"):
            task_id = get(store, integer(line, "taskId"))["id"]
            store.run("INSERT INTO task_logs (task_id, line) VALUES (?,?)", task_id, dump(line))
    return {"success": True}


@router.method("tasks.log.download", verb="GET")
def logs_download(store: Store, request: Request) -> list[dict]:
    query = dict(request.query_params)
    task_id = get(store, integer(query, "id"))["id"]
    rows = store.all("SELECT line FROM task_logs WHERE task_id=? ORDER BY id", task_id)
    lines = [json.loads(row["line"]) for row in rows]
    return lines[-integer(query, "limit", len(lines) or 1) :]


@router.method("workflow.node.add-input")
def workflow_input(body: Json, store: Store) -> dict:
    return _workflow(store, "input", body)


@router.method("workflow.node.add-output")
def workflow_output(body: Json, store: Store) -> dict:
    return _workflow(store, "output", body)


def _workflow(storage: Storage, direction: str, body: dict) -> dict:
    task_id = integer(mapping(body, "node"), "id")
    with storage.transaction():
        get(storage, task_id)
        edge_id = storage.run(
            "INSERT INTO workflow (task_id, direction, payload, created_at) VALUES (?,?,?,?)",
            task_id, direction, dump(body), now(),
        )  # fmt: skip
    return {"id": edge_id, "success": True}
