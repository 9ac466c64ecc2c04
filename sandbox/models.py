"""Methods of the ecosystem's list of pretrained models, which other apps offer for deployment."""

import json
from sqlite3 import Row

from fastapi import Request

from sandbox import ecosystem
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store
from sandbox.paging import answer_page
from sandbox.payload import integer, text
from sandbox.storage import dump, now

router = Methods()

_COLUMNS = {"id": "id", "name": "name", "framework": "framework", "createdAt": "created_at", "updatedAt": "updated_at"}


def _model(row: Row) -> dict:
    return {
        **json.loads(row["content"]), "id": row["id"], "createdAt": row["created_at"], "updatedAt": row["updated_at"],
    }  # fmt: skip


@router.method("ecosystem.models.list", verb="GET")
async def models_list(store: Store, request: Request) -> dict:
    """The SDK sends the page that it wants as a form in the body of a GET."""
    query = {**request.query_params, **(await request.form())}
    # All of them are this instance's own.
    return answer_page(
        store, query, table="models", columns=_COLUMNS, convert=lambda rows: [_model(row) for row in rows]
    )


@router.method("ecosystem.models.add")
def models_add(body: Json, store: Store) -> dict:
    name, framework, moment = text(body, "name"), text(body, "framework"), now()
    text(body, "task")
    for key in ("trainModuleId", "serveModuleId"):
        ecosystem.get(store, integer(body, key))
    with store.transaction():
        model_id = store.run(
            "INSERT INTO models (name, framework, content, created_at, updated_at) VALUES (?,?,?,?,?)",
            name, framework, dump(body), moment, moment,
        )  # fmt: skip
    return {"id": model_id, "success": True}


@router.method("ecosystem.models.update")
def models_update(body: Json, store: Store) -> dict:
    model_id = integer(body, "id")
    with store.transaction():
        row = store.one("SELECT * FROM models WHERE id=?", model_id)
        if row is None:
            raise not_found("Model", model_id)
        content = {**json.loads(row["content"]), **{key: value for key, value in body.items() if key != "id"}}
        if not content.get("name") or not content.get("framework"):
            raise ApiError(400, "A model keeps its name and framework.")
        store.run(
            "UPDATE models SET name=?, framework=?, content=?, updated_at=? WHERE id=?",
            content["name"], content["framework"], dump(content), now(), model_id,
        )  # fmt: skip
    return {"id": model_id, "success": True}
