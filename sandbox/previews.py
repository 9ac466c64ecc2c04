"""Small pictures of images, under the addresses that the SDK makes for them (``ImageInfo.preview_url``)."""

import re
from base64 import b64encode
from io import BytesIO

import cv2
from fastapi import APIRouter, Response
from PIL import Image

from sandbox.errors import ApiError, not_found
from sandbox.methods import Store

router = APIRouter()

# What the SDK writes: ext:jpeg/resize:fit:0:220:0/q:70
_OPTIONS = re.compile(r"ext:(?P<kind>jpeg|png)/resize:[\w-]+:(?P<width>\d+):(?P<height>\d+):\d+/q:(?P<quality>\d+)")


@router.get("/previews/q/{options:path}/plain/storage/{key}/{name:path}")
def preview(options: str, key: str, name: str, store: Store) -> Response:
    """An image made smaller; a width or height of 0 follows from the other, and nothing is made larger.

    Like the whole image, it can be read without the token: whoever knows the hash was told it.
    """
    wanted = _OPTIONS.fullmatch(options)
    if wanted is None:
        raise ApiError(
            400, f"Previews are asked for as ext:jpeg/resize:fit:WIDTH:HEIGHT:0/q:QUALITY. Received: {options!r}"
        )
    try:
        path = store.blobs.path(b64encode(bytes.fromhex(key)).decode())
    except ValueError:
        raise not_found("Content", key) from None
    # As on the labels: turned by the EXIF orientation.
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) if path.is_file() else None
    if pixels is None:
        raise not_found("Image with content", key)
    image = Image.fromarray(pixels)
    image.thumbnail(tuple(int(wanted[side]) or max(image.size) for side in ("width", "height")))
    content = BytesIO()
    image.save(content, wanted["kind"], quality=min(int(wanted["quality"]), 95))
    return Response(content.getvalue(), media_type=f"image/{wanted['kind']}")
