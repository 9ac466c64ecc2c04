"""The door around a whole app: requests and websockets come through it, and nothing else."""

from __future__ import annotations

import logging
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.web.answers import Answer, answer_error
from common.web.bodies import Arriving, Body, read_object, too_large, with_content
from common.web.door import Door
from common.web.page_state import KnownKeys, without_foreign_keys
from common.web.refusals import Refusal
from common.web.routes import JSON, Route
from common.web.settings import DoorSettings

_logger = logging.getLogger(__name__)
_LONGEST_PATH = 200


class Doorkeeper:
    """Lets in what the door admits, with a body that is there whole and that the SDK can read.

    An app with more to say about its requests overrides the methods that are called on their way.

    Args:
        app: what answers.
        door: which requests come in.
        settings: bounds of their bodies and of the number of websockets.
        known: the keys of the page's state.
        answer: makes the answer to what is not let in.
    """

    def __init__(
        self, app: ASGIApp, door: Door, settings: DoorSettings, known: KnownKeys, answer: Answer = answer_error
    ) -> None:
        self._app, self._door, self._settings, self._known, self._refusal = app, door, settings, known, answer
        self._arriving = Arriving(settings)
        self._websockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, self.lifespan(receive), send)
        elif scope["type"] == "http":
            await self.answer(scope, receive, send)
        else:
            await self._connect(scope, receive, send)

    def lifespan(self, receive: Receive) -> Receive:
        """The app's start and end on their way."""
        return receive

    def admitted(self, route: Route) -> None:
        """A request of that row was let in; its body has not arrived yet.

        Raises:
            Refusal: it is not answered after all.
        """

    def arrived(self, size: int) -> None:
        """The body of the present request, of `size` bytes, is there whole.

        Raises:
            Refusal: it is not answered after all.
        """

    def content(self, route: Route, body: bytes) -> dict[str, Any]:
        """What the app gets of a request of JSON.

        Raises:
            Refusal: it cannot be read.
        """
        content = read_object(body)
        # The SDK would call whatever instance a caller names.
        content.pop("server_address", None)
        return content

    def without_content(self, route: Route) -> None:
        """A request without JSON.

        Raises:
            Refusal: JSON is needed.
        """

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request over HTTP."""
        body = Body(receive, self._settings, self._arriving, self.arrived)
        try:
            route, inner = self._door.admit(scope)
            self.admitted(route)
            inner, checked = await self._checked(inner, route, body)
        except Refusal as refusal:
            if refusal.status != 408:
                await body.discard()
            await self._refusal(HTTPConnection(scope), refusal)(scope, receive, send)
        else:
            await self._app(inner, checked, send)
        finally:
            body.close()

    async def _checked(self, scope: Scope, route: Route, body: Body) -> tuple[Scope, Receive]:
        """The request as the app gets it, once its body is known to be what the app can read."""
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0") or 0) > self._settings.max_request_bytes:
            raise too_large(self._settings.max_request_mb)
        if headers.get(b"content-type") != JSON.encode():
            self.without_content(route)
            return scope, body.receive
        content = self.content(route, await body.read(self._settings.max_json_bytes))
        return with_content(scope, without_foreign_keys(content, route, self._known), body)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket, which only pages open."""
        try:
            self._door.admit(scope)
            if self._websockets >= self._settings.max_websockets:
                raise Refusal(
                    429,
                    f"{self._websockets} pages of the app are open already. Close some, or set HRDA_MAX_WEBSOCKETS "
                    "where the app is started.",
                )
        except Refusal as refusal:
            _logger.warning("A websocket at %s was refused: %s", scope["path"][:_LONGEST_PATH], refusal)
            await self._deny(scope, receive, send, refusal)
            return
        self._websockets += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._websockets -= 1

    async def _deny(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
        if "websocket.http.response" in scope.get("extensions", ()):
            await self._refusal(HTTPConnection(scope), refusal)(scope, receive, send)
        else:
            message: Message = {"type": "websocket.close", "code": 1008}
            await send(message)
