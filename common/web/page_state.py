"""What a request may leave in the state of the page, which the SDK keeps for all browsers until the app ends."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from common.web.routes import Route

KnownKeys = Callable[[], Collection[str]]
"""Gives the keys that the page's state has: those of its widgets."""


def without_foreign_keys(content: dict[str, Any], route: Route, known: KnownKeys) -> dict[str, Any]:
    """A request's `content`, of which the SDK keeps nothing in the page's state but what is chosen on the page.

    The SDK takes over whatever lies under `state`. What programs send there is not of the page, and of what the page
    itself sends only the widgets' own keys are.
    """
    if not route.is_of_page:
        return {**content, "context": {**content.get("context", {}), "outside_request": True}}
    if "state" not in content:
        return content
    keys = known()
    return {**content, "state": {key: value for key, value in content["state"].items() if key in keys}}
