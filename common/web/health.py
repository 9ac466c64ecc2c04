"""Whether an app lives, for those who start it anew when it does not."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fastapi import FastAPI

from common.web.refusals import Refusal

PATHS = ("/healthz", "/livez", "/is_alive")
READINESS = (("GET", "/readyz"), ("GET", "/is_ready"), ("POST", "/is_ready"))


def add_liveness(server: FastAPI, mode: str, trouble: Callable[[], str | None] = lambda: None) -> None:
    """Answer at `PATHS`, in place of the SDK, which says that all is well whatever happens.

    Args:
        server: of the app.
        mode: 'production' or 'development', which the SDK's clients are told.
        trouble: why the app should be started anew; None while all is well.
    """
    _forget(server, PATHS)

    def live() -> dict[str, object]:
        said = trouble()
        if said is not None:
            raise Refusal(503, said)
        return {"running": True, "mode": mode}

    for path in PATHS:
        server.get(path)(live)


def add_readiness(server: FastAPI, missing: Callable[[], str | None]) -> None:
    """Answer as `READINESS` lists, in place of the SDK.

    Args:
        server: of the app.
        missing: what it cannot work without yet, as a sentence; None once it is ready.
    """
    _forget(server, [path for _, path in READINESS])

    def ready() -> dict[str, str]:
        said = missing()
        if said is not None:
            raise Refusal(503, said)
        return {"status": "ready"}

    for method, path in READINESS:
        server.api_route(path, methods=[method])(ready)


def _forget(server: FastAPI, paths: Collection[str]) -> None:
    server.router.routes[:] = [each for each in server.router.routes if getattr(each, "path", "") not in paths]
