"""The door around a whole app that has no gate of its own."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from common.web.bodies import Arriving, Body, read_object, with_content
from common.web.door import Door
from common.web.page_state import KnownKeys, without_foreign_keys
from common.web.refusals import Refusal
from common.web.routes import JSON
from common.web.settings import DoorSettings

_logger = logging.getLogger(__name__)


class Doorkeeper:
    """Lets in what the door admits, with a body that is there whole and that the SDK can read.

    Args:
        app: what answers.
        door: which requests come in.
        settings: bounds of their bodies.
        known: the keys of the page's state.
    """

    def __init__(self, app: ASGIApp, door: Door, settings: DoorSettings, known: KnownKeys) -> None:
        self._app, self._door, self._settings, self._known = app, door, settings, known
        self._arriving = Arriving(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._connect(scope, receive, send)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._door.admit(scope)
        except Refusal as refusal:
            _logger.warning("A websocket at %s was refused: %s", scope["path"][:200], refusal)
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(receive, self._settings, self._arriving)
        try:
            route, inner = self._door.admit(scope)
            if Request(inner).headers.get("content-type") == JSON:
                content = read_object(await body.read(self._settings.max_json_bytes))
                # The SDK would call whatever instance a caller names.
                content.pop("server_address", None)
                inner, known = with_content(inner, without_foreign_keys(content, route, self._known), body)
            else:
                known = body.receive
        except Refusal as refusal:
            if refusal.status != 408:
                await body.discard()
            answer = JSONResponse({"detail": str(refusal), "message": str(refusal)}, refusal.status)
            for name, value in refusal.headers:
                answer.headers.append(name, value)
            await answer(scope, receive, send)
        else:
            await self._app(inner, known, send)
        finally:
            body.close()
