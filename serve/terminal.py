"""What a person at the terminal reads while the SDK predicts, in place of its log in JSON."""

from __future__ import annotations

import logging
from typing import Any


class Lines(logging.Formatter):
    """Messages as they are, a line each; what is worse than information says so first."""

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self.additional_fields: dict[str, Any] = {}
        """The SDK sets it on every formatter."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"


def is_told(record: logging.LogRecord) -> bool:
    """Whether a record says something: reports of progress are a word each, with the numbers beside it."""
    return not hasattr(record, "event_type")


def speak_in_lines(logger: logging.Logger) -> None:
    """Let `logger` write lines for a person."""
    for handler in logger.handlers:
        handler.setFormatter(Lines())
        handler.addFilter(is_told)
