"""uvicorn's connections with bounds that it does not have: their number, time for a request's head, slow readers.

Both apps are started with it: `python -m uvicorn … --http common.web.connections:BoundedProtocol`.
"""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from common.web.bodies import PROGRESS
from common.web.settings import DoorSettings

_FULL = b"Too many connections are open. Try again in some seconds."
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 5\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)
_UNREADABLE = (
    "This cannot be read as a request of HTTP/1.1, or its head has more than %d kilobytes. Send a shorter one, as curl "
    "does."
)


@lru_cache(maxsize=1)
def _bounds(config: Config) -> DoorSettings:
    """Read once for a server."""
    return DoorSettings.from_environment(others_too=True)


class BoundedProtocol(H11Protocol):
    """A connection that is closed when it sends no whole head of a request, or takes no answer, for too long."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.bounds = _bounds(config)
        self.conn = h11.Connection(h11.SERVER, self.bounds.max_header_kb * 2**10)
        self.waits_since: float | None = None
        """Since when it has been without a request."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a request nor an answer on its way."""
        return self.waits_since is not None and self.transport.get_write_buffer_size() == 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Called by the event loop. One connection too many closes the one that has waited longest, or itself."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) <= self.bounds.max_connections:
            return
        waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.is_idle]
        oldest = min(waiting, key=lambda each: each.waits_since)
        if oldest is self:
            transport.write(_REFUSED)
            transport.close()
        else:
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_came()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The connection is another protocol's from here on."""
        self._stop_timers()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Called where what came is no request; uvicorn's own words say nothing of it."""
        super().send_400_response(_UNREADABLE % self.bounds.max_header_kb)

    def on_response_complete(self) -> None:
        """Called by the request's cycle; a request that was sent meanwhile begins within."""
        if not self.transport.is_closing():
            self._await_head()
        super().on_response_complete()
        if not self.cycle.response_complete:
            self._head_came()

    def pause_writing(self) -> None:
        """Called by the event loop when the client takes the answer slower than it comes."""
        super().pause_writing()
        self._watch_answer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Called by the event loop when the client has taken most of it."""
        super().resume_writing()
        self._answer_timer = _cancelled(self._answer_timer)

    def _await_head(self) -> None:
        def late() -> None:
            # An answer that is taken slowly has its own bound; the wait for the next request begins after it.
            if self._answer_timer is None:
                self.transport.abort()
            else:
                self._await_head()

        self.waits_since = time.monotonic()
        self._head_timer = _cancelled(self._head_timer)
        self._head_timer = self.loop.call_later(self.bounds.idle_timeout_s, late)

    def _head_came(self) -> None:
        self.waits_since = None
        self._head_timer = _cancelled(self._head_timer)

    def _watch_answer(self, left: int) -> None:
        def check() -> None:
            now = self.transport.get_write_buffer_size()
            if now > left - PROGRESS:
                self.transport.abort()
            else:
                self._watch_answer(now)

        self._answer_timer = _cancelled(self._answer_timer)
        self._answer_timer = self.loop.call_later(self.bounds.idle_timeout_s, check)

    def _stop_timers(self) -> None:
        self._head_came()
        self._answer_timer = _cancelled(self._answer_timer)


def run(app: ASGIApp, host: str, port: int, drain_s: float) -> None:
    """Answer requests until stopped, without websockets, which only pages need.

    Args:
        app: what answers; it writes its own line about each request.
        host: address to listen on.
        port: to listen on.
        drain_s: how long requests that are answered may take when it is stopped.
    """
    drain = int(drain_s) + 1
    uvicorn.run(
        app, host=host, port=port, http=BoundedProtocol, ws="none", access_log=False, timeout_graceful_shutdown=drain
    )


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
