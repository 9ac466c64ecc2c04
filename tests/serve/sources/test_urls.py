"""Images from URLs: public addresses only, whatever a name or a redirect says, and no more bytes than allowed."""

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from common.hrda import web
from serve.errors import RequestError, TooLarge
from serve.limits import Limits
from serve.sources import urls
from tests.serve.conftest import serving
from tests.serve.requests_of_clients import encoded, expected, post, refused, to_mask

IMAGE = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
PHOTO = encoded(IMAGE)
HERE = Limits(allow_http=True, allow_private_addresses=True, max_image_mb=0.5, url_timeout_s=1)


class Site(BaseHTTPRequestHandler):
    """A site with an image, and with the traps that a caller can build."""

    def do_GET(self) -> None:  # noqa: N802
        self.server.hosts.append(self.headers["Host"])
        host = self.headers["Host"]
        redirects = {
            "/again": f"http://{host}/photo.png",
            "/relative": "photo.png",
            "/round": "/round",
            "/inside": "http://169.254.169.254/latest/meta-data",
            "/file": "file:///etc/passwd",
            "/broken": "http://[::1",
        }
        if self.path in redirects:
            self._answer(302, b"", Location=redirects[self.path])
        elif self.path == "/photo.png":
            self._answer(200, PHOTO)
        elif self.path == "/packed":
            self._answer(200, gzip.compress(bytes(10**6)), **{"Content-Encoding": "gzip"})
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        elif self.path == "/drops":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.1)
        else:
            self._answer(404, b"nothing")

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.hosts = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_redirects_are_followed_and_checked_like_the_first_address(site):
    assert urls.fetch(f"{site.url}/again", HERE) == PHOTO
    assert urls.fetch(f"{site.url}/relative", HERE) == PHOTO
    assert site.hosts[-1] == site.url.removeprefix("http://")
    with pytest.raises(RequestError, match="more than 5 redirects"):
        urls.fetch(f"{site.url}/round", HERE)
    with pytest.raises(RequestError, match="file:///etc/passwd"):
        urls.fetch(f"{site.url}/file", HERE)


def test_redirect_into_the_own_network_is_refused(site, monkeypatch):
    public = web.is_public
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1" or public(address))
    with pytest.raises(RequestError, match="public address.*169.254"):
        urls.fetch(f"{site.url}/inside", Limits(allow_http=True))


def test_redirect_to_what_is_no_address_is_refused_in_a_sentence(site):
    with pytest.raises(RequestError, match=r"image_url is redirected to what is no address. Received: 'http://\[::1'"):
        urls.fetch(f"{site.url}/broken", HERE)


def test_bytes_and_time_are_bounded(site):
    with pytest.raises(TooLarge, match="0.5 megabytes"):
        urls.fetch(f"{site.url}/endless", HERE)
    with pytest.raises(RequestError, match="packed"):
        urls.fetch(f"{site.url}/packed", HERE)
    started = time.monotonic()
    with pytest.raises(RequestError, match="within 1 seconds"):
        urls.fetch(f"{site.url}/drops", HERE)
    assert time.monotonic() - started < 5


def test_server_that_fails_is_named(site):
    with pytest.raises(RequestError, match="status 404"):
        urls.fetch(f"{site.url}/none.png", HERE)
    with pytest.raises(RequestError, match="127.0.0.1:9"):
        urls.fetch("http://127.0.0.1:9/photo.png", HERE)
    with pytest.raises(RequestError, match="cannot be fetched"):
        urls.fetch(site.url.replace("http", "https") + "/photo.png", HERE)


def test_sdk_session_predicts_an_image_by_its_url(checkpoint, site, no_instance):
    from supervisely import Api
    from supervisely.nn.inference import Session

    with serving(checkpoint, HRDA_ALLOW_HTTP="true", HRDA_ALLOW_PRIVATE_ADDRESSES="true") as app:
        session = Session(Api("http://127.0.0.1:9", "no token"), session_url=app.url)
        annotation = session.inference_image_url(f"{site.url}/photo.png")
        np.testing.assert_array_equal(to_mask(annotation.to_json()), expected(app, IMAGE))
        refused(post(app, "inference_image_url", {"image_url": f"{site.url}/none"}), "status 404")
        refused(post(app, "inference_image_url", {"image_url": f"{site.url}/inside"}), "169.254")
