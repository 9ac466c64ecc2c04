"""Files from the web: public addresses only, whatever a name says, and nothing that a server can draw out."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from common.hrda import web
from common.hrda.web import Deadline, Reach, WebError, opened
from tests.weights import serving

HERE = Reach(http=True, private=True)
CONTENT = bytes(range(256)) * 9


def fetch(url: str, reach: Reach = HERE, seconds: float = 20) -> bytes:
    with Deadline(seconds) as deadline, opened(url, reach, deadline) as answer:
        return b"".join(answer.pieces())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "::127.0.0.1",
        "fec0::1", "feff::1", "64:ff9b:1::a00:1", "100::1", "100:0:0:1::1", "200::1", "5f00::1", "3fff::1", "2001:2::1",
        "2001:0:a00:1::1", "2001:20::1", "4000::1", "::a00:1", "::ffff:0:10.0.0.1", "203.0.113.9", "192.88.99.1",
    ],
)  # fmt: skip
def test_address_within_a_network_is_not_public(address):
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1", "2a00:1450::1"]
)
def test_address_of_the_internet_is_public(address):
    assert web.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a.png", "https://localhost/a.png", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/",
        "https://127.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://169.254.169.254/", "https://0/",
        "https://[fec0::1]/",
    ],
)  # fmt: skip
def test_url_into_the_own_network_is_refused_in_every_form(url):
    with pytest.raises(WebError, match="public address|no server named"):
        web.check(url, Reach())


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png", "ftp://example.com/", "file:///etc/passwd", "/etc/passwd", "", "gopher://a",
        "data:image/png;base64,",
    ],
)  # fmt: skip
def test_what_is_no_https_address_is_refused(url):
    with pytest.raises(WebError, match="must be an address that starts with https://"):
        web.check(url, Reach())


@pytest.mark.parametrize(
    "url",
    [
        "https://", "https:///a", "https://a:99999/", "https://1.1.1.1:0/", "https://exa mple.com/", "https://[::1",
        "https://example.com/\r\nHost: b", "https://\ud800.com/", "https://" + "a" * 300 + ".com",
    ],
)  # fmt: skip
def test_https_address_without_a_server_or_a_port_that_can_be_says_so(url):
    with pytest.raises(WebError, match="must name a server|no server named"):
        web.check(url, Reach())


def test_password_in_the_url_is_refused():
    with pytest.raises(WebError, match="password"):
        web.check("https://user:pass@example.com/", Reach())


def test_name_with_one_inner_address_among_public_ones_is_refused(monkeypatch):
    def resolve(host, port, **_):
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(WebError, match="public address"):
        web.check("https://example.com/a.png", Reach())


def test_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that leads elsewhere the second time it is asked changes nothing."""
    asked = []
    resolve = socket.getaddrinfo

    def rebind(host, port, *args, **options):
        if host == "photos.example.com":
            asked.append(host)
            return [(socket.AF_INET, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.77", port))]
        return resolve(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with serving() as server:
        server.files["/photo.png"] = CONTENT
        port = urlsplit(server.address).port
        assert fetch(f"http://photos.example.com:{port}/photo.png") == CONTENT
    assert asked == ["photos.example.com"]


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and then does what `answer` does; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 16)
                    answer(client)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
    finally:
        listener.close()


def dripping(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def answer(client: socket.socket) -> None:
        client.sendall(head)
        for _ in range(200):
            client.sendall(drop)
            time.sleep(0.05)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 2", b"0"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK, b"A: 1\r\n"),
        (OK + b"A: ", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: 1\r\n"),
        (OK + b"\r\n", b"x"),
        (OK + b"Content-Length: 900\r\n\r\n", b"x"),
        (b"HTTP/1.1 302 Found\r\nLocation: ", b"x"),
        (b"", b""),
    ],
    ids=[
        "status",
        "continue",
        "headers",
        "header",
        "chunk",
        "extension",
        "trailer",
        "content",
        "length",
        "move",
        "none",
    ],
)
def test_whatever_a_server_draws_out_ends_at_the_deadline(head, drop):
    begun = time.monotonic()
    with answering(dripping(head, drop)) as url, pytest.raises(WebError, match="did not arrive within 0.3 seconds"):
        fetch(url, seconds=0.3)
    assert time.monotonic() - begun < 8, "the server goes on for ten seconds"


def test_names_and_handshakes_end_at_the_deadline(monkeypatch):
    with (
        answering(lambda client: time.sleep(5)) as url,
        pytest.raises(WebError, match="did not arrive within 0.3 seconds"),
    ):
        fetch(url.replace("http:", "https:"), seconds=0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(WebError, match="'slow.example.com' was not resolved in time"):
        fetch("https://slow.example.com/", seconds=0.3)


def test_content_that_ends_too_early_is_not_taken_for_whole():
    with (
        answering(lambda client: client.sendall(OK + b"Content-Length: 9\r\n\r\n1234")) as url,
        pytest.raises(WebError, match="ended after 4 of 9 bytes"),
    ):
        fetch(url)


@pytest.mark.parametrize("kind", ["http", "https"])
def test_proxy_of_the_owner_is_asked_for_what_this_machine_cannot_resolve(monkeypatch, kind):
    """Of an https address a proxy is asked for a tunnel, of an http address for the file."""
    asked = []

    def proxy(client: socket.socket) -> None:
        client.sendall(OK + b"Content-Length: 2\r\n\r\nhi")

    def unknown(host, *args, **options):
        if host == "far.example.com":
            raise socket.gaierror("no such name")
        return resolve(host, *args, **options)

    resolve = socket.getaddrinfo
    request = web.HTTPConnection.send
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(web.HTTPConnection, "send", lambda self, data: asked.append(data) or request(self, data))
    with answering(proxy) as address:
        monkeypatch.setenv(f"{kind}_proxy", address.removesuffix("/photo.png"))
        monkeypatch.delenv("no_proxy", raising=False)
        url = f"{kind}://far.example.com/a.pth"
        with pytest.raises(WebError, match="no server named 'far.example.com'"):
            fetch(url, HERE)
        if kind == "http":
            assert fetch(url, Reach(http=True, proxies=True)) == b"hi"
            assert asked[0].startswith(b"GET http://far.example.com/a.pth HTTP/1.1\r\nHost: far.example.com\r\n")
        else:
            # What is behind the tunnel here is no TLS.
            with pytest.raises(WebError, match="cannot be fetched"):
                fetch(url, Reach(proxies=True))
            assert asked[-1].startswith(b"CONNECT far.example.com:443 HTTP/1")
