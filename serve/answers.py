"""What a client is told by HTTP when something went wrong: a status and a sentence, and not a traceback."""

from __future__ import annotations

import errno
import traceback

from fastapi.exceptions import RequestValidationError
from requests import HTTPError as InstanceAnswer
from requests import RequestException as ConnectionFailed
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from common.data.images import ImageTooLarge
from common.hrda.out_of_memory import is_out_of_memory
from serve.errors import CLIENT_ERRORS, InstanceFailed, NotFound, OutOfMemory, TooLarge, Unavailable

UNEXPECTED = "The service failed at this request, which is its own fault; its log says why, by the request's id."
_LONGEST_SAID = 300
"""Characters of an instance's own sentence that are passed on."""
_NO_MEMORY = "The memory of the service does not suffice for this request. Send smaller images, or fewer at once."
_NO_DISK = "The disk of the service is full, so that it cannot keep what was sent. Try again later."


def status_and_message(error: BaseException) -> tuple[int, str]:
    """What a client is told about `error`: HTTP status and a sentence."""
    known = _known(error)
    if isinstance(known, ImageTooLarge):
        return TooLarge.status, str(known)
    if isinstance(known, CLIENT_ERRORS):
        return getattr(known, "status", 400), str(known)
    if isinstance(known, ClientDisconnect):
        return 499, "The client has gone."
    if isinstance(known, RequestValidationError):
        return 400, _missing_fields(known)
    if isinstance(known, HTTPException):
        return known.status_code, _detail(known)
    if isinstance(known, InstanceAnswer) and known.response is not None:
        return _of_instance(known)
    if isinstance(known, ConnectionFailed):
        return InstanceFailed.status, "The Supervisely instance cannot be reached. Try again later."
    if is_out_of_memory(known):
        return OutOfMemory.status, _NO_MEMORY
    if isinstance(known, OSError) and known.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable.status, _NO_DISK
    if isinstance(known, KeyError) and (said := str(known.args[0] if known.args else "")).startswith("Image (id"):
        return NotFound.status, f"{said}."
    return 500, UNEXPECTED


def is_unexpected(error: BaseException) -> bool:
    """Whether `error` is a fault of the service, which its log must explain."""
    return status_and_message(error)[0] == 500


def forget_frames(error: BaseException) -> None:
    """Drop the variables that `error` and its causes keep alive, such as decoded images."""
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)


def _known(error: BaseException) -> BaseException:
    """The error that says what happened: the SDK and the web framework wrap errors into others of less meaning."""
    chain = _chain(error)
    for kinds in (CLIENT_ERRORS, (ClientDisconnect, ConnectionFailed), (HTTPException, RequestValidationError)):
        for each in chain:
            if isinstance(each, kinds):
                return each
    return chain[-1]


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := _cause(chain[-1])) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _cause(error: BaseException) -> BaseException | None:
    # What fails while the SDK's middleware receives a body comes in a group of one.
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def _missing_fields(error: RequestValidationError) -> str:
    faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
    return f"The request does not have the form that this address expects: {faults}."


def _detail(error: HTTPException) -> str:
    detail = error.detail
    if isinstance(detail, dict):
        detail = detail.get("message", detail)
    if error.status_code == 404 and detail == "Not Found":
        return "There is nothing at this address. See README.md for those that are answered."
    if error.status_code == 405 and detail == "Method Not Allowed":
        return "This address is not asked this way: nearly all of them take POST."
    return str(detail)


def _of_instance(error: InstanceAnswer) -> tuple[int, str]:
    status = error.response.status_code
    try:
        said = error.response.json()["details"]["message"]
    except (ValueError, KeyError, TypeError):
        said = error.response.reason
    # It may repeat what was sent.
    message = f"The Supervisely instance answered with status {status}: {str(said)[:_LONGEST_SAID]}"
    return (NotFound.status if status in (403, 404) else InstanceFailed.status if status >= 500 else 400), message
