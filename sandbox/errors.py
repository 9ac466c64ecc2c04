"""The one error that the sandbox raises on purpose, with the body that the SDK reads."""

from fastapi import Request
from fastapi.responses import JSONResponse


class ApiError(Exception):
    """A refused request.

    Args:
        status: HTTP status. The SDK retries 408, 429 and 5xx, and raises the rest at once.
        message: What was wrong and what to do, shown to the caller.
        **details: Further keys of the body's ``details``, e.g. ``type="NONUNIQUE"``.
    """

    def __init__(self, status: int, message: str, **details: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details

    def body(self) -> dict:
        """The JSON body: ``{"error": message, "details": {"message": message, ...}}``."""
        return {"error": self.message, "details": {"message": self.message, **self.details}}


def not_found(kind: str, key: object) -> ApiError:
    """The 404 that makes the SDK's ``get_info_by_id`` return None."""
    return ApiError(404, f"{kind} {key!r} does not exist in this sandbox.")


async def answer(_: Request, error: ApiError) -> JSONResponse:
    """Exception handler of the FastAPI app."""
    return JSONResponse(error.body(), error.status)
