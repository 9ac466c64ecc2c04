"""How the SDK tells browsers of changes: it sends to one after another, and ends at the first that does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket
from supervisely import logger
from supervisely.app.fastapi.websocket import WebsocketManager

LIMIT_S = 5.0
"""A browser that has not taken a change after so long is let go. It comes back by itself and reads everything anew."""


def tell_each_alone(manager: WebsocketManager) -> None:
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
                logger.info(f"A browser is let go, which did not take a change: {error!r}")
                manager.disconnect(browser)
                if loops:
                    # Its connection belongs to the server's thread.
                    asyncio.run_coroutine_threadsafe(_close(browser), loops[0])

    manager.connect, manager.broadcast = connect, broadcast


async def _close(browser: WebSocket) -> None:
    try:
        await asyncio.wait_for(browser.close(), LIMIT_S)
    except Exception as error:
        logger.debug(f"It was closed already: {error!r}")
