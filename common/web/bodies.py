"""A request's body on its way in: bounded in size, in time and together with those of all others."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope

from common.hrda.checks import received
from common.web.refusals import Refusal
from common.web.settings import DoorSettings

PROGRESS = 16 * 2**10
"""Bytes that must pass in each `idle_timeout_s`, unless they are the last."""
_DISCARDED = 64 * 2**20
_DISCARD_S = 10.0


class Arriving:
    """Bytes of all requests that have not arrived whole yet, bounded. Used by one event loop."""

    def __init__(self, settings: DoorSettings) -> None:
        self._most, self._held = int(settings.max_arriving_mb * 2**20), 0

    def add(self, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            Refusal: too many arrive at the same time.
        """
        if self._held + size > self._most:
            raise Refusal(429, "Too much is being uploaded by all at the moment. Try again in some seconds.")
        self._held += size

    def remove(self, size: int) -> None:
        """Count `size` bytes no more."""
        self._held -= size


class Body:
    """One request's body.

    Args:
        receive: of the request.
        settings: its bounds.
        arriving: bytes of all bodies.
        arrived: called once with its size when it is there whole; may raise `Refusal`.
    """

    def __init__(
        self,
        receive: Receive,
        settings: DoorSettings,
        arriving: Arriving,
        arrived: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._receive, self._settings, self._arriving, self._arrived = receive, settings, arriving, arrived
        now = time.monotonic()
        self._deadline, self._pause = now + settings.upload_timeout_s, now + settings.idle_timeout_s
        self._size = self._passed = self._counted = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Refusal: the rest is not read.
        """
        if self._complete:
            return await self._receive()
        message = await self._next()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._size += size
            if self._size > self._settings.max_request_bytes:
                raise too_large(self._settings.max_request_mb)
            self._arriving.add(size)
            self._counted += size
            self._complete = not message.get("more_body", False)
            if self._complete:
                self._arrived(self._size)
                self.close()
        return message

    async def _next(self) -> Message:
        now = time.monotonic()
        if self._size - self._passed >= PROGRESS:
            self._passed, self._pause = self._size, now + self._settings.idle_timeout_s
        try:
            return await asyncio.wait_for(self._receive(), max(0.0, min(self._deadline, self._pause) - now))
        except TimeoutError as error:
            late = self._settings.upload_timeout_s if self._deadline <= self._pause else self._settings.idle_timeout_s
            rest = "" if self._deadline <= self._pause else f", or {PROGRESS // 2**10} kilobytes of it"
            raise Refusal(408, f"The request{rest} did not arrive within {late:g} seconds.") from error

    async def read(self, most: int) -> bytes:
        """The whole body, of at most `most` bytes.

        Raises:
            Refusal: it is longer, too slow, or the client has gone.
        """
        parts = bytearray()
        while not self._complete:
            message = await self.receive()
            if message["type"] != "http.request":
                raise Refusal(400, "The request ended before its body was complete.")
            parts += message.get("body", b"")
            if len(parts) > most:
                raise too_large(most / 2**20)
        return bytes(parts)

    def again(self, content: bytes) -> Receive:
        """`content` for the app to read, in place of what was read."""
        parts = [content]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            return await self._receive()

        return receive

    async def discard(self) -> None:
        """Read on for a while: most clients look for an answer only when they have sent everything."""
        deadline, left = time.monotonic() + min(_DISCARD_S, self._settings.idle_timeout_s), _DISCARDED
        while not self._complete and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self._complete = message["type"] != "http.request" or not message.get("more_body", False)

    def close(self) -> None:
        """Count its bytes no more among those that arrive."""
        self._arriving.remove(self._counted)
        self._counted = 0


def with_content(scope: Scope, content: dict[str, Any], body: Body) -> tuple[Scope, Receive]:
    """A request whose body is `content`, in place of `body` that was read."""
    replaced = json.dumps(content).encode()
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(len(replaced)).encode())]}, body.again(replaced)


def too_large(megabytes: float) -> Refusal:
    """That a request has more than `megabytes`."""
    return Refusal(413, f"The request is too large: at most {round(megabytes, 3):g} megabytes are read.")


def read_object(text: bytes | str, name: str = "The request's body", example: str = '{"state": {…}}') -> dict[str, Any]:
    """The JSON object of a request, in which state and context, if they are there, are objects.

    Args:
        text: of it.
        name: what an error message calls it.
        example: what it looks like.

    Raises:
        Refusal: it is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else "a number has too many digits"
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            reason = str(error)
        raise Refusal(400, f"{name} must be JSON: {reason}.") from None
    if not isinstance(content, dict):
        raise Refusal(400, f"{name} must be a JSON object: {example}. Received: {received(content)}.")
    for name in ("state", "context"):
        if not isinstance(content.get(name), dict | None):
            raise Refusal(400, f"{name} must be a JSON object. Received: {received(content[name])}.")
    for name, place in (("api_token", content), ("apiToken", content.get("context") or {})):
        token = place.get(name)
        if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise Refusal(400, f"{name} must be the text of a token.")
    # The SDK takes for granted that what is there is no null.
    return {name: value for name, value in content.items() if value is not None or name not in ("state", "context")}
