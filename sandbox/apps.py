"""Methods of the team's apps: every module of the catalogue counts as added to the team."""

from sandbox import ecosystem, tasks
from sandbox.methods import Json, Methods, Store
from sandbox.paging import whole
from sandbox.payload import integer
from sandbox.storage import TEAM_ID, USER_ID, USER_LOGIN, Storage

router = Methods()


def _app(storage: Storage, module: dict) -> dict:
    rows = storage.all("SELECT * FROM tasks WHERE module_id=? AND finished_at IS NULL ORDER BY id", module["id"])
    return {
        "id": module["id"], "createdBy": USER_ID, "moduleId": module["id"], "disabled": False,
        "userLogin": USER_LOGIN, "config": module["config"], "name": module["name"], "slug": module["slug"],
        "isShared": False, "tasks": [tasks.to_json(storage, row) for row in rows], "repo": module["slug"],
        "teamId": TEAM_ID,
    }  # fmt: skip


@router.method("apps.list")
def apps_list(body: Json, store: Store) -> dict:
    apps = [_app(store, module) for module in ecosystem.modules(store, body)]
    tags = set(body.get("sessionTags") or [])
    if tags:
        apps = [app for app in apps if tags & set(app["config"].get("session_tags", []))]
    if body.get("onlyRunning"):
        apps = [app for app in apps if app["tasks"]]
    return whole(apps)


@router.method("apps.info")
def apps_info(body: Json, store: Store) -> dict:
    return _app(store, ecosystem.module_json(ecosystem.get(store, integer(body, "id"))))
