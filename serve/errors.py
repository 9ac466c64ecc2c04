"""What can go wrong with a request, whichever way it came; an error's message is a sentence for who asked."""

from __future__ import annotations

from common.data.images import ImageError
from common.hrda.checks import CheckpointError, SettingsError
from common.web.refusals import Refusal


class RequestError(Refusal):
    """A request that cannot be answered. The message says what was expected and what to do."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(type(self).status, message)


class NotFound(RequestError):
    """What the request names is not there."""

    status = 404


class TooLarge(RequestError):
    """More bytes than the service takes."""

    status = 413


class Overloaded(RequestError):
    """The queue is full."""

    status = 429


class Unavailable(RequestError):
    """The service cannot do it now, whatever the request."""

    status = 503


class OutOfMemory(Unavailable):
    """The device's memory does not suffice, even for one window at a time."""


class Stopped(Exception):
    """Nobody waits for a prediction any more: a client has had its time, or a job was stopped."""


class TimedOut(RequestError):
    """The answer takes longer than the service lets a client wait."""

    status = 504


class InstanceFailed(RequestError):
    """The Supervisely instance did not do what was asked of it."""

    status = 502


CLIENT_ERRORS = (CheckpointError, ImageError, Refusal, SettingsError)
"""Errors whose message is for the client: an HTTP status of 4xx or 5xx, or a line on the terminal."""
