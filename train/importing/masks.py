"""Photos beside masks: PNG files of class indices, with or without a palette, of 0 and 255, or of named colours."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervisely as sly
from PIL import Image

from common.data.choice import IGNORED, is_called_background
from common.data.folders import ImageRecord, ProjectError
from common.data.labels import present
from train.importing.names import Names
from train.importing.source import RGB, ClassOf, Key, Legend, Shape, colour

_MOST_COLOURS = 256
_LOSSY = ("JPEG", "MPO", "WEBP")
_DARKEST, _HIGHEST = 64, 255
EXPECTED = (
    "Expected a PNG of one channel that holds class indices, with or without a palette, or 0 for the background and "
    "255 for the foreground"
)


@dataclass(frozen=True)
class _Mask:
    """A mask as it was read."""

    values: np.ndarray
    """H×W whole numbers."""
    keys: dict[Key, int]
    """What a class is known by, and its number in `values`."""
    palette: list[RGB] | None = None
    """Colours of the numbers, where the file has a palette."""


class MaskSource:
    """Photos with masks.

    Args:
        what: the format, as a sentence names it.
        records: the photos, each with its mask's file or None.
        names: of the classes.
    """

    geometry = sly.Bitmap

    def __init__(self, what: str, records: Collection[ImageRecord], names: Names) -> None:
        self.what, self.records, self._names = what, tuple(records), names
        self.settled_by = () if names.file is None else (names.file,)
        self._palette: dict[int, RGB] = {}

    def present(self, record: ImageRecord, size: tuple[int, int]) -> Collection[Key]:
        """The values or colours in a photo's mask; see `Source`."""
        mask = self._read(record, size)
        # Several threads read masks: the first palette need not be that of the first mask.
        for value in mask.keys.values() if mask.palette else ():
            self._palette.setdefault(value, mask.palette[value])
        return mask.keys.keys()

    def legend(self, keys: Collection[Key]) -> Legend:
        """The class of each value or colour; see `Source`."""
        values = sorted(key for key in keys if isinstance(key, int))
        names: dict[Key, str] = dict(self._names.by_value(values))
        names |= {key: self._names.colours[key] for key in keys if key in self._names.colours}
        names = {key: name for key, name in names.items() if not is_called_background(name)}
        found = set(names.values())
        order = [name for name in dict.fromkeys([*self._names.order, *names.values()]) if name in found - {IGNORED}]
        order += [IGNORED] * (IGNORED in found)
        classes = (ClassOf(name, self._colour(name, names, place)) for place, name in enumerate(order))
        return Legend(tuple(classes), names)

    def _colour(self, name: str, names: dict[Key, str], place: int) -> RGB:
        keys = [key for key, other in names.items() if other == name]
        keys += [rgb for rgb, other in self._names.colours.items() if other == name]
        known = (key if isinstance(key, tuple) else self._palette.get(key, (0, 0, 0)) for key in keys)
        return next((rgb for rgb in known if max(rgb) >= _DARKEST), colour(place))

    def shapes(self, record: ImageRecord, size: tuple[int, int], wanted: Collection[Key]) -> Iterator[Shape]:
        """A bitmap for each value or colour; see `Source`."""
        mask = self._read(record, size)
        for key, value in mask.keys.items():
            if key in wanted:
                yield key, sly.Bitmap(mask.values == value)

    def _read(self, record: ImageRecord, size: tuple[int, int]) -> _Mask:
        path = record.annotation_path
        image = _opened(path)
        if image.size[::-1] != size:
            turned = " The photo is shown turned by its EXIF tag; the mask is not." if image.size == size else ""
            raise ProjectError(
                f"The mask {path} is {image.height} pixels high and {image.width} wide, its photo "
                f"{record.image_path} {size[0]} and {size[1]}.{turned} Make both the same size."
            )
        if image.mode in ("RGB", "RGBA"):
            return self._of_colours(np.asarray(image.convert("RGB")), path)
        mask = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        if mask.ndim != 2 or mask.dtype.kind not in "bui" or mask.min() < 0 or mask.max() > _HIGHEST:
            raise ProjectError(f"The mask {path} holds other numbers than 0 to 255 (mode {image.mode}). {EXPECTED}.")
        mask = mask.astype(np.uint8)
        keys = {value: value for value in present(mask)}
        palette = _palette(image) if image.mode == "P" else None
        if palette and self._names.colours and all(self._is_named(palette[value]) for value in keys):
            return self._of_colours(np.asarray(image.convert("RGB")), path)
        return _Mask(mask, keys, palette)

    def _of_colours(self, pixels: np.ndarray, path: Path) -> _Mask:
        red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
        packed = red << 16 | green << 8 | blue
        keys = {(value >> 16, value >> 8 & 255, value & 255): value for value in np.unique(packed).tolist()}
        nameless = [rgb for rgb in keys if not self._is_named(rgb)]
        if not nameless:
            return _Mask(packed, keys)
        if all(len(set(rgb)) == 1 for rgb in keys):
            return _Mask(pixels[..., 0], {rgb[0]: rgb[0] for rgb in keys})
        count = len(keys) if len(keys) <= _MOST_COLOURS else f"more than {_MOST_COLOURS}"
        raise ProjectError(
            f"The mask {path} is an RGB picture of {count} colours, of which {nameless[0]} has no name. {EXPECTED}; or "
            'name every colour in classes.json beside the masks: {"crack": [220, 20, 60]}.'
        )

    def _is_named(self, rgb: RGB) -> bool:
        return rgb in self._names.colours or not any(rgb)


def _opened(path: Path) -> Image.Image:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ProjectError(f"Cannot read the mask {path}: {error.strerror or error}.") from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format
            # The SDK has Pillow fill up files that end too early. This finds them.
            image.verify()
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # As no cause: errors of Pillow are of the kind that says a disk is away.
        raise ProjectError(f"Cannot read the mask {path}: it is damaged or no picture. {EXPECTED}.") from None
    if kind != "PNG":
        changes = ", which changes the values of pixels when it is saved" if kind in _LOSSY else ""
        raise ProjectError(f"The mask {path} is a {kind}{changes}. {EXPECTED}.")
    return image


def _palette(image: Image.Image) -> list[RGB]:
    flat = image.getpalette("RGB") or []
    colours = [tuple(flat[at : at + 3]) for at in range(0, len(flat), 3)]
    return colours + [(0, 0, 0)] * (256 - len(colours))
