"""Connections that hold something up are closed, and others are not: raw sockets against a real server."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from common.web.connections import BoundedProtocol

HEAD = b"POST /a HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 32 * 2**20


class App:
    """Answers with the length of the body; `/large` with more than sockets hold, `/held` when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
        elif scope["type"] == "http":
            self.at_work += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self.at_work -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more and (message := await receive())["type"] == "http.request":
            size, more = size + len(message["body"]), message["more_body"]
        while scope["path"] == "/held" and not self.let_go.is_set():
            await asyncio.sleep(0.01)
        await PlainTextResponse(b"x" * LARGE if scope["path"] == "/large" else str(size))(scope, receive, send)


@contextlib.contextmanager
def serving(**bounds: Any) -> Iterator[SimpleNamespace]:
    app = App()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bounds.items():
            patch.setenv(f"HRDA_{name.upper()}", str(value))
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=BoundedProtocol, ws="websockets", lifespan="off", log_level="critical")
        web = uvicorn.Server(config)
        thread = threading.Thread(target=web.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: web.started)
        try:
            yield SimpleNamespace(app=app, web=web, port=listener.getsockname()[1])
        finally:
            app.let_go.set()
            web.should_exit = web.force_exit = True
            thread.join(10)


def connect(server: SimpleNamespace, sent: bytes = b"", **options: Any) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20, **options)
    connection.sendall(sent)
    return connection


def answer(connection: socket.socket) -> bytes:
    """What comes until it is closed, or the first answer is whole."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while not received.endswith((b"\r\n\r\n0", b"\r\n\r\n5")):
            part = connection.recv(2**16)
            if not part:
                break
            received += part
    return received


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it without an answer; waits for that."""
    return answer(connection) == b""


def wait_until(condition: Any, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def quick() -> Iterator[SimpleNamespace]:
    with serving(idle_timeout_s=0.4) as server:
        yield server


def test_requests_are_answered_one_after_the_other_on_one_connection(quick):
    connection = connect(quick)
    for _ in range(3):
        connection.sendall(HEAD + b"Content-Length: 5\r\n\r\nhello")
        assert b"200 OK" in answer(connection)


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"X-A: b\r\n", b"POST /" + b"a" * 100])
def test_connection_without_a_whole_head_is_closed(quick, sent):
    assert is_closed(connect(quick, sent))


def test_head_that_comes_byte_by_byte_is_closed_and_a_second_one_too(quick):
    connection = connect(quick, GET)
    assert b"200 OK" in answer(connection)
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            connection.sendall(b"G" if _ == 0 else b"E")
            time.sleep(0.02)
        pytest.fail("it was let go on")


def test_head_is_bounded(quick):
    endless = connect(quick, HEAD)
    with contextlib.suppress(ConnectionError):
        for number in range(4000):
            endless.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
    wait_until(lambda: len(quick.web.server_state.connections) == 0)
    assert b"200 OK" in answer(connect(quick, HEAD + b"X: " + b"a" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n"))


def test_one_connection_too_many_closes_the_one_that_has_waited_longest():
    with serving(max_connections=4) as server:
        waiting = [connect(server) for _ in range(12)]
        assert b"200 OK" in answer(connect(server, GET)), "nobody waits for those that say nothing"
        assert all(is_closed(connection) for connection in waiting[:8])
        assert len(server.web.server_state.connections) <= 4


def test_requests_at_work_are_not_closed_for_new_ones():
    with serving(max_connections=3) as server:
        held = [connect(server, GET.replace(b"GET /", b"GET /held")) for _ in range(3)]
        wait_until(lambda: server.app.at_work == 3)
        assert b"503 Service Unavailable" in answer(connect(server))
        server.app.let_go.set()
        assert all(b"200 OK" in answer(connection) for connection in held)
        wait_until(lambda: b"200 OK" in answer(connect(server, GET)))


def test_answer_that_nobody_takes_ends(quick):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", quick.port))
    connection.sendall(GET.replace(b"GET /", b"GET /large"))
    wait_until(lambda: quick.app.at_work == 1 or len(quick.web.server_state.connections) == 1)
    wait_until(lambda: quick.app.at_work == 0 and not quick.web.server_state.connections)
    connection.close()


def test_answer_that_is_taken_slowly_arrives_whole(quick):
    connection = connect(quick, GET.replace(b"GET /", b"GET /large"))
    size = 0
    while size < LARGE:
        part = connection.recv(2**19)
        assert part, "it was closed"
        size += len(part)
        time.sleep(0.01)


def test_websocket_stays_open():
    from websockets.sync.client import connect as websocket

    with serving(idle_timeout_s=0.2) as server, websocket(f"ws://127.0.0.1:{server.port}/") as page:
        for _ in range(4):
            time.sleep(0.15)
            page.send("hello")
            assert page.recv(20) == "hello"


def test_what_is_no_request_is_told_so(quick):
    told = answer(connect(quick, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"))
    assert b"400" in told and b"cannot be read as a request of HTTP/1.1" in told and b"32 kilobytes" in told
