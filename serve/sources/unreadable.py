"""Images that cannot be read, among others that can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serve.answers import status_and_message

OWN_FAULTS = 500
"""Statuses from here on are faults of the service or of the instance: another image would meet them too."""


def image_or_reason(read: Callable[[], np.ndarray]) -> np.ndarray | Exception:
    """What `read` returns, or the error that is the image's own; any other error is raised."""
    try:
        return read()
    except Exception as error:
        if status_and_message(error)[0] >= OWN_FAULTS:
            raise
        return error
