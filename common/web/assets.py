"""Where an app's page gets Supervisely's widget bundle from: its CDN, or a server of one's own.

The SDK writes the CDN's addresses into the page. An installation without internet names a server that holds the same
files in the variable SLY_ASSETS_URL; the sandbox is one.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.hrda.checks import received

VARIABLE = "SLY_ASSETS_URL"
CDN = (
    "https://cdn-public-cloudstore.supervisely.com",
    "https://cdn.jsdelivr.net",
    "https://cdn.supervisely.com",
    "https://cdnjs.cloudflare.com/ajax/libs",
    "https://unpkg.com",
)
"""Hosts whose files the page loads; a server of one's own has their paths."""
LOADING = "https://app.supervisely.com/loading.gif"


class AssetsError(ValueError):
    """SLY_ASSETS_URL is not an address. The message says what was expected."""


def assets_url() -> str | None:
    """The server of SLY_ASSETS_URL without a slash at its end; None when the CDN serves.

    Raises:
        AssetsError: not an http or https address, or one with a query.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return None
    try:
        parts = urlsplit(given)
        # Reading the port checks it.
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or any(c.isspace() or c in "\"'<>\\`" for c in given):
        raise AssetsError(
            f"{VARIABLE} must be the address of a server with the files of Supervisely's CDN, such as "
            f"https://files.example.com/assets, without query. Received: {received(given)}."
        )
    return given.rstrip("/")


def use_assets(server: FastAPI) -> None:
    """Have HTML answers of an app name the server of SLY_ASSETS_URL in place of the CDN; untouched when it is not set.

    Args:
        server: the app's server, started or not.

    Raises:
        AssetsError: see `assets_url`.
    """
    url = assets_url()
    if url is None:
        return
    try:
        server.add_middleware(AssetsMiddleware, url=url)
    except RuntimeError:
        # In production the SDK has asked its own page already, after which Starlette takes no more middleware.
        server.middleware_stack = AssetsMiddleware(server.middleware_stack, url)


class AssetsMiddleware:
    """Replaces the CDN's addresses in HTML answers. All else, streams and websockets included, passes as it comes.

    Args:
        app: what answers.
        url: server in place of the CDN, without a slash at its end.
    """

    def __init__(self, app: ASGIApp, url: str) -> None:
        self._app = app
        self._replacements = [(host.encode(), url.encode()) for host in CDN]
        self._replacements.append((LOADING.encode(), f"{url}/loading.gif".encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] != "http" or scope["method"] == "HEAD":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def pass_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_html(message["headers"]):
                start = message
            elif message["type"] == "http.response.body" and start is not None:
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    content = self._replaced(bytes(body))
                    headers = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
                    headers.append((b"content-length", str(len(content)).encode()))
                    await send({**start, "headers": headers})
                    await send({"type": "http.response.body", "body": content})
            else:
                await send(message)

        await self._app(scope, receive, pass_on)

    def _replaced(self, html: bytes) -> bytes:
        for old, new in self._replacements:
            html = html.replace(old, new)
        return html


def _is_html(headers: list[tuple[bytes, bytes]]) -> bool:
    given = {key.lower(): value for key, value in headers}
    return given.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in given
