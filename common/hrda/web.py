"""Files from the web: asked only of addresses that may be asked, and within a deadline.

The address that is connected to is the one that was checked: a name that resolves to something else a moment later
changes nothing. Every redirect is a new address, checked like the first. The deadline holds for all that a server can
draw out: names, handshakes, status lines, headers and the content.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Self
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi

from common.hrda.checks import received

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
CONNECT_S = 10.0
"""Longest wait for a connection, in seconds, where the deadline leaves as much."""
_PORTS = {"http": 80, "https": 443}
_ASKED_EVERY_S = 0.5
_LONGEST_REASON = 40
_KEPT_IN_PATHS = "/%:@!$&'()*+,;=~?[]"
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IPv6 gives to machines of the internet."""
_SPECIAL = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20"))
)
"""Addresses of protocols and documents, some of which Python calls global."""


class WebError(ValueError):
    """An address that may not be asked, or a server that does not give the file. The message says which and why."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message.removesuffix(".")
        """The same for the middle of a sentence."""


@dataclass(frozen=True)
class Reach:
    """Which addresses may be asked besides those of https servers on the internet."""

    http: bool = False
    """Servers of http:// too."""
    private: bool = False
    """This machine and private networks too."""
    proxies: bool = False
    """Ask through the proxies that the environment names, whose names this machine need not resolve."""


@dataclass(frozen=True)
class Target:
    """A URL that may be asked, and the address to ask."""

    scheme: str
    host: str
    port: int
    path: str
    address: str | None
    """None: only a proxy knows it."""


