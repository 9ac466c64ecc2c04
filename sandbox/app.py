"""The sandbox's FastAPI application."""

import binascii
import hmac
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse

from sandbox import (
    annotations,
    apps,
    datasets,
    ecosystem,
    entity_collections,
    errors,
    files,
    images,
    models,
    page_assets,
    previews,
    projects,
    proxy,
    tasks,
    teams,
    videos,
)
from sandbox.errors import ApiError, not_found
from sandbox.methods import PREFIX, Store
from sandbox.storage import Storage

logger = logging.getLogger("sandbox")


def _check_token(request: Request) -> None:
    given = request.headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode(), request.app.state.token.encode()):
        raise ApiError(401, "The API token is missing or wrong: expected the sandbox's API_TOKEN in header x-api-key.")


def build_app(storage: Storage, token: str) -> FastAPI:
    """The application over a state.

    Args:
        storage: The state; the caller closes it.
        token: The API token that every method asks for.
    """

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with proxy.client() as client:
            application.state.client = client
            yield

    app = FastAPI(title="Sandbox", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.storage = storage
    app.state.token = token
    # Set by whoever starts apps.
    app.state.agent = None
    app.add_exception_handler(ApiError, errors.answer)

    for area in (
        teams, projects, datasets, images, videos, annotations, files, entity_collections, ecosystem, models, tasks,
        apps, proxy,
    ):  # fmt: skip
        app.include_router(area.router, dependencies=[Depends(_check_token)])
    app.include_router(proxy.net)
    app.include_router(page_assets.router)
    app.include_router(previews.router)

    @app.get("/")
    def about() -> dict:
        return {"sandbox": "A local stand-in for a Supervisely instance. There is no web page."}

    @app.get("/storage/{key}/{name:path}")
    def content(key: str, name: str, store: Store) -> FileResponse:
        try:
            path = store.blobs.path(b64encode(bytes.fromhex(key)).decode())
        except (ValueError, binascii.Error):
            raise not_found("Content", key) from None
        if not path.is_file():
            raise not_found("Content", key)
        return FileResponse(path, filename=name, content_disposition_type="inline")

    @app.api_route(PREFIX + "/{method:path}", methods=["GET", "POST"], dependencies=[Depends(_check_token)])
    def unknown(method: str) -> None:
        logger.warning("unknown method: %s", method)
        raise ApiError(404, f"The sandbox does not know the method {method!r}.", method=method)

    return app
