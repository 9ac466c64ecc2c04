"""Changes that go to several browsers, of which one is gone or hangs."""

import asyncio
import threading

import pytest
from supervisely.app.fastapi import run_sync
from supervisely.app.fastapi.websocket import WebsocketManager

from common.web import browsers
from common.web.browsers import tell_each_alone


class Browser:
    """What the SDK knows of one."""

    query_params, headers = {}, {}

    def __init__(self, answer: str) -> None:
        self.answer, self.heard, self.closed = answer, [], threading.Event()

    async def accept(self) -> None:
        pass

    async def close(self) -> None:
        self.closed.set()

    async def send_json(self, change: dict) -> None:
        if self.answer == "gone":
            raise RuntimeError('Cannot call "send" once a close message has been sent.')
        if self.answer == "hangs":
            await asyncio.Event().wait()
        self.heard.append(change)


@pytest.mark.parametrize("answer", ["gone", "hangs"])
def test_browser_that_takes_nothing_is_let_go_and_the_others_hear_all(answer, monkeypatch):
    monkeypatch.setattr(browsers, "LIMIT_S", 0.2)
    manager = object.__new__(WebsocketManager)
    WebsocketManager.__init__(manager)
    tell_each_alone(manager)
    ill, well = Browser(answer), Browser("well")
    server = asyncio.new_event_loop()
    thread = threading.Thread(target=server.run_forever)
    thread.start()
    try:
        for browser in (ill, well):
            asyncio.run_coroutine_threadsafe(manager.connect(browser), server).result(10)
        # As the page does: from another thread, with a loop of its own.
        for number in (1, 2):
            run_sync(manager.broadcast({"data": number}))
        assert well.heard == [{"data": 1}, {"data": 2}]
        assert manager.active_connections == [well]
        assert ill.closed.wait(10), "so that it comes back and reads everything"
    finally:
        server.call_soon_threadsafe(server.stop)
        thread.join()
        server.close()
