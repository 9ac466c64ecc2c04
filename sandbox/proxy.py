"""Requests that the sandbox hands on to running apps.

``tasks.request.direct`` carries the requests of ``api.task.send_request``; ``/net/<session token>/…`` is the address
under which the SDK's inference clients (``ModelAPI``, ``Session``) reach an app.
"""

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from sandbox import tasks
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store, address
from sandbox.payload import integer, mapping, text

router = Methods()
net = APIRouter()

# Headers of one connection, which must not travel on to the next (RFC 9110, 7.6.1), and those httpx sets itself.
_OWN_HEADERS = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length",
}  # fmt: skip
# Inference over a project is one long request.
_NET_TIMEOUT = httpx.Timeout(3600, connect=5)


def client() -> httpx.AsyncClient:
    """The HTTP client for requests to apps: on this machine, so no proxy of the environment is asked."""
    return httpx.AsyncClient(trust_env=False, timeout=_NET_TIMEOUT)


def _target(task_id: int, app: str | None) -> str:
    if app is None:
        raise ApiError(
            400, f"The sandbox does not know where the app of task {task_id} is: tell it by sandbox.tasks.set-address."
        )
    return app


def _unreachable(app: str, error: httpx.HTTPError) -> ApiError:
    status = 504 if isinstance(error, httpx.ReadTimeout) else 503
    return ApiError(status, f"The app at {app} does not answer: {error!r}")


async def _send(sender: httpx.AsyncClient, url: str, body: dict, timeout: float) -> httpx.Response:
    return await sender.post(url, json=body, timeout=httpx.Timeout(timeout, connect=5))


@router.method("tasks.request.direct")
async def request_direct(body: Json, store: Store, request: Request) -> Response:
    """Post ``state`` and ``context`` to the app of a task, as the page of an app does, and answer what it answers."""
    row = tasks.get(store, integer(body, "taskId"))
    app = _target(row["id"], row["address"])
    message = {
        "state": mapping(body, "state", {}), "context": mapping(body, "context", {}),
        "server_address": address(request), "api_token": request.headers["x-api-key"],
    }  # fmt: skip
    url, timeout = f"{app}/{text(body, 'command').lstrip('/')}", float(body.get("timeout") or 60)
    sender: httpx.AsyncClient = request.app.state.client
    if body.get("skipResponse"):
        return JSONResponse({"success": True}, background=BackgroundTask(_send, sender, url, message, timeout))
    try:
        answer = await _send(sender, url, message, timeout)
    except httpx.HTTPError as error:
        raise _unreachable(app, error) from error
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


@net.api_route("/net/{token}/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
async def pass_on(token: str, path: str, store: Store, request: Request) -> Response:
    """Hand a request on to the app whose session token, which is the permission, the address bears."""
    row = store.one("SELECT id, address FROM tasks WHERE session_token=?", token)
    if row is None:
        raise not_found("App session", token)
    app = _target(row["id"], row["address"])
    headers = [(key, value) for key, value in request.headers.items() if key not in _OWN_HEADERS]
    try:
        answer = await request.app.state.client.request(
            request.method, f"{app}/{path}", params=request.query_params.multi_items(), headers=headers,
            content=await request.body(),
        )  # fmt: skip
    except httpx.HTTPError as error:
        raise _unreachable(app, error) from error
    # httpx has undone the content encoding.
    dropped = _OWN_HEADERS | {"content-encoding"}
    kept = {key: value for key, value in answer.headers.items() if key not in dropped}
    return Response(answer.content, answer.status_code, headers=kept)
