"""The gate of the app, around everything that it answers: ids, bounds, the queue, metrics, one log line a request.

`Gate` stands outside of the SDK's own middleware, which would read a body of any size and fail at one that is not what
it expects; `AnswerErrors` stands inside of it, before the SDK answers an error with its text or breaks the connection.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from supervisely import logger

from common.web.bodies import Arriving, Body, too_large, with_content
from common.web.door import Door
from common.web.page_state import KnownKeys, without_foreign_keys
from common.web.refusals import Refusal
from common.web.routes import JSON, Route
from serve.answers import is_unexpected, status_and_message
from serve.errors import RequestError
from serve.gate.admission import CURRENT, Admission, Call
from serve.gate.bodies import NEEDED, is_of_tool, read_body
from serve.gate.monitoring import Metrics
from serve.limits import Limits

PREDICTING = frozenset(
    {name for name in NEEDED if name.startswith("inference_")}
    | {"inference_image", "inference_batch", "inference_batch_async", "inference_video_async"}
    | {"predict_probabilities", "run_speedtest", "smart_cache"}
)
"""Routes that take a place in the queue."""
QUIET = frozenset({"is_ready", "readyz", "is_alive", "livez", "is_running", "healthz", "metrics"})
"""Routes that monitors ask every few seconds: counted, not logged."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SPARE_THREADS = 16
_LONGEST_MESSAGE, _LONGEST_PATH, _LONGEST_METHOD = 2000, 200, 20


class Gate:
    """Outermost of the app.

    Args:
        app: what answers.
        limits: bounds of the service.
        admission: its queue.
        metrics: what is counted.
        door: which requests come in; what does not is counted as 'other'.
        drain: called when the app shuts down, in a thread; returns when nothing is computed any more.
        known: the keys of the page's state.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        admission: Admission,
        metrics: Metrics,
        door: Door,
        drain: Callable[[], None],
        known: KnownKeys,
    ) -> None:
        self._app = app
        self._limits, self._admission, self._metrics = limits, admission, metrics
        self._door, self._drain, self._known = door, drain, known
        self._arriving = Arriving(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, self._until_drained(receive), send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._connect(scope, receive, send)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket, which only the page opens."""
        try:
            self._door.admit(scope)
        except Refusal as refusal:
            logger.info("websocket refused", extra={"path": scope["path"][:_LONGEST_PATH], "reason": str(refusal)})
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _until_drained(self, receive: Receive) -> Receive:
        async def receive_lifespan() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # Requests that wait keep a thread each; questions about jobs must find one too.
                limiter = anyio.to_thread.current_default_thread_limiter()
                limiter.total_tokens = max(limiter.total_tokens, self._limits.max_queue + _SPARE_THREADS)
            elif message["type"] == "lifespan.shutdown":
                await anyio.to_thread.run_sync(self._drain)
            return message

        return receive_lifespan

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        call = Call(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
        route: Route | None = None
        started, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", call.id.encode())]
                if status in (429, 503):
                    headers.append((b"retry-after", str(self._limits.retry_after_s).encode()))
                message = {**message, "headers": headers}
                # What it takes to send the answer is up to the client.
                call.leave()
            await send(message)

        token = CURRENT.set(call)
        body = Body(receive, self._limits, self._arriving, lambda size: self._enter(route, call, size))
        try:
            try:
                route, inner = self._door.admit(scope)
                if _predicts(route):
                    self._admission.require_room()
                inner, checked = await self._checked(inner, route, body)
            except (Refusal, RequestError) as error:
                if getattr(error, "status", None) != 408:
                    await body.discard()
                await answer_error(Request(scope), error)(scope, receive, send_with_id)
            else:
                await self._app(inner, checked, send_with_id)
        finally:
            CURRENT.reset(token)
            body.close()
            call.leave()
            self._note(scope, route, call, status, time.perf_counter() - started)

    def _enter(self, route: Route | None, call: Call, size: int) -> None:
        """Take a place for a request whose body of `size` bytes is there: who sends slowly holds up nobody."""
        if route is not None and _predicts(route):
            call.place = self._admission.enter()
            call.place.load(size)

    async def _checked(self, scope: Scope, route: Route, body: Body) -> tuple[Scope, Receive]:
        """The request as the app gets it, once its body is known to be what the app can read."""
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0") or 0) > self._limits.max_request_bytes:
            raise too_large(self._limits.max_request_mb)
        if headers.get(b"content-type") != JSON.encode():
            if route.name in NEEDED:
                raise RequestError('Send the request as JSON, Content-Type: application/json: {"state": {…}}.')
            return scope, body.receive
        content = read_body(route.name, await body.read(self._limits.max_json_bytes), self._limits)
        if (call := CURRENT.get()) is not None:
            call.is_of_tool = is_of_tool(content)
        if not self._limits.any_instance:
            # Ids belong to the instance of SERVER_ADDRESS: the SDK would send its requests wherever a caller says.
            content.pop("server_address", None)
        return with_content(scope, without_foreign_keys(content, route, self._known), body)

    def _note(self, scope: Scope, route: Route | None, call: Call, status: int, seconds: float) -> None:
        label = "other" if route is None else route.name
        self._metrics.requests.labels(label, status).inc()
        self._metrics.seconds.labels(label).observe(seconds)
        if label in QUIET and status < 400:
            return
        facts: dict[str, Any] = {
            "request_id": call.id,
            "method": scope["method"][:_LONGEST_METHOD],
            "path": scope["path"][:_LONGEST_PATH],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        if call.megapixels:
            facts["megapixels"] = round(call.megapixels, 3)
        logger.info("request", extra=facts)


def _predicts(route: Route) -> bool:
    return route.name in PREDICTING and route.method == "POST"


class AnswerErrors:
    """Innermost: whatever the routes did not catch is answered with a sentence, and explained in the log.

    Args:
        app: the routes.
        metrics: where errors are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            self._metrics.errors.labels(type(error).__name__).inc()
            await answer_error(Request(scope), error)(scope, receive, send)


def answer_error(_: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    status, message = status_and_message(error)
    call = CURRENT.get()
    if is_unexpected(error):
        logger.error("unexpected error", exc_info=error, extra={"request_id": call.id if call else None})
    # What a client sent may hold halves of characters, which cannot be sent back.
    message = message[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode()
    # `detail` is what the page shows in a window, `message` what the SDK's clients read.
    detail = {"title": "Serve HRDA cannot do this", "message": message}
    content = {"detail": detail, "message": message, "success": False}
    answer = JSONResponse(content | ({"request_id": call.id} if call else {}), status_code=status)
    for name, value in getattr(error, "headers", None) or ():
        answer.headers.append(name, value)
    return answer
