"""Photos from files and bytes, decoded in one way for training and serving.

The rule is that of the SDK's own reader (`supervisely.image.read`, OpenCV's IMREAD_COLOR), because the SDK decodes the
photos that a served model gets; a model must not be trained on other pixels than it is asked about:

- EXIF orientation is applied (JPEG, PNG, WebP, TIFF). An annotation's size is that of the turned photo.
- 16 bits become 8 on one fixed scale (the higher byte), not stretched: photos of the same brightness stay so.
- Alpha is dropped, not composited: the colours beneath a transparent pixel remain. (In TIFF they are multiplied by it.)
- Grey, black-and-white and palette images become RGB, CMYK is converted without a colour profile.
- Of a file with several pages the first counts.

Images of 32-bit or floating-point samples have no agreed white and are refused.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of the files that count as photos of a project."""


Image.init()  # Without it Pillow knows only the most common of them.
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
        max_pixels: Refuse a photo whose header promises more, before any memory is taken for its pixels. For
            photos from strangers: a file of a few kilobytes can hold gigabytes of one colour.

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
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
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


def _unreadable(content: bytes, name: str) -> ImageError:
    return ImageError(
        f"Cannot read the image {name}: it is damaged, incomplete or of a kind that is not read. "
        f"Expected JPEG, PNG, BMP, TIFF or WebP of 8 or 16 bits a channel. Received: {len(content)} bytes."
    )
