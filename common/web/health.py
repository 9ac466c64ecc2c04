"""Whether an app lives, for those who start it anew when it does not."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, HTTPException

PATHS = ("/healthz", "/livez", "/is_alive")


def add_liveness(server: FastAPI, mode: str, trouble: Callable[[], str | None] = lambda: None) -> None:
    """Answer at `PATHS`, in place of the SDK, which says that all is well whatever happens.

    Args:
        server: of the app.
        mode: 'production' or 'development', which the SDK's clients are told.
        trouble: why the app should be started anew; None while all is well.
    """
    server.router.routes[:] = [each for each in server.router.routes if getattr(each, "path", "") not in PATHS]

    def live() -> dict[str, object]:
        said = trouble()
        if said is not None:
            raise HTTPException(503, said)
        return {"running": True, "mode": mode}

    for path in PATHS:
        server.get(path)(live)
