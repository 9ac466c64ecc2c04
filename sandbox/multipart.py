"""Multipart answers: several contents in one response, each part named after what it is."""

import secrets
from collections.abc import Iterable

from fastapi import Response


def multipart(parts: Iterable[tuple[str, bytes]]) -> Response:
    """A ``multipart/form-data`` response.

    Args:
        parts: Name and content of each part. The SDK reads ids and hashes out of the names, and takes
            ``form-data; name="…"`` to be the whole header.
    """
    boundary = secrets.token_hex(24)
    body = bytearray()
    for name, content in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        body += content
        body += b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return Response(bytes(body), media_type=f"multipart/form-data; boundary={boundary}")
