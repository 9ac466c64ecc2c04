"""The gate of the app, around everything that it answers: ids, bounds, the queue, metrics, one log line a request.

It stands outside of the SDK's own middleware, which would read a body of any size and fail at one that is not what it
expects.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from supervisely import logger

from common.web.door import Door
from common.web.doorkeeper import Doorkeeper
from common.web.page_state import KnownKeys
from common.web.routes import Route
from serve.answers import answer_error
from serve.errors import RequestError
from serve.gate.admission import CURRENT, Admission, Call
from serve.gate.bodies import NEEDED, is_of_tool, read_body
from serve.gate.monitoring import Metrics
from serve.limits import Limits

PREDICTING = frozenset(
    {name for name in NEEDED if name.startswith("inference_")}
    | {"inference_image", "inference_batch", "inference_batch_async", "inference_video_async"}
    | {"measure", "predict_probabilities", "try_photo", "run_speedtest", "smart_cache"}
)
"""Routes that take a place in the queue."""
QUIET = frozenset({"is_ready", "readyz", "is_alive", "livez", "is_running", "healthz", "metrics"})
"""Routes that monitors ask every few seconds: counted, not logged."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SPARE_THREADS = 16
_LONGEST_PATH, _LONGEST_METHOD = 200, 20


class Gate(Doorkeeper):
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
        super().__init__(app, door, limits, known, answer_error)
        self._limits, self._admission, self._metrics, self._drain = limits, admission, metrics, drain

    def lifespan(self, receive: Receive) -> Receive:
        """Threads for all requests that wait, and an end that waits for what is computed."""

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

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, which is a `Call` from here on."""
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        call = Call(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
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
        try:
            await super().answer(scope, receive, send_with_id)
        finally:
            CURRENT.reset(token)
            call.leave()
            self._note(scope, call, status, time.perf_counter() - started)

    def admitted(self, route: Route) -> None:
        """Refuse what would find no place in the queue, before its body has arrived."""
        CURRENT.get().route = route
        if _predicts(route):
            self._admission.require_room()

    def arrived(self, size: int) -> None:
        """Take a place for a request whose body of `size` bytes is there: who sends slowly holds up nobody."""
        call = CURRENT.get()
        if call.route is not None and _predicts(call.route):
            call.place = self._admission.enter()
            call.place.load(size)

    def content(self, route: Route, body: bytes) -> dict[str, Any]:
        """What the app gets of a request of JSON, checked as far as it is known."""
        content = read_body(route.name, body, self._limits)
        CURRENT.get().is_of_tool = is_of_tool(content)
        if not self._limits.any_instance:
            # Ids belong to the instance of SERVER_ADDRESS: the SDK would send its requests wherever a caller says.
            content.pop("server_address", None)
        return content

    def without_content(self, route: Route) -> None:
        """Refuse a request without JSON where the SDK takes for granted that there is some."""
        if route.name in NEEDED:
            raise RequestError('Send the request as JSON, Content-Type: application/json: {"state": {…}}.')

    def _note(self, scope: Scope, call: Call, status: int, seconds: float) -> None:
        label = "other" if call.route is None else call.route.name
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
