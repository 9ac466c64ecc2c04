"""The door of both apps: which requests come in at all, before anything of the SDK sees them."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import Scope

from common.hrda.checks import received
from common.web.answers import NO_SUCH_ADDRESS
from common.web.refusals import Refusal
from common.web.routes import FORM, JSON, WEBSOCKET, Access, Route, matching
from common.web.settings import PREFIX, DoorSettings

HOSTS = f"{PREFIX}ALLOWED_HOSTS"
PATH_PREFIX = "SUPERVISELY_SERVER_PATH_PREFIX"
"""The SDK's variable for what stands before all paths."""
_ONCE = frozenset({b"host", b"origin", b"content-type", b"content-length", b"authorization", b"sec-fetch-site"})
_ASK = (("WWW-Authenticate", 'Bearer realm="HRDA"'), ("WWW-Authenticate", 'Basic realm="HRDA", charset="UTF-8"'))
_HOW = {JSON: 'JSON, Content-Type: application/json: {"state": {…}}', FORM: "a form with files, multipart/form-data"}


class Door:
    """Lets requests in or refuses them, by what their head says.

    Args:
        routes: what the app answers; see `common.web.routes`.
        settings: who may come in.
        variables: of the environment: whether an instance's agent runs the app, and which instance is its own.
    """

    def __init__(
        self, routes: Sequence[Route], settings: DoorSettings, variables: Mapping[str, str] = os.environ
    ) -> None:
        self._routes, self._settings = tuple(routes), settings
        # An agent's proxy calls the app by names that are not known here.
        self._is_behind_agent = variables.get("ENV") == "production" and bool(variables.get("TASK_ID"))
        self._prefix = f"/{prefix}" if (prefix := variables.get(PATH_PREFIX, "").strip("/")) else ""
        instance = variables.get("SERVER_ADDRESS", "")
        self._instance = _name(instance if "//" in instance else f"//{instance}")
        machine = socket.gethostname().lower()
        self._own_names = {"localhost", machine, machine.partition(".")[0]} - {""}

    def admit(self, scope: Scope) -> tuple[Route, Scope]:
        """The row that a request or websocket belongs to, and the request as the app gets it.

        Raises:
            Refusal: it is not let in.
        """
        headers = self._headers(scope)
        self._check_sender(scope, headers)
        route = self._route(scope)
        if route.access is not Access.OPEN and not self._has_token(headers):
            raise Refusal(
                401,
                "This app asks for its token: send it as Authorization: Bearer TOKEN, or as the password of a user of "
                "any name.",
                _ASK,
            )
        if route.access is Access.CONTROL and not self._settings.model_control:
            raise Refusal(403, "Control of this app by requests is switched off where it was started.")
        if route.access is Access.OWN_PAGE and not _is_of_a_page(headers):
            raise Refusal(403, "Only the app's own page is answered here.")
        return route, self._plain(scope, headers, route)

    def _headers(self, scope: Scope) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        # The connection bounds only heads that come in parts: one that is read whole at once gets past it.
        size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.max_header_kb * 2**10:
            raise Refusal(
                431,
                f"The head of the request is too large: at most {self._settings.max_header_kb} kilobytes are read. "
                f"Received: {size} bytes.",
            )
        for name, value in scope["headers"]:
            if name in found and name in _ONCE:
                raise Refusal(400, f"The request has the header {name.decode()} twice. Send it once.")
            found[name] = value.decode("latin-1").strip()
        if b"content-length" in found and b"transfer-encoding" in found:
            # A proxy that goes by the other one would take the rest of the body for a request of somebody else.
            raise Refusal(
                400,
                "The request says the length of its body in two ways, content-length and transfer-encoding. Send one.",
                (("Connection", "close"),),
            )
        return found

    def _check_sender(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = _name(f"//{headers[b'host']}") if b"host" in headers else None
        if host is not None and not self._is_behind_agent and not self._is_known(host):
            raise Refusal(
                421,
                f"The app is not known by this name. Use its address, or add the name to {HOSTS} where the app is "
                f"started. Received: {received(host)}.",
            )
        if self._is_foreign(scope, headers):
            raise Refusal(
                403,
                "Pages of other sites may not call this app. Where a proxy leads people to it under another name, add "
                f"that name to {HOSTS}. Received: Origin {received(headers.get(b'origin', 'none'))}.",
            )

    def _is_known(self, host: str) -> bool:
        if host in self._own_names or host in self._settings.allowed_hosts or host.endswith(".localhost"):
            return True
        try:
            # Other sites can give a name of theirs this machine's address, but not the address another name.
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _is_foreign(self, scope: Scope, headers: dict[bytes, str]) -> bool:
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is None:
            # No browser, or a page that is opened or a picture that is shown, which changes nothing.
            is_reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
            return not is_reading and site not in (None, "same-origin", "none")
        trusted = {*self._settings.allowed_hosts, self._instance} - {""}
        if _name(origin) in trusted or site in ("same-origin", "none"):
            return False
        own = [headers.get(b"host")]
        if self._is_behind_agent:
            own.append(headers.get(b"x-forwarded-host"))
        return _authority(origin) not in [_authority(f"{origin.partition(':')[0]}://{each}") for each in own if each]

    def _route(self, scope: Scope) -> Route:
        found = matching(self._routes, scope["path"].removeprefix(self._prefix))
        if not found:
            raise Refusal(404, NO_SUCH_ADDRESS)
        method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        asked = "GET" if method == "HEAD" else method
        for route in found:
            if route.method == asked:
                return route
        expected = " or ".join(sorted({route.method for route in found}))
        raise Refusal(
            405, f"This address is asked with {expected}, not with {received(method)}.", (("Allow", expected),)
        )

    def _has_token(self, headers: dict[bytes, str]) -> bool:
        token = self._settings.api_token
        if token is None:
            return True
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), token.encode())

    def _plain(self, scope: Scope, headers: dict[bytes, str], route: Route) -> Scope:
        """The request with no two ways to read it: HEAD is GET, and its kind is said as the SDK looks for it."""
        if scope["type"] != "http":
            return scope
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
        if has_body and kind != route.media:
            raise Refusal(415, f"Send the request as {_HOW[route.media]}. Received: Content-Type {received(kind)}.")
        plain = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        if kind != route.media or route.media == JSON:
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            plain["headers"] = [*kept, (b"content-type", JSON.encode())] if kind == JSON else kept
        return plain


def _is_of_a_page(headers: dict[bytes, str]) -> bool:
    """Whether a browser says which page asks; that it is one of the app's own was checked."""
    return b"origin" in headers or headers.get(b"sec-fetch-site") == "same-origin"


def _name(address: str) -> str:
    """The host of an address, without port; empty where there is none."""
    try:
        return (urlsplit(address).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _authority(address: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None
    return (parts.hostname or "").rstrip(".").lower(), port
