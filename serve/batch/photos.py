"""One photo of a file on this machine: a TIFF that lies somewhere on the earth keeps its place."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from common.data.images import ImageError, read_image
from serve.batch.result import Photo
from serve.batch.tiff import LARGEST_PHOTO, RasterOptions, is_orthomosaic, is_tiff
from serve.errors import RequestError

PACKAGES = ("rasterio", "shapely")
"""What orthomosaics and samples of TIFF files take."""


def require_rasters() -> None:
    """Refuse to go on without what orthomosaics take.

    Raises:
        RequestError: it says how to install it.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise RequestError(
            f"An orthomosaic (a TIFF that is georeferenced or of more than {LARGEST_PHOTO / 1e6:.0f} megapixels) needs "
            f"{' and '.join(missing)}, which this Python does not have. Install what it takes: pip install -r "
            "requirements-batch.txt"
        )


def has_samples(path: Path, raster: RasterOptions | None) -> bool:
    """Whether a file is a TIFF whose samples rasterio reads: it lies somewhere, or `raster` says what they are."""
    if not is_tiff(path.name):
        return False
    return raster is not None or (is_orthomosaic(path) and find_spec("rasterio") is not None)


def read_photo(
    path: Path,
    name: str,
    result_name: str,
    raster: RasterOptions | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Photo:
    """A photo, with its place where it is georeferenced. It fits into memory.

    Args:
        path: the file.
        name: see `Photo.path`.
        result_name: see `Photo.name`.
        raster: how samples of TIFF files become pixels.
        say: gets sentences about what was chosen of a TIFF.

    Raises:
        ImageError: it cannot be read.
        SettingsError: it has not the bands that `raster` names.
    """
    if not has_samples(path, raster):
        return Photo(name, result_name, read_image(path))
    from serve.batch.outputs.georeference import place_of
    from serve.batch.raster import opened

    try:
        with opened(path, raster or RasterOptions()) as file:
            pixels, valid = file.rows(0, file.size[0])
            for sentence in file.said:
                say(f"{path}: {sentence}")
            return Photo(name, result_name, pixels, *place_of(file.transform, file.crs), valid)
    except RequestError as error:
        raise ImageError(str(error)) from error
