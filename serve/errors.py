"""What a client can do wrong, told in a sentence and not in a traceback."""

from __future__ import annotations

from common.data.images import ImageError
from common.hrda.checkpoints import CheckpointError
from common.hrda.settings import SettingsError


class RequestError(ValueError):
    """A request that cannot be answered. The message says what was expected and what to do."""


CLIENT_ERRORS = (CheckpointError, ImageError, RequestError, SettingsError)
"""Errors whose message is for the client: HTTP status 400, or a line on the terminal."""
