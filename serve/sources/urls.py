"""Images from the internet, for callers who may not use the service to reach into the network that it runs in.

The address that is connected to is the one that was checked: a name that resolves to something else a moment later
changes nothing. Every redirect is a new address, checked like the first.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import certifi
import urllib3
from urllib3.exceptions import HTTPError

from common.hrda.checks import received
from serve.errors import RequestError, TooLarge
from serve.limits import Limits

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
_CHUNK = 1 << 16
_PROTOCOLS = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("192.88.99.0/24"))
"""Addresses of protocols, some of which Python calls global."""
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """A URL that may be fetched, and the address to fetch it from."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def fetch(url: str, limits: Limits) -> bytes:
    """The content at `url`.

    Raises:
        TooLarge: more bytes than an image may have.
        RequestError: not an address that may be fetched, or the fetch fails; the message says which and why.
    """
    deadline = time.monotonic() + limits.url_timeout_s
    given = url
    for _ in range(MOST_REDIRECTS + 1):
        content, url = _ask(check(url, limits), url, limits, deadline)
        if content is not None:
            return content
    raise RequestError(
        f"The image's address leads through more than {MOST_REDIRECTS} redirects. Received: {received(given)}."
    )


def check(url: str, limits: Limits) -> Target:
    """Where `url` leads, if it may be fetched.

    Raises:
        RequestError: not an https address (http where allowed), or not all of its host's addresses are public.
    """
    schemes = ("http", "https") if limits.allow_http else ("https",)
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port or _PORTS.get(parts.scheme)
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else parts.hostname
    except (ValueError, UnicodeError):
        parts, port, host = urlsplit(""), None, ""
    if parts.scheme not in schemes or not host or not port or any(c.isspace() or ord(c) < 32 for c in url):
        raise RequestError(
            f"image_url must be an address that starts with {' or '.join(s + '://' for s in schemes)}. "
            f"Received: {received(url)}."
        )
    if parts.username is not None or parts.password is not None:
        raise RequestError("image_url must not hold a user name or a password.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"There is no server named {host!r}. Received: {received(url)}.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not limits.allow_private_addresses and not all(is_public(address) for address in addresses):
        raise RequestError(f"image_url must lead to a public address of the internet. Received: {received(url)}.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path, addresses[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, in whatever form another one hides in it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    hidden: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return _is_global(ip.ipv4_mapped)
        hidden = [ip.sixtofour, *(ip.teredo or ())]
    return all(_is_global(each) for each in (ip, *filter(None, hidden)))


def _is_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback
    return ip.is_global and not special and not any(ip in network for network in _PROTOCOLS)


def _ask(target: Target, url: str, limits: Limits, deadline: float) -> tuple[bytes | None, str]:
    """The content, or None and where a redirect leads."""
    headers = {"Host": target.host, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "serve-hrda"}
    if target.port != _PORTS[target.scheme]:
        headers["Host"] = f"{target.host}:{target.port}"
    pool = _pool(target, min(10.0, limits.url_timeout_s))
    try:
        response = pool.urlopen(
            "GET", target.path, headers=headers, redirect=False, retries=False, preload_content=False
        )
        try:
            if response.status in REDIRECTS and response.headers.get("Location"):
                return None, urljoin(url, response.headers["Location"])
            if response.status != 200:
                raise RequestError(
                    f"The image's server answered with status {response.status}. Received: {received(url)}."
                )
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise RequestError(f"The image's server sends it packed, which is not read. Received: {received(url)}.")
            return _read(response, url, limits, deadline), url
        finally:
            response.close()
    except (HTTPError, OSError) as error:
        raise RequestError(f"The image cannot be fetched from {url!r}: {type(error).__name__}.") from error
    finally:
        pool.close()


def _pool(target: Target, timeout_s: float) -> urllib3.HTTPConnectionPool:
    """Connects to the checked address, and asks the certificate and the site of the name."""
    if target.scheme == "http":
        return urllib3.HTTPConnectionPool(target.address, target.port, timeout=timeout_s)
    return urllib3.HTTPSConnectionPool(
        target.address,
        target.port,
        timeout=timeout_s,
        ssl_context=ssl.create_default_context(cafile=certifi.where()),
        server_hostname=target.host,
        assert_hostname=target.host,
    )


def _read(response: urllib3.BaseHTTPResponse, url: str, limits: Limits, deadline: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(_CHUNK, decode_content=False):
        content += chunk
        if len(content) > limits.max_image_bytes:
            raise TooLarge(f"The image has more than {limits.max_image_mb:g} megabytes. Received: {received(url)}.")
        if time.monotonic() > deadline:
            raise RequestError(
                f"The image did not arrive within {limits.url_timeout_s:g} seconds. Received: {received(url)}."
            )
    return bytes(content)
