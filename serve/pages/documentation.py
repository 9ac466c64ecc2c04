"""The service's own addresses, for people and for programs: from the reviewed table, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from common.web.routes import FORM, PAGE, WEBSOCKET, Access, Route
from serve.gate.bodies import NEEDED

_TITLE = "Serve HRDA"
_ERRORS = {
    "400": "The request cannot be carried out; `message` says why and what to do.",
    "401": "The service asks for its token.",
    "413": "The request, or an image in it, is too large.",
    "429": "Too many requests wait; `Retry-After` says when to ask again.",
    "503": "The service cannot do it now.",
}
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;color:#333;margin:24px;max-width:1100px}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:4px 12px 4px 0;"
    "border-bottom:1px solid #e3e6ea}td:first-child{white-space:nowrap}code,pre{background:#f5f6f8}"
    "pre{padding:10px;overflow-x:auto}"
)


def described(routes: Sequence[Route]) -> list[Route]:
    """The routes that are for programs: neither closed nor the page's own."""
    return [
        route
        for route in routes
        if route.access is not Access.CLOSED and route.needed_by != PAGE and route.method != WEBSOCKET
    ]


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """The description of these routes as OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in described(routes):
        answers = {"200": {"description": route.effect}} | {code: {"description": why} for code, why in _ERRORS.items()}
        operation = {
            "operationId": f"{route.method.lower()}_{route.name}",
            "summary": route.effect,
            "description": f"Asked by: {route.needed_by}. Let in: {route.access.value}.",
            "responses": answers,
            "security": [] if route.access is Access.OPEN else [{"token": []}],
        }
        if route.method == "POST":
            operation["requestBody"] = {"content": {route.media: {"schema": _body(route)}}}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": "1", "description": "HRDA behind Supervisely's inference API."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def docs_page(routes: Sequence[Route], address: str) -> str:
    """The same for a person: what takes images from anywhere first, what only monitors ask last."""
    first_what_people_look_for = sorted(
        described(routes), key=lambda route: (route.access is Access.OPEN, route.media != FORM)
    )
    rows = "".join(
        f"<tr><td><code>{route.method} {escape(route.path)}</code></td><td>{escape(route.effect)}"
        f"{escape(_needs(route))}</td><td>{escape(route.needed_by)}</td></tr>"
        for route in first_what_people_look_for
    )
    example = escape(f"curl -F files=@photo.jpg {address}/inference_image")
    return _page(
        "the addresses",
        f"<p>Requests of JSON are <code>{{&quot;state&quot;: {{…}}}}</code>; settings of a prediction stand in "
        "<code>state.settings</code> and are those that <code>get_custom_inference_settings</code> answers. Where the "
        "service was started with a token, send <code>Authorization: Bearer TOKEN</code>.</p>"
        f"<pre>{example}</pre><p>For programs: <a href='openapi.json'>openapi.json</a>. In the browser: "
        "<a href='try'>try a photo</a>.</p>"
        f"<table><tr><th>address</th><th>what it does</th><th>who asks it</th></tr>{rows}</table>",
    )


def short_page(model: str) -> str:
    """What a service without the SDK's page answers at its root.

    Args:
        model: what is deployed, in words.
    """
    return _page(
        "it runs",
        f"<p>{escape(model)}</p><p><a href='try'>Try a photo</a> · <a href='docs'>All addresses</a> · "
        "<a href='metrics'>Metrics</a></p>",
    )


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_TITLE}: {title}</title>'
        f"<style>{_STYLE}</style><h1>{_TITLE}: {title}</h1>{body}</html>"
    )


def _needs(route: Route) -> str:
    if route.media == FORM:
        return ". A form with files"
    groups = [" or ".join(group[:2]) for group in NEEDED.get(route.name, ())]
    return f". Needs {', '.join(groups)}" if groups else ""


def _body(route: Route) -> dict[str, Any]:
    if route.media == FORM:
        file = {"type": "string", "contentMediaType": "application/octet-stream"}
        state = {"type": "string", "description": "JSON of an object with `settings`"}
        properties = {"files": {"type": "array", "items": file}, "state": state}
        return {"type": "object", "required": ["files"], "properties": properties}
    inner = {group[0]: {} for group in NEEDED.get(route.name, ())}
    state = {"type": "object", "properties": inner, "required": sorted(inner)}
    return {"type": "object", "properties": {"state": state}, "required": ["state"] if inner else []}
