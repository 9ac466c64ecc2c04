"""The table of routes against an app that runs."""

from __future__ import annotations

from typing import Any

from starlette.routing import Mount, WebSocketRoute

from common.web.routes import WEBSOCKET, Route, routes_of

_REST = "{path:path}"


def open_routes(routes: list[Any], prefix: str = "") -> set[tuple[str, str]]:
    """(method, path) of all that an app's router answers; HEAD goes with GET."""
    found: set[tuple[str, str]] = set()
    for route in routes:
        path = prefix + route.path
        if isinstance(route, Mount):
            found |= open_routes(route.routes, path) if route.routes else {("GET", f"{path}/{_REST}")}
        elif isinstance(route, WebSocketRoute):
            found.add((WEBSOCKET, path))
        else:
            found |= {(method, path) for method in route.methods - {"HEAD"}}
    return found


def unreviewed(app: str, found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What an app answers that is in no row of the table."""
    return {each for each in found if not any(_is_of(row, *each) for row in routes_of(app))}


def unused(app: str, found: set[tuple[str, str]]) -> set[str]:
    """Rows of the table that an app does not answer."""
    return {
        f"{row.method} {row.path}"
        for row in routes_of(app)
        if not any(_is_of(row, *each) or _is_below(row, *each) for each in found)
    }


def _is_of(row: Route, method: str, path: str) -> bool:
    return row.method == method and (row.path == path or bool(row.pattern.fullmatch(path)))


def _is_below(row: Route, method: str, path: str) -> bool:
    return row.method == method and path.endswith(_REST) and row.path.startswith(path.removesuffix(_REST))
