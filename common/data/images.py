"""Photos from files and bytes, decoded in one way for training and serving.

The rule is that of the SDK's own reader (`supervisely.image.read`, OpenCV's IMREAD_COLOR) but for one kind of TIFF, so
that a photo looks as in other apps; a model must not be trained on other pixels than it is asked about:

- EXIF orientation is applied (JPEG, PNG, WebP, TIFF). An annotation's size is that of the turned photo.
- 16 bits become 8 on one fixed scale (the higher byte), not stretched: photos of the same brightness stay so.
- Alpha is dropped, not composited: the colours beneath a transparent pixel remain. So is any other fourth band, such as
  the near infrared of a TIFF. (The SDK's reader multiplies the colours of a TIFF by it, which turns photos dark.)
- Grey, black-and-white and palette images become RGB, CMYK is converted without a colour profile.
- Of a file with several pages the first counts.

Images of 32-bit or floating-point samples have no agreed white and are refused.
"""

import io
import re
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of the files that count as photos of a project."""


Image.init()  # Without it Pillow knows only the most common of them.
MOST_SCANS = 100
"""Scans of a JPEG that are decoded; photos have about ten. Each costs a pass over all pixels, for a few bytes."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""In a JPEG's compressed data: what is neither a byte of 255 nor a mark to restart from."""
_EXTRA_BANDS = 338
"""TIFF's tag that says what a band after the colours is: 2 is an alpha to multiply them by."""
_KINDS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Names in Pillow of the kinds whose header is read to learn a photo's size."""


class ImageError(ValueError):
    """A photo that cannot be read; the message names it."""


class ImageTooLarge(ImageError):
    """A photo of more pixels than the reader allows; it was not decoded."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photo: H×W×3 uint8 RGB, EXIF orientation applied.

    Raises:
        ImageError: The file does not exist, is empty, truncated or of a kind that cannot be decoded.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read the image {path}: {error.strerror or error}.") from error
    return decode_image(content, str(path))


def decode_image(
    content: bytes, name: str = "the uploaded bytes", *, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Decode a photo's bytes: H×W×3 uint8 RGB, EXIF orientation applied.

    Args:
        content: An encoded image: JPEG, PNG, BMP, TIFF or WebP; of an animated GIF the first picture.
        name: What an error message calls it.
        max_pixels: Refuse a photo whose header promises more, before any memory is taken for its pixels, and a JPEG
            that takes more than `MOST_SCANS` passes over them. For photos from strangers: a file of a few kilobytes
            can hold gigabytes of one colour, or hours of work.

    Raises:
        ImageTooLarge: More than `max_pixels`.
        ImageError: The bytes are empty, truncated or of a kind that cannot be decoded.
    """
    if not content:
        raise ImageError(f"Cannot read the image {name}: it is empty. Upload or download it again.")
    if max_pixels is not None:
        width, height = read_size(content, name)
        if width * height > max_pixels:
            raise ImageTooLarge(
                f"The image {name} has too many pixels: at most {max_pixels / 1e6:g} megapixels are read. "
                f"Received: {width}×{height}."
            )
        if content.startswith(b"\xff\xd8") and has_many_scans(content):
            raise ImageError(
                f"The image {name} is a JPEG of more than {MOST_SCANS} scans. Save it anew, as a usual JPEG or a PNG."
            )
    try:
        image = cv2.imdecode(np.frombuffer(_with_plain_bands(content), np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ImageError(f"Cannot read the image {name}: {error.err}.") from error
    if image is None:
        raise _unreadable(content, name)
    return image


def read_size(content: bytes, name: str = "the uploaded bytes") -> tuple[int, int]:
    """Width and height by a photo's header, before EXIF orientation is applied. Nothing is decoded.

    Raises:
        ImageTooLarge: So large that Pillow does not open it.
        ImageError: Not a photo of a kind that is read.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_KINDS) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"The image {name} has too many pixels: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, OverflowError) as error:
        raise _unreadable(content, name) from error


def has_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more than `MOST_SCANS` scans. Pictures in its header do not count."""
    scans, at = 0, 2
    while (found := _MARKER.search(content, at)) is not None:
        kind, at = content[found.end() - 1], found.end()
        if kind == 0xD9:
            break
        if kind in (0x01, 0xD8):
            continue
        scans += kind == 0xDA
        if scans > MOST_SCANS:
            return True
        at += int.from_bytes(content[at : at + 2], "big")
    return False


def _with_plain_bands(content: bytes) -> bytes:
    """A TIFF whose fourth band does not say that the colours are to be multiplied by it; other bytes as they are."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or len(content) < 16:
        return content
    try:
        [version] = struct.unpack_from(f"{order}H", content, 2)
        # The newer kind, for files above four gigabytes, counts in eight bytes.
        count, entry, offset = {42: ("H", "HHI", "I"), 43: ("Q", "HHQ", "Q")}[version]
        [at] = struct.unpack_from(order + offset, content, 4 if version == 42 else 8)
        [entries] = struct.unpack_from(order + count, content, at)
        at += struct.calcsize(order + count)
        head, size = struct.calcsize(order + entry), struct.calcsize(order + entry) + struct.calcsize(order + offset)
        for place in range(at, at + min(entries, 2**16) * size, size):
            tag, _, values = struct.unpack_from(order + entry, content, place)
            if tag == _EXTRA_BANDS and values == 1 and struct.unpack_from(f"{order}H", content, place + head) == (2,):
                plain = bytearray(content)
                struct.pack_into(f"{order}H", plain, place + head, 0)
                return bytes(plain)
    except (KeyError, struct.error):
        # Not a TIFF, or a damaged one, which the decoder says.
        pass
    return content


def _unreadable(content: bytes, name: str) -> ImageError:
    return ImageError(
        f"Cannot read the image {name}: it is damaged, incomplete or of a kind that is not read. "
        f"Expected JPEG, PNG, BMP, TIFF or WebP of 8 or 16 bits a channel. Received: {len(content)} bytes."
    )
