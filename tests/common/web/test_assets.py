"""The page's addresses: replaced where a server is named, untouched where none is, and nothing else held up."""

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.testclient import TestClient

from common.web.assets import CDN, AssetsError, use_assets

PAGE = "<html>" + " ".join(f'<script src="{host}/a@1/b.js"></script>' for host in CDN)
PAGE += '<img src="https://app.supervisely.com/loading.gif"><a href="https://app.supervisely.com/projects/1">é</a>'


def _server() -> FastAPI:
    server = FastAPI()

    @server.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"x-mine": "1"})

    @server.get("/json")
    def json() -> JSONResponse:
        return JSONResponse({"url": CDN[0]})

    @server.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(iter([b"a ", CDN[0].encode()]), media_type="text/plain")

    @server.get("/packed")
    def packed() -> HTMLResponse:
        return HTMLResponse(CDN[0].encode(), headers={"content-encoding": "identity"})

    @server.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(CDN[0])
        await websocket.close()

    return server


def test_page_is_untouched_without_the_variable(monkeypatch):
    monkeypatch.delenv("SLY_ASSETS_URL", raising=False)
    server = _server()
    use_assets(server)
    assert TestClient(server).get("/").content == PAGE.encode()
    assert not server.user_middleware


def test_page_names_the_own_server_for_every_file_of_the_cdn(monkeypatch):
    monkeypatch.setenv("SLY_ASSETS_URL", "https://files.example.com/assets/")
    server = _server()
    use_assets(server)
    answer = TestClient(server).get("/")
    expected = PAGE.replace("https://app.supervisely.com/loading.gif", "https://files.example.com/assets/loading.gif")
    for host in CDN:
        expected = expected.replace(host, "https://files.example.com/assets")
    assert answer.text == expected
    assert int(answer.headers["content-length"]) == len(expected.encode())
    assert answer.headers["x-mine"] == "1"
    assert 'href="https://app.supervisely.com/projects/1"' in answer.text


def test_server_that_has_answered_already_is_changed_too(monkeypatch):
    """In production the SDK asks for its own page while the app is made."""
    monkeypatch.setenv("SLY_ASSETS_URL", "http://127.0.0.1:1/assets")
    server = _server()
    client = TestClient(server)
    client.get("/json")
    use_assets(server)
    assert CDN[0] not in client.get("/").text


@pytest.mark.parametrize("route", ["/json", "/stream", "/packed"])
def test_other_answers_pass_as_they_are(monkeypatch, route):
    monkeypatch.setenv("SLY_ASSETS_URL", "http://127.0.0.1:1/assets")
    server = _server()
    use_assets(server)
    assert CDN[0] in TestClient(server).get(route).text


def test_streams_are_not_held_back(monkeypatch):
    monkeypatch.setenv("SLY_ASSETS_URL", "http://127.0.0.1:1/assets")
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert len(sent) == 2
        await send({"type": "http.response.body", "body": b"two"})

    import asyncio

    from common.web.assets import AssetsMiddleware

    async def send(message):
        sent.append(message)

    asyncio.run(AssetsMiddleware(app, "http://x")({"type": "http", "method": "GET"}, None, send))
    assert [message.get("body") for message in sent] == [None, b"one", b"two"]


def test_websockets_pass(monkeypatch):
    monkeypatch.setenv("SLY_ASSETS_URL", "http://127.0.0.1:1/assets")
    server = _server()
    use_assets(server)
    with TestClient(server).websocket_connect("/ws") as socket:
        assert socket.receive_text() == CDN[0]


@pytest.mark.parametrize(
    "value",
    ["files.example.com", "/assets", "ftp://x/y", "http://", "http://x/?v=1", "http://x:99999", 'http://x/"><b>'],
)
def test_bad_address_is_refused_with_what_was_expected(monkeypatch, value):
    monkeypatch.setenv("SLY_ASSETS_URL", value)
    with pytest.raises(AssetsError, match="SLY_ASSETS_URL must be the address.*Received"):
        use_assets(FastAPI())
