"""How the SDK tells browsers of changes: it sends to one after another, and ends at the first that does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import WebSocket

_logger = logging.getLogger(__name__)
LIMIT_S = 5.0
"""A browser that has not taken a change after so long is let go. It comes back by itself and reads everything anew."""


class Manager(Protocol):
    """The SDK's `WebsocketManager`, as far as it is needed here."""

    active_connections: list[WebSocket]
    connect: Callable[[WebSocket], Awaitable[None]]
    broadcast: Callable[..., Awaitable[None]]

    def disconnect(self, websocket: WebSocket) -> None:
        """Forget a browser."""


def tell_each_alone(manager: Manager) -> None:
    """Have a browser that is gone or hangs keep no change from the others.

    The SDK takes a change for sent before it sends it: what a browser does not get then, it never gets.

    Args:
        manager: the app's browsers.
    """
    loops: list[asyncio.AbstractEventLoop] = []
    accept = manager.connect

    async def connect(browser: WebSocket) -> None:
        loops[:] = [asyncio.get_running_loop()]
        await accept(browser)

    async def broadcast(change: dict[str, Any], user_id: int | str | None = None) -> None:
        for browser in list(manager.active_connections):
            try:
                await asyncio.wait_for(browser.send_json(change), LIMIT_S)
            except Exception as error:
                _logger.info("A browser is let go, which did not take a change: %s", type(error).__name__)
                manager.disconnect(browser)
                if loops:
                    # Its connection belongs to the server's thread.
                    asyncio.run_coroutine_threadsafe(_close(browser), loops[0])

    manager.connect, manager.broadcast = connect, broadcast


async def _close(browser: WebSocket) -> None:
    try:
        await asyncio.wait_for(browser.close(), LIMIT_S)
    except Exception as error:
        _logger.debug("It was closed already: %s", type(error).__name__)
