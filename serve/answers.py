"""What a client is told by HTTP when something went wrong: a status and a sentence, and not a traceback."""

from __future__ import annotations

import errno
import traceback

from requests import HTTPError as InstanceAnswer
from requests import RequestException as ConnectionFailed
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from supervisely import logger

from common.data.images import ImageTooLarge
from common.hrda.out_of_memory import is_out_of_memory
from common.web import answers
from serve.errors import CLIENT_ERRORS, InstanceFailed, NotFound, OutOfMemory, TooLarge, Unavailable
from serve.gate.admission import CURRENT

UNEXPECTED = "The service failed at this request, which is its own fault; its log says why, by the request's id."
_TITLE = "Serve HRDA cannot do this"
_LONGEST_SAID = 300
"""Characters of an instance's own sentence that are passed on."""
_NO_MEMORY = "The memory of the service does not suffice for this request. Send smaller images, or fewer at once."
_NO_DISK = "The disk of the service is full, so that it cannot keep what was sent. Try again later."


def status_and_message(error: BaseException) -> tuple[int, str]:
    """What a client is told about `error`: HTTP status and a sentence."""
    known = answers.first_of(error, CLIENT_ERRORS, ConnectionFailed)
    if isinstance(known, ImageTooLarge):
        return TooLarge.status, str(known)
    if isinstance(known, CLIENT_ERRORS):
        return getattr(known, "status", 400), str(known)
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
    status, message = answers.status_and_message(error)
    return status, UNEXPECTED if status == 500 else message


def answer_error(_: HTTPConnection, error: Exception) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    status, message = status_and_message(error)
    call = CURRENT.get()
    if is_unexpected(error):
        logger.error("unexpected error", exc_info=error, extra={"request_id": call.id if call else None})
    known = {"request_id": call.id} if call else {}
    return answers.error_answer(status, message, _TITLE, getattr(error, "headers", None) or (), **known)


def is_unexpected(error: BaseException) -> bool:
    """Whether `error` is a fault of the service, which its log must explain."""
    return status_and_message(error)[0] == 500


def forget_frames(error: BaseException) -> None:
    """Drop the variables that `error` and its causes keep alive, such as decoded images."""
    for each in answers.chain(error):
        traceback.clear_frames(each.__traceback__)


def _of_instance(error: InstanceAnswer) -> tuple[int, str]:
    status = error.response.status_code
    try:
        said = error.response.json()["details"]["message"]
    except (ValueError, KeyError, TypeError):
        said = error.response.reason
    # It may repeat what was sent.
    message = f"The Supervisely instance answered with status {status}: {str(said)[:_LONGEST_SAID]}"
    return (NotFound.status if status in (403, 404) else InstanceFailed.status if status >= 500 else 400), message
