"""What kind of image a file is."""

from pathlib import Path

import cv2
from PIL import Image, UnidentifiedImageError

# Other endings of the same formats.
_ALIASES = {"tiff": {"tif"}, "jpeg": {"jpe", "jfif"}}
UNKNOWN = "unknown"
_ROTATED = {5, 6, 7, 8}
_ORIENTATION = 0x0112


class UnreadableImage(ValueError):
    """The content is not an image that this machine can decode."""


def inspect(path: Path) -> tuple[str, int, int]:
    """Look at an image file.

    Returns:
        The format in lower case (``jpeg``, ``png``, …), width and height in pixels, as shown, that is after the
        rotation which the EXIF orientation asks for.

    Raises:
        UnreadableImage: If it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in _ROTATED:
                width, height = height, width
            kind = (image.format or UNKNOWN).lower()
            # Phones write JPEG files with several pictures, which Pillow calls by another name.
            return "jpeg" if kind == "mpo" else kind, width, height
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        # OpenCV, with which the SDK reads, knows formats that Pillow does not.
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is None:
            raise UnreadableImage("The file is not an image in a known format.") from None
        return UNKNOWN, pixels.shape[1], pixels.shape[0]


def mime(kind: str, name: str) -> str:
    """The MIME type of an image of this format under this name.

    An alias in the name is kept (``image/tif`` for ``a.tif``): the SDK would rename the image to ``a.tif.tiff``.
    """
    ending = Path(name).suffix.lower().lstrip(".")
    keep = kind == UNKNOWN or ending in _ALIASES.get(kind, ())
    return f"image/{ending if keep and ending else kind}"
