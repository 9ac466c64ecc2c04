"""TIFF and GeoTIFF files of any size and samples, as rows of RGB pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from common.hrda.checks import SettingsError
from common.hrda.pixels import IMAGENET_MEAN
from serve.batch.tiff import RasterOptions
from serve.errors import RequestError

CACHE_BYTES = 64 * 2**20
"""Memory in which decoded blocks of files are kept."""
PERCENTILES = (2, 98)
"""Of the samples: what becomes 0 and 255, where no range is given."""
_SAMPLED_ALONG, _SAMPLED_SIDE = 8, 256
_FILL = np.rint(IMAGENET_MEAN).astype(np.uint8)
_ROWS = 128


class Raster:
    """An open TIFF.

    Args:
        dataset: of rasterio.
        options: how its samples become pixels.

    Raises:
        SettingsError: it has no such band.
        RequestError: samples that are no brightness.
    """

    def __init__(self, dataset: rasterio.DatasetReader, options: RasterOptions) -> None:
        self._dataset = dataset
        self.size = (dataset.height, dataset.width)
        """Height and width in pixels."""
        self.crs, self.transform = dataset.crs, dataset.transform
        self.is_placed = not dataset.transform.is_identity
        """Whether it has a place: pixels have coordinates."""
        self.said: list[str] = []
        """What was chosen, a sentence each."""
        self._bands = self._choose_bands(options.bands)
        types = {dataset.dtypes[band - 1] for band in self._bands}
        if any(np.dtype(kind).kind == "c" for kind in types):
            raise RequestError(f"{dataset.name} has complex samples, which are no brightness. Choose other --bands.")
        self._colours = self._colour_table()
        # Where no pixel is marked as empty nothing needs to be read to know it.
        self._has_empty = any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)
        self._range = options.range
        if self._range is None and types != {"uint8"} and self._colours is None:
            self._range = self._percentiles()
            self.said.append(
                f"Samples of {', '.join(sorted(types))}: {self._range[0]:g} becomes 0 and {self._range[1]:g} 255 (the "
                f"{PERCENTILES[0]}nd and {PERCENTILES[1]}th percentile of a sample); --range LOW,HIGH chooses others."
            )
        elif self._range is not None:
            self.said.append(f"Samples: {self._range[0]:g} becomes 0 and {self._range[1]:g} 255.")

    def rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels rows×W×3 uint8 RGB, and which of them count, rows×W bool; None where all do.

        Raises:
            RequestError: they cannot be read.
        """
        pixels = np.empty((bottom - top, self.size[1], 3), np.uint8)
        valid = np.ones(pixels.shape[:2], bool) if self._has_empty else None
        for start in range(top, bottom, _ROWS):
            window = Window(0, start, self.size[1], min(_ROWS, bottom - start))
            place = slice(start - top, start - top + window.height)
            try:
                for channel, band in enumerate(self._bands):
                    samples = self._dataset.read(band, window=window)
                    if self._colours is not None:
                        pixels[place] = self._colours[samples]
                    else:
                        pixels[place, :, channel] = self._to_bytes(samples)
                if valid is not None:
                    valid[place] = self._dataset.dataset_mask(window=window) > 0
            except RasterioError as error:
                raise unreadable(self._dataset.name, error) from error
        if len(self._bands) == 1 and self._colours is None:
            pixels[..., 1:] = pixels[..., :1]
        if valid is not None:
            pixels[~valid] = _FILL
        return pixels, valid

    def _choose_bands(self, wanted: Sequence[int] | None) -> tuple[int, ...]:
        meanings = self._dataset.colorinterp
        colours = [number for number, each in enumerate(meanings, 1) if each != ColorInterp.alpha]
        if wanted is not None:
            if max(wanted) > self._dataset.count:
                raise SettingsError(
                    f"bands names band {max(wanted)}; {self._dataset.name} has {self._dataset.count} bands."
                )
            return tuple(wanted)
        named = [
            meanings.index(each) + 1
            for each in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            if each in meanings
        ]
        chosen = tuple(named if len(named) == 3 else colours[: 3 if len(colours) >= 3 else 1])
        if not chosen:
            raise RequestError(f"{self._dataset.name} has no band but its alpha.")
        if len(colours) > len(chosen):
            self.said.append(
                f"Of {len(colours)} bands these are predicted: {', '.join(map(str, chosen))}; --bands chooses others."
            )
        return chosen

    def _colour_table(self) -> np.ndarray | None:
        """256×3 RGB of the samples of a palette; None without one."""
        if len(self._bands) != 1 or self._dataset.colorinterp[self._bands[0] - 1] != ColorInterp.palette:
            return None
        table = np.zeros((256, 3), np.uint8)
        for sample, colour in self._dataset.colormap(self._bands[0]).items():
            if sample < len(table):
                table[sample] = colour[:3]
        return table

    def _to_bytes(self, samples: np.ndarray) -> np.ndarray:
        if self._range is None:
            return samples
        low, high = self._range
        scaled = (samples.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0), 0, 255)).astype(np.uint8)

    def _percentiles(self) -> tuple[float, float]:
        """Two percentiles of the samples that count, in windows spread over the picture."""
        found = []
        for top in self._spread(self.size[0]):
            for left in self._spread(self.size[1]):
                sides = (min(_SAMPLED_SIDE, side) for side in reversed(self.size))
                window = Window(left, top, *sides)
                try:
                    samples = self._dataset.read(self._bands, window=window)
                    counts = self._dataset.dataset_mask(window=window) > 0
                except RasterioError as error:
                    raise unreadable(self._dataset.name, error) from error
                samples = samples[:, counts].astype(np.float64)
                found.append(samples[np.isfinite(samples)])
        samples = np.concatenate(found)
        low, high = np.percentile(samples, PERCENTILES) if samples.size else (0.0, 1.0)
        return float(low), float(high if high > low else low + 1)

    @staticmethod
    def _spread(side: int) -> list[int]:
        last = max(side - _SAMPLED_SIDE, 0)
        return sorted({round(last * step / (_SAMPLED_ALONG - 1)) for step in range(_SAMPLED_ALONG)})


@contextmanager
def opened(path: Path, options: RasterOptions) -> Iterator[Raster]:
    """An open TIFF, for a block.

    Raises:
        RequestError: it cannot be read.
        SettingsError: as `Raster`.
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(path.resolve(), driver="GTiff")
        except RasterioError as error:
            raise unreadable(path, error) from error
        with dataset:
            yield Raster(dataset, options)


def unreadable(path: Path | str, error: Exception) -> RequestError:
    """That a TIFF cannot be read."""
    return RequestError(
        f"Cannot read the TIFF {path}: it is damaged, incomplete or of a kind that is not read ({str(error)[:120]})."
    )
