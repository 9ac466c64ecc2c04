"""Routes of ours, in place of routes of the SDK that would answer wrongly.

The SDK keeps uploaded files by the name that the client gave them, and its own clients name every batch
'image_0.png', 'image_1.png' …: two clients at once would get each other's predictions, and a name with '..'
would leave the folder. Here a request's images stay with the request. They are decoded as in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.responses import JSONResponse

from common.data.images import decode_image
from serve.errors import CLIENT_ERRORS, RequestError

if TYPE_CHECKING:
    from serve.server import HRDAServer

_REPLACED = {
    "/inference_image",
    "/inference_batch",
    "/inference_batch_async",
    "/list_pretrained_models",
    "/list_pretrained_model_infos",
}


class UploadedImages(Sequence[np.ndarray]):
    """Images of one request, decoded when they are needed: what waits are the compressed bytes."""

    def __init__(self, files: Sequence[UploadFile]) -> None:
        self._files = [(file.filename or f"file {number}", file.file.read()) for number, file in enumerate(files)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        name, content = self._files[index]
        return decode_image(content, name)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def add_routes(app: HRDAServer, server: FastAPI) -> None:
    """Replace the routes and let errors of clients be answered with their message and status 400."""
    server.router.routes[:] = [
        route for route in server.router.routes if _last_part(getattr(route, "path", "")) not in _REPLACED
    ]
    _add_uploads(app, server)
    _add_model_lists(server)
    for error in CLIENT_ERRORS:
        server.add_exception_handler(error, _answer)
    # In production the SDK requests its own page while it sets up, which fixes the handlers known by then.
    server.middleware_stack = None


def _add_uploads(app: HRDAServer, server: FastAPI) -> None:
    @server.post("/inference_image")
    def inference_image(files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")) -> dict[str, Any]:
        request = _read_state(app, state, settings)
        if len(files) != 1:
            raise RequestError(f"Exactly one file is expected. Received: {len(files)}.")
        return app.predict_now(UploadedImages(files), request)[0]

    @server.post("/inference_batch")
    def inference_batch(
        files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")
    ) -> list[dict[str, Any]]:
        request = _read_state(app, state, settings)
        return app.predict_now(UploadedImages(files), request)

    @server.post("/inference_batch_async")
    def inference_batch_async(
        files: list[UploadFile], settings: str = Form("{}"), state: str = Form("{}")
    ) -> dict[str, str]:
        request = _read_state(app, state, settings)
        uuid = app.predict_later(UploadedImages(files), request)
        return {"message": "Scheduled inference task.", "inference_request_uuid": uuid}


def _add_model_lists(server: FastAPI) -> None:
    @server.post("/list_pretrained_models")
    @server.post("/list_pretrained_model_infos")
    def list_pretrained_models() -> list[Any]:
        """There are none; the SDK looks into the page's table of them, which is not there either."""
        return []


def _read_state(app: HRDAServer, state: str, settings: str) -> dict[str, Any]:
    """The request's state: clients send it as form field `state`, older ones as `settings`."""
    text = state if state and state != "{}" else settings or "{}"
    app.validate_inference_state(text)
    return json.loads(text)


def _last_part(path: str) -> str:
    """The route's own name: an instance may put a prefix before all of them."""
    return f"/{path.rsplit('/', 1)[-1]}"


async def _answer(_: Request, error: Exception) -> JSONResponse:
    message = str(error)
    # `detail` is what the page shows in a window, `message` what the SDK's clients read.
    detail = {"title": "Serve HRDA cannot do this", "message": message}
    return JSONResponse({"detail": detail, "message": message, "success": False}, status_code=400)