class Deadline:
    """A time at which a connection is hung up, whatever is being waited for.

    Args:
        seconds: until then.
        wanted: asked again and again; the time is over as soon as it says no.

    Example:
        >>> with Deadline(30) as deadline, opened(url, Reach(), deadline) as answer:
        ...     content = b"".join(answer.pieces())
    """

    def __init__(self, seconds: float, wanted: Callable[[], bool] = lambda: True) -> None:
        self.seconds, self._wanted = seconds, wanted
        self._end = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._ended = threading.Event()

    @property
    def left(self) -> float:
        """Seconds until then, 0 afterwards."""
        return max(self._end - time.monotonic(), 0.0)

    def restart(self) -> None:
        """Let the time begin anew."""
        self._end = time.monotonic() + self.seconds

    def watch(self, connection: socket.socket) -> None:
        """The connection that will be hung up, in place of the one before."""
        self._socket = connection

    def __enter__(self) -> Self:
        threading.Thread(target=self._wait, name="deadline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _wait(self) -> None:
        while not self._ended.wait(min(self.left, _ASKED_EVERY_S)):
            if not self._wanted():
                self._end = time.monotonic()
            # A connection may be made just when the time is over: so it is looked at until the end.
            if self.left == 0:
                if self._socket is not None:
                    _hang_up(self._socket)
                self._ended.wait(0.05)


class Answer:
    """What a server gives: `headers`, and the content in pieces."""

    def __init__(self, response: HTTPResponse, url: str, name: str, deadline: Deadline) -> None:
        self._response, self._url, self._name, self._deadline = response, url, name, deadline
        self.headers = response.headers
        self.size = response.length
        """Bytes of the content; None where the server does not say it, or sends it in chunks."""

    def pieces(self, size: int = 1 << 16) -> Iterator[bytes]:
        """The content as it comes, in pieces of at most `size` bytes.

        Raises:
            WebError: it does not come whole, or not in time.
        """
        count = 0
        while True:
            with _explained(self._url, self._name, self._deadline):
                piece = self._response.read1(size)
                if self._deadline.left == 0:
                    raise TimeoutError
            if not piece:
                break
            count += len(piece)
            yield piece
        if self.size is not None and count != self.size:
            reason = f"the connection ended after {count} of {self.size} bytes"
            raise WebError(f"{self._name}: {reason}. Received: {received(self._url)}.", reason)


@contextmanager
def opened(
    url: str,
    reach: Reach,
    deadline: Deadline,
    *,
    method: str = "GET",
    name: str = "The address",
    headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """The answer at `url`, redirects followed.

    Args:
        url: where the file is.
        reach: which addresses may be asked.
        deadline: entered already; it holds for what is read within the block too.
        method: GET or HEAD.
        name: what an error message calls the address.
        headers: of the request.

    Raises:
        WebError: an address may not be asked, or a server does not answer in time, or not with the file.
    """
    at = url
    for _ in range(MOST_REDIRECTS + 1):
        connection = _Connection(check(at, reach, name=name, deadline=deadline), reach, deadline)
        try:
            with _explained(at, name, deadline):
                response = connection.ask(method, at, dict(headers or {}))
                if deadline.left == 0:
                    # Headers that were cut off look whole.
                    raise TimeoutError
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or not location:
                if response.status != 200:
                    reason = f"the server answers with status {response.status} {response.reason[:_LONGEST_REASON]}"
                    raise WebError(f"{name}: {reason}. Received: {received(at)}.", reason)
                yield Answer(response, at, name, deadline)
                return
            at = _joined(at, location, name)
        finally:
            connection.close()
    raise WebError(f"{name} leads through more than {MOST_REDIRECTS} redirects. Received: {received(url)}.")


def check(url: str, reach: Reach, *, name: str = "The address", deadline: Deadline | None = None) -> Target:
    """Where `url` leads, if it may be asked.

    Args:
        url: of a file.
        reach: which addresses may be asked.
        name: what an error message calls the address.
        deadline: within which the host's name must be resolved; None: ten seconds from now.

    Raises:
        WebError: not an https address (http where allowed), or not all of its host's addresses are public.
    """
    schemes = ("http", "https") if reach.http else ("https",)
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = _PORTS.get(parts.scheme) if parts.port is None else parts.port
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else parts.hostname
    except (ValueError, UnicodeError):
        parts, port, host = urlsplit(""), None, ""
    starts = [f"{scheme}://" for scheme in schemes]
    if not isinstance(url, str) or not url.lower().startswith(tuple(starts)):
        raise WebError(f"{name} must be an address that starts with {' or '.join(starts)}. Received: {received(url)}.")
    if not host or not port or any(c.isspace() or ord(c) < 32 for c in url):
        raise WebError(
            f"{name} must name a server after ://, with a port from 1 to 65535 where it has one, without spaces. "
            f"Received: {received(url)}."
        )
    if parts.username is not None or parts.password is not None:
        raise WebError(f"{name} must not hold a user name or a password.")
    try:
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_KEPT_IN_PATHS)
        addresses = _resolve(host, port, deadline.left if deadline is not None else CONNECT_S)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and reach.proxies and _proxy(parts.scheme, host):
            return Target(parts.scheme, host, port, path, None)
        reason = f"there is no server named {received(host)}"
        if isinstance(error, TimeoutError):
            reason = f"the server's name {received(host)} was not resolved in time"
        raise WebError(f"{name}: {reason}. Received: {received(url)}.", reason) from error
    if not reach.private and not all(is_public(address) for address in addresses):
        raise WebError(f"{name} must lead to a public address of the internet. Received: {received(url)}.")
    return Target(parts.scheme, host, port, path, addresses[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, in whatever form another one hides in it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return _is_global(ip)
    if ip.ipv4_mapped is not None:
        return _is_global(ip.ipv4_mapped)
    # A relay of 6to4 leads to the address that hides in its own.
    return ip in _UNICAST and all(map(_is_global, filter(None, (ip, ip.sixtofour))))


def _is_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback
    return ip.is_global and not special and not any(ip in network for network in _SPECIAL)


def _resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """Addresses of a host. The system's resolver cannot be told how long it may take, so that a thread waits for it."""
    found: list[str] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not found:
        raise TimeoutError("the name was not resolved in time")
    return found


def _proxy(scheme: str, host: str) -> tuple[str, int] | None:
    """Host and port of the proxy for a host that the environment names."""
    address = getproxies().get(scheme)
    if not address or proxy_bypass(host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None


def _joined(url: str, location: str, name: str) -> str:
    try:
        return urljoin(url, quote(location, safe=_KEPT_IN_PATHS + "#", encoding="iso-8859-1"))
    except ValueError as error:
        raise WebError(
            f"{name} is redirected to what is no address. Received: {received(location)} from {received(url)}."
        ) from error


@contextmanager
def _explained(url: str, name: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        if deadline.left == 0 or isinstance(error, TimeoutError):
            reason = f"the file did not arrive within {deadline.seconds:g} seconds"
            raise WebError(f"{name}: {reason}. Received: {received(url)}.", reason) from error
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise WebError(f"{name}: the file cannot be fetched from {received(url)}: {reason}.", reason) from error


class _Connection(HTTPConnection):
    """One request to a checked target, straight or through a proxy; the certificate must be of its name."""

    def __init__(self, target: Target, reach: Reach, deadline: Deadline) -> None:
        self._through = _proxy(target.scheme, target.host) if reach.proxies else None
        self._target, self._deadline = target, deadline
        super().__init__(target.host, target.port)
        self.default_port = _PORTS[target.scheme]
        if self._through is not None and target.scheme == "https":
            self.set_tunnel(target.host, target.port)

    def ask(self, method: str, url: str, headers: dict[str, str]) -> HTTPResponse:
        """The answer to the request."""
        # Of a plain request a proxy must be told where it goes.
        is_whole = self._through is not None and self._target.scheme == "http"
        path = url.partition("#")[0] if is_whole else self._target.path
        self.request(method, path, headers={"Accept-Encoding": "identity", "User-Agent": "hrda-supervisely"} | headers)
        return self.getresponse()

    def connect(self) -> None:
        """Connect to the checked address, or to the proxy."""
        address = self._through or (self._target.address, self._target.port)
        self.sock = socket.create_connection(address, max(min(CONNECT_S, self._deadline.left), 0.001))
        self._deadline.watch(self.sock)
        self.sock.settimeout(None)
        if self._target.scheme == "http":
            return
        if self._through is not None:
            self._tunnel()
        # Those of the system, to which a network may have added its own, and those of the web where it has none.
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        self.sock = context.wrap_socket(self.sock, server_hostname=self._target.host, do_handshake_on_connect=False)
        self._deadline.watch(self.sock)
        self.sock.do_handshake()


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        # Not that of an SSL socket, which would first forget its keys under the thread that reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
