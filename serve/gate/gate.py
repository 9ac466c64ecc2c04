"""The gate of the app, around everything that it answers: ids, bounds, the queue, metrics, one log line a request.

`Gate` stands outside of the SDK's own middleware, which would read a body of any size and fail at one that is not what
it expects; `AnswerErrors` stands inside of it, before the SDK answers an error with its text or breaks the connection.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import anyio.to_thread
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from supervisely import logger

from serve.answers import is_unexpected, status_and_message
from serve.errors import RequestError, TooLarge, TooSlow
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
QUIET = frozenset({"is_ready", "readyz", "is_alive", "livez", "is_running", "metrics", "health"})
"""Routes that monitors ask every few seconds: counted, not logged."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SPARE_THREADS = 16
_DISCARDED = 64 * 2**20
_DISCARD_S = 10.0
_LONGEST_MESSAGE = 2000


class Gate:
    """Outermost of the app.

    Args:
        app: what answers.
        limits: bounds of the service.
        admission: its queue.
        metrics: what is counted.
        routes: names of all routes; what else is asked for is counted as 'other'.
        drain: called when the app shuts down, in a thread; returns when nothing is computed any more.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        admission: Admission,
        metrics: Metrics,
        routes: Iterable[str],
        drain: Callable[[], None],
    ) -> None:
        self._app = app
        self._limits, self._admission, self._metrics = limits, admission, metrics
        self._routes = frozenset(routes)
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, self._until_drained(receive), send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
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
        route = scope["path"].rsplit("/", 1)[-1]
        started, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", call.id.encode())]
                if status in (429, 503):
                    headers.append((b"retry-after", str(self._limits.retry_after_s).encode()))
                message = {**message, "headers": headers}
            await send(message)

        token = CURRENT.set(call)
        body = _Body(receive, self._limits, call)
        try:
            try:
                if route in PREDICTING and scope["method"] == "POST":
                    call.place = self._admission.enter()
                inner, checked = await self._checked(scope, route, body)
            except RequestError as error:
                if not isinstance(error, TooSlow):
                    await body.discard()
                await answer_error(Request(scope), error)(scope, receive, send_with_id)
            else:
                await self._app(inner, checked, send_with_id)
        finally:
            CURRENT.reset(token)
            if call.place:
                call.place.leave()
            self._note(scope, route, call, status, time.perf_counter() - started)

    async def _checked(self, scope: Scope, route: str, body: _Body) -> tuple[Scope, Receive]:
        """The request as the app gets it, once its body is known to be what the app can read."""
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0") or 0) > self._limits.max_request_bytes:
            raise _too_large(self._limits.max_request_mb)
        if b"application/json" not in headers.get(b"content-type", b"").lower():
            if route in NEEDED and scope["method"] == "POST":
                raise RequestError('Send the request as JSON, Content-Type: application/json: {"state": {…}}.')
            return scope, body.receive
        content = read_body(route, await body.read(int(self._limits.max_json_mb * 2**20)), self._limits)
        if (call := CURRENT.get()) is not None:
            call.is_of_tool = is_of_tool(content)
        if content.pop("server_address", None) is None or self._limits.any_instance:
            return scope, body.again()
        # Ids belong to the instance of SERVER_ADDRESS: the SDK would send its requests wherever a caller says.
        replaced = json.dumps(content).encode()
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        return {**scope, "headers": [*kept, (b"content-length", str(len(replaced)).encode())]}, body.again(replaced)

    def _note(self, scope: Scope, route: str, call: Call, status: int, seconds: float) -> None:
        label = route if route in self._routes else "page" if route == "" else "other"
        self._metrics.requests.labels(label, status).inc()
        self._metrics.seconds.labels(label).observe(seconds)
        if route in QUIET and status < 400:
            return
        facts: dict[str, Any] = {
            "request_id": call.id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        if call.megapixels:
            facts["megapixels"] = round(call.megapixels, 3)
        logger.info("request", extra=facts)


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
    return JSONResponse(content | ({"request_id": call.id} if call else {}), status_code=status)


class _Body:
    """A request's body on its way in: counted, and given up when it takes too long."""

    def __init__(self, receive: Receive, limits: Limits, call: Call) -> None:
        self._receive, self._limits, self._call = receive, limits, call
        self._deadline = time.monotonic() + limits.upload_timeout_s
        self._size = 0
        self._complete = False
        self._content = b""

    async def receive(self) -> Message:
        """The next part.

        Raises:
            TooLarge, TooSlow, Overloaded: the rest is not read.
        """
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except TimeoutError as error:
            raise TooSlow(f"The request did not arrive within {self._limits.upload_timeout_s:g} seconds.") from error
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._size += size
            self._complete = not message.get("more_body", False)
            if self._size > self._limits.max_request_bytes:
                raise _too_large(self._limits.max_request_mb)
            if self._call.place:
                self._call.place.load(size)
        return message

    async def read(self, most: int) -> bytes:
        """The whole body, of at most `most` bytes.

        Raises:
            TooLarge: it is longer.
            RequestError: the client has gone.
        """
        parts = bytearray()
        while not self._complete:
            message = await self.receive()
            if message["type"] != "http.request":
                raise RequestError("The request ended before its body was complete.")
            parts += message.get("body", b"")
            if len(parts) > most:
                raise _too_large(most / 2**20)
        self._content = bytes(parts)
        return self._content

    def again(self, content: bytes | None = None) -> Receive:
        """What was read, or `content` in place of it, for the app to read."""
        parts = [self._content if content is None else content]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            return await self._receive()

        return receive

    async def discard(self) -> None:
        """Read on for a while: most clients look for an answer only when they have sent everything."""
        deadline, left = time.monotonic() + _DISCARD_S, _DISCARDED
        while not self._complete and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), deadline - time.monotonic())
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self._complete = message["type"] != "http.request" or not message.get("more_body", False)


def _too_large(megabytes: float) -> TooLarge:
    return TooLarge(f"The request is too large: at most {round(megabytes, 3):g} megabytes are read.")
