"""What a caller is told who is not let in, or not with this request."""

from __future__ import annotations


class Refusal(ValueError):
    """A request that is not answered. The message says what was expected and what to do.

    Args:
        status: of HTTP, 4xx or 5xx.
        message: for the caller.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
