"""How both apps say that something went wrong: one form of answer, and our sentences in place of the frameworks'."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi import HTTPException as FastAPIError
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.web.refusals import Refusal

Answer = Callable[[HTTPConnection, Exception], Response]
"""What is sent back to who asked, by the error that came of it."""

UNEXPECTED = "The app failed at this request, which is its own fault; its log says why."
NO_SUCH_ADDRESS = "There is nothing at this address. See README.md for those that are answered."
_OF_FRAMEWORKS = {
    400: "The form of the request cannot be read. Send it as multipart/form-data with a boundary, at most 1000 files "
    "and as many fields, as curl -F files=@photo.jpg does.",
    404: NO_SUCH_ADDRESS,
    405: "This address is not asked this way: nearly all of them take POST.",
}
_LONGEST = 2000
_MOST_NAMED = 5
_logger = logging.getLogger(__name__)


def chain(error: BaseException) -> list[BaseException]:
    """`error`, and what it came of: the SDK and the web framework wrap errors into others of less meaning."""
    found = [error]
    while (cause := _cause(found[-1])) is not None and cause not in found:
        found.append(cause)
    return found


def first_of(error: BaseException, *kinds: type[BaseException] | tuple[type[BaseException], ...]) -> BaseException:
    """The first of the `chain` that is of the first of `kinds` that is in it; else what all came of."""
    found = chain(error)
    return next((each for kind in kinds for each in found if isinstance(each, kind)), found[-1])


def status_and_message(error: BaseException) -> tuple[int, str]:
    """HTTP status and sentence for an error that an app raises itself, or its web framework does; 500 for others."""
    known = first_of(error, Refusal, ClientDisconnect, (HTTPException, RequestValidationError))
    if isinstance(known, Refusal):
        return known.status, str(known)
    if isinstance(known, ClientDisconnect):
        return 499, "The client has gone."
    if isinstance(known, RequestValidationError):
        return 400, _of_fields(known)
    if not isinstance(known, HTTPException):
        return 500, UNEXPECTED
    if type(known) not in (HTTPException, FastAPIError):
        # One of ours, whose sentence is for who asked.
        return known.status_code, str(known.detail)
    reason = HTTPStatus(known.status_code).phrase.lower()
    said = f"This cannot be answered ({known.status_code}, {reason}). See README.md for what this address takes."
    return known.status_code, _OF_FRAMEWORKS.get(known.status_code, said)


def error_answer(
    status: int, message: str, title: str | None = None, headers: Iterable[tuple[str, str]] = (), **more: Any
) -> JSONResponse:
    """The form of all answers that tell of an error.

    Args:
        status: of HTTP.
        message: the sentence.
        title: of the window in which the app's page shows it; None: `detail` is the sentence alone.
        headers: of the answer.
        more: what else it tells.
    """
    # What a client sent may hold halves of characters, which cannot be sent back.
    message = message[:_LONGEST].encode("utf-8", "replace").decode()
    detail = message if title is None else {"title": title, "message": message}
    answer = JSONResponse({"detail": detail, "message": message, "success": False, **more}, status)
    for name, value in headers:
        answer.headers.append(name, value)
    return answer


def answer_error(_: HTTPConnection, error: Exception) -> Response:
    """The answer of an app without errors of its own kinds; what nobody foresaw is explained in the log."""
    status, message = status_and_message(error)
    if status == 500:
        _logger.error("unexpected error", exc_info=error)
    return error_answer(status, message, headers=getattr(error, "headers", None) or ())


def answer_all_errors(server: FastAPI, answer: Answer, note: Callable[[Exception], None] = lambda error: None) -> None:
    """Have `answer` speak for the app, in place of the SDK and the web framework.

    Args:
        server: of the app.
        answer: makes the answer to a request that failed.
        note: told of each error that no route has answered itself.
    """

    async def handle(request: Request, error: Exception) -> Response:
        return answer(request, error)

    for kind in (HTTPException, RequestValidationError, 500):
        server.add_exception_handler(kind, handle)
    server.user_middleware.append(Middleware(_AnswerErrors, answer=answer, note=note))
    # In production the SDK requests its own page while it sets up, which fixes handlers and middleware known by then.
    server.middleware_stack = None


class _AnswerErrors:
    """Innermost: before the SDK answers an error with its text or breaks the connection."""

    def __init__(self, app: ASGIApp, answer: Answer, note: Callable[[Exception], None]) -> None:
        self._app, self._answer, self._note = app, answer, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            self._note(error)
            await self._answer(Request(scope), error)(scope, receive, send)


def _cause(error: BaseException) -> BaseException | None:
    # What fails while the SDK's middleware receives a body comes in a group of one.
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def _of_fields(error: RequestValidationError) -> str:
    faults = [(".".join(map(str, each["loc"][1:])), each["type"]) for each in error.errors()[:_MOST_NAMED]]
    names = ", ".join(name for name, _ in faults)
    if all(kind == "missing" for _, kind in faults):
        return f"The request must hold {names}. README.md shows how it is sent."
    return f"The request does not have the form that this address expects, at {names}. README.md shows how it is sent."
