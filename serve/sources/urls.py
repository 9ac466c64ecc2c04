"""Images from the internet, for callers who may not use the service to reach into the network that it runs in."""

from __future__ import annotations

from common.hrda.checks import received
from common.hrda.web import Deadline, Reach, WebError, opened
from serve.errors import RequestError, TooLarge
from serve.limits import Limits

_NAME = "image_url"


def fetch(url: str, limits: Limits) -> bytes:
    """The content at `url`.

    Raises:
        TooLarge: more bytes than an image may have.
        RequestError: not an address that may be fetched, or the fetch fails; the message says which and why.
    """
    reach = Reach(http=limits.allow_http, private=limits.allow_private_addresses)
    try:
        with (
            Deadline(limits.url_timeout_s) as deadline,
            opened(url, reach, deadline, name=_NAME, headers={"Accept": "image/*"}) as answer,
        ):
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise RequestError(f"The image's server sends it packed, which is not read. Received: {received(url)}.")
            content = bytearray()
            for piece in answer.pieces():
                content += piece
                if len(content) > limits.max_image_bytes:
                    raise TooLarge(
                        f"The image has more than {limits.max_image_mb:g} megabytes. Received: {received(url)}."
                    )
            return bytes(content)
    except WebError as error:
        raise RequestError(str(error)) from error
