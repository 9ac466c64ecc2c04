"""Methods of the ecosystem: which apps (modules) there are.

An instance has a catalogue; the sandbox has what was told to it by ``sandbox.modules.add``. A module may be given the
address of a running app: starting the module by ``tasks.run.app``, as ``api.nn.deploy`` does, then leads to that app.
"""

import json
from sqlite3 import Row

from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store
from sandbox.paging import whole
from sandbox.payload import integer, mapping, text
from sandbox.storage import Storage, dump, now

router = Methods()


def module_json(row: Row) -> dict:
    """A module as ``ecosystem.info`` answers it."""
    config = json.loads(row["config"])
    version = config.get("version", "0.0.1")
    return {
        "id": row["id"], "slug": row["slug"], "name": row["name"], "type": config.get("type", "app"),
        "config": {**config, "name": row["name"], "categories": config.get("categories", [])},
        "readme": None, "repositoryModuleUrl": None, "repo": row["slug"], "createdAt": row["created_at"],
        "updatedAt": row["updated_at"], "meta": {"releases": [{"version": version, "name": version}]},
    }  # fmt: skip


def get(storage: Storage, module_id: int) -> Row:
    """The row of a module.

    Raises:
        ApiError: 404 if there is no such module.
    """
    row = storage.one("SELECT * FROM modules WHERE id=?", module_id)
    if row is None:
        raise not_found("Ecosystem module", module_id)
    return row


@router.method("sandbox.modules.add")
def add_module(body: Json, store: Store) -> dict:
    """Add or replace an app of the catalogue (no method of an instance).

    Body: ``config``, the app's config.json; ``slug`` (optional, else made from the name); ``address`` (optional), the
    http address of a running app that ``tasks.run.app`` shall lead to.
    """
    config, moment = mapping(body, "config"), now()
    name = text(config, "name")
    slug = text(body, "slug", f"sandbox/{name.lower().replace(' ', '-')}")
    with store.transaction():
        store.run(
            "INSERT INTO modules (slug, name, config, address, created_at, updated_at) VALUES (?,?,?,?,?,?)"
            " ON CONFLICT (slug) DO UPDATE SET name=excluded.name, config=excluded.config, address=excluded.address,"
            " updated_at=excluded.updated_at",
            slug, name, dump(config), text(body, "address", None), moment, moment,
        )  # fmt: skip
        row = store.one("SELECT * FROM modules WHERE slug=?", slug)
    return {**module_json(row), "address": row["address"]}


def _matches(module: dict, body: dict) -> bool:
    for item in body.get("filter") or []:
        field, operator, value = item.get("field"), item.get("operator", "="), item.get("value")
        field = "id" if field == "moduleId" else field
        if field not in ("id", "slug", "name") or operator not in ("=", "in"):
            raise ApiError(400, f"Modules are filtered by id, slug or name, with = or in. Received: {item}")
        if module[field] not in (value if operator == "in" else [value]):
            return False
    if body.get("search") and body["search"].lower() not in module["name"].lower():
        return False
    wanted = body.get("categories")
    if wanted:
        present = {category.lower() for category in module["config"]["categories"]}
        hits = [category.lower() in present for category in wanted]
        return all(hits) if body.get("categoriesOperation") == "and" else any(hits)
    return True


def modules(storage: Storage, body: dict) -> list[dict]:
    """The modules that a request's ``filter``, ``search`` and ``categories`` ask for."""
    rows = storage.all("SELECT * FROM modules ORDER BY id")
    return [module for module in map(module_json, rows) if _matches(module, body)]


@router.method("ecosystem.list")
def ecosystem_list(body: Json, store: Store) -> dict:
    return whole(modules(store, body))


@router.method("ecosystem.info")
def ecosystem_info(body: Json, store: Store) -> dict:
    if body.get("slug") is None:
        return module_json(get(store, integer(body, "id")))
    row = store.one("SELECT * FROM modules WHERE slug=?", body["slug"])
    if row is None:
        raise not_found("Ecosystem module", body["slug"])
    return module_json(row)
