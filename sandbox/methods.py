"""The router on which the methods of the public API are declared, and what their handlers are given."""

import base64
import functools
import inspect
from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import JSONResponse

from sandbox.storage import Storage

PREFIX = "/public/api/v3"


def _storage(request: Request) -> Storage:
    return request.app.state.storage


Json = Annotated[dict, Body()]
Store = Annotated[Storage, Depends(_storage)]


def address(request: Request) -> str:
    """The sandbox's own address as the caller sees it, without a closing slash."""
    return str(request.base_url).rstrip("/")


def content_path(content_hash: str | None, name: str = "image") -> str:
    """Where a content can be read with a plain GET and without the token, as the addresses in infos promise.

    Whoever knows the hash knows the content already, or was told it by a method that asks for the token.
    """
    key = base64.b64decode(content_hash).hex() if content_hash else "none"
    return f"/storage/{key}/{quote(name)}"


class Methods(APIRouter):
    """The methods of one area, e.g. ``projects.info``, each under ``POST /public/api/v3/<name>``."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)

    def method(self, name: str, verb: str = "POST") -> Callable[[Callable], Callable]:
        """Declare the handler of one method; what it returns is sent as JSON unless it is a response itself."""

        def declare(handler: Callable) -> Callable:
            # FastAPI walks through every value of a plain return value, which takes seconds for long lists.
            if inspect.iscoroutinefunction(handler):

                @functools.wraps(handler)
                async def respond(*args: object, **kwargs: object) -> Response:
                    return _response(await handler(*args, **kwargs))
            else:

                @functools.wraps(handler)
                def respond(*args: object, **kwargs: object) -> Response:
                    return _response(handler(*args, **kwargs))

            self.add_api_route(f"/{name}", respond, methods=[verb], response_model=None, name=name)
            return handler

        return declare


def _response(result: object) -> Response:
    return result if isinstance(result, Response) else JSONResponse(result)
