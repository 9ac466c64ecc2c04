"""Methods of the instance itself, its team, workspaces, user and agents."""

import platform
from sqlite3 import Row

from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store
from sandbox.paging import answer_page
from sandbox.payload import integer, text
from sandbox.storage import TEAM_ID, USER_ID, USER_LOGIN, now

INSTANCE_VERSION = "6.18.3"
"""What the pinned SDK asks of an instance, and the apps' manifests too."""
AGENT_ID = 1

router = Methods()

_COLUMNS = {"id": "id", "name": "name", "createdAt": "created_at", "updatedAt": "updated_at"}


def _team(row: Row) -> dict:
    return {
        "id": row["id"], "name": row["name"], "description": row["description"], "role": "admin",
        "createdAt": row["created_at"], "updatedAt": row["updated_at"], "usage": {"plan": "sandbox"},
    }  # fmt: skip


_WORKSPACE = "*, id IN (SELECT id FROM hidden_workspaces) AS hidden"


def _workspace(row: Row) -> dict:
    return {
        "id": row["id"], "name": row["name"], "description": row["description"], "teamId": row["team_id"],
        "hidden": bool(row["hidden"]), "createdAt": row["created_at"], "updatedAt": row["updated_at"],
    }  # fmt: skip


def _user() -> dict:
    return {
        "id": USER_ID, "login": USER_LOGIN, "name": "Sandbox user", "email": None, "role": "admin", "roleId": 1,
        "logins": 1, "disabled": False, "lastLogin": None, "createdAt": None, "updatedAt": None,
    }  # fmt: skip


def _agent(team_id: int) -> dict:
    return {
        "id": AGENT_ID, "name": "this machine", "token": None, "status": "running", "userId": USER_ID,
        "teamId": team_id, "capabilities": {"types": {"app": {"enabled": True}, "app_gpu": {"enabled": True}}},
        "createdAt": None, "updatedAt": None, "isPublic": False, "type": "sly_agent", "disabled": False,
        "version": platform.platform(), "gpuInfo": {"is_available": False, "device_names": [], "device_memory":
        [{"available": 0, "total": 0}]},
    }  # fmt: skip


@router.method("instance.version")
def instance_version() -> dict:
    return {"version": INSTANCE_VERSION}


@router.method("teams.list")
def teams_list(body: Json, store: Store) -> dict:
    return answer_page(store, body, table="teams", columns=_COLUMNS, convert=lambda rows: [_team(r) for r in rows])


@router.method("teams.info")
def teams_info(body: Json, store: Store) -> dict:
    team_id = integer(body, "id")
    row = store.one("SELECT * FROM teams WHERE id=?", team_id)
    if row is None:
        raise not_found("Team", team_id)
    return _team(row)


@router.method("teams.add")
def teams_add(body: Json, store: Store) -> dict:
    name, moment = text(body, "name"), now()
    with store.transaction():
        if store.one("SELECT 1 FROM teams WHERE name=?", name):
            raise ApiError(400, f"A team named {name!r} exists already.", type="NONUNIQUE")
        values = (name, text(body, "description", ""), moment, moment)
        team_id = store.run("INSERT INTO teams (name, description, created_at, updated_at) VALUES (?,?,?,?)", *values)
    return teams_info({"id": team_id}, store)


@router.method("workspaces.list")
def workspaces_list(body: Json, store: Store) -> dict:
    return answer_page(
        store, body, table="workspaces", select=_WORKSPACE, columns=_COLUMNS, where=["team_id=?"],
        values=[integer(body, "teamId")], convert=lambda rows: [_workspace(r) for r in rows],
    )  # fmt: skip


@router.method("workspaces.info")
def workspaces_info(body: Json, store: Store) -> dict:
    workspace_id = integer(body, "id")
    row = store.one(f"SELECT {_WORKSPACE} FROM workspaces WHERE id=?", workspace_id)
    if row is None:
        raise not_found("Workspace", workspace_id)
    return _workspace(row)


@router.method("workspaces.add")
def workspaces_add(body: Json, store: Store) -> dict:
    team_id, name, moment = integer(body, "teamId"), text(body, "name"), now()
    with store.transaction():
        if store.one("SELECT 1 FROM teams WHERE id=?", team_id) is None:
            raise not_found("Team", team_id)
        if store.one("SELECT 1 FROM workspaces WHERE team_id=? AND name=?", team_id, name):
            raise ApiError(400, f"A workspace named {name!r} exists already.", type="NONUNIQUE")
        workspace_id = store.run(
            "INSERT INTO workspaces (team_id, name, description, created_at, updated_at) VALUES (?,?,?,?,?)",
            team_id, name, text(body, "description", ""), moment, moment,
        )  # fmt: skip
    return workspaces_info({"id": workspace_id}, store)


@router.method("workspaces.visibility.set")
def workspaces_visibility(body: Json, store: Store) -> dict:
    """Hide a workspace from people, or show it again; methods go on listing it, as on an instance."""
    workspace_id = workspaces_info({"id": integer(body, "id")}, store)["id"]
    with store.transaction():
        if body.get("hidden"):
            store.run("INSERT OR IGNORE INTO hidden_workspaces VALUES (?)", workspace_id)
        else:
            store.run("DELETE FROM hidden_workspaces WHERE id=?", workspace_id)
    return workspaces_info({"id": workspace_id}, store)


@router.method("users.me")
def users_me() -> dict:
    return _user()


@router.method("users.info")
def users_info(body: Json) -> dict:
    if integer(body, "id") != USER_ID:
        raise not_found("User", body["id"])
    return _user()


@router.method("agents.available")
def agents_available(body: Json) -> list[dict]:
    return [_agent(integer(body, "teamId"))]


@router.method("agents.list")
def agents_list(body: Json) -> dict:
    return {"total": 1, "perPage": 1, "pagesCount": 1, "entities": [_agent(integer(body, "teamId"))]}


@router.method("agents.info")
def agents_info(body: Json) -> dict:
    if integer(body, "id") != AGENT_ID:
        raise not_found("Agent", body["id"])
    return _agent(TEAM_ID)
