"""Prediction of TIFF and GeoTIFF files that are too large for memory, or that lie somewhere on the earth.

The windows lie as in a photo of that size, and overlaps are averaged the same, so the labels are those of the same
pixels predicted as one photo. Rows of crops are read, predicted and written from top to bottom.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torch import Tensor

from common.hrda.checks import SettingsError
from common.hrda.files import WriteError
from common.hrda.pixels import IGNORE_LABEL, Scale, normalise
from common.hrda.prediction.labelling import label_rows, remove_small_components
from common.hrda.prediction.predictor import Predictor
from common.hrda.sliding import pad_to
from common.hrda.windows import Box
from serve.batch.polygons import write_polygons
from serve.batch.raster import Raster, opened
from serve.batch.result import Legend
from serve.batch.tiff import RasterOptions
from serve.batch.worker import Worker
from serve.errors import RequestError
from serve.model.settings import ServeSettings

EMPTY = IGNORE_LABEL
"""Value of pixels in the file of labels that are empty in the mosaic."""
LARGEST_COMPONENT = 1000
"""Pixels up to which `min_component` is for mosaics: as many rows are held above and below."""
_STRIP = 64
_SECONDS_BETWEEN_MESSAGES = 15.0
_COG = {"BLOCKSIZE": "512", "COMPRESS": "DEFLATE", "OVERVIEW_RESAMPLING": "NEAREST", "BIGTIFF": "IF_SAFER"}


@dataclass(frozen=True)
class Mosaic:
    """The files of a mosaic's results."""

    labels: Path
    """Cloud-optimised GeoTIFF of class indices."""
    polygons: tuple[Path, ...]
    """GeoJSON in WGS 84, where the mosaic's place on the earth is known, and in its own coordinates."""
    counts: tuple[int, ...]
    """Pixels of each class, by index, without those that are empty."""

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [self.labels, *self.polygons]


def predict_orthomosaic(
    worker: Worker,
    source: Path,
    output: Path,
    options: RasterOptions | None = None,
    say: Callable[[str], None] = print,
    name: str | None = None,
    tolerance: float | None = None,
) -> Mosaic:
    """Predict a TIFF of any size.

    Args:
        worker: what predicts it.
        source: the file.
        output: folder of the results, which are called after it: `mosaic.labels.tif`, `mosaic.geojson` in WGS 84 and
            `mosaic.local.geojson` in its own coordinates.
        options: how its samples become pixels.
        say: gets sentences about what was chosen and how far the work is.
        name: what the results are called in place of the file's own name without its suffix.
        tolerance: how far polygons may run beside the border that was predicted, in pixels; None: as `OutputOptions`.

    Raises:
        SettingsError: settings that are not for mosaics, or bands that it does not have.
        RequestError: it cannot be read, the results cannot be written, or the memory does not suffice.
        WriteError: there is no room for its polygons.
    """
    require_fitting(worker.settings, worker.deployment.input_scale)
    name, tolerance = name or source.stem, worker.options().tolerance if tolerance is None else tolerance
    labels, counts = output / f"{name}.labels.tif", np.zeros(len(worker.legend.classes), np.int64)
    with opened(source, options or RasterOptions()) as raster, _half(labels) as rows, _half(labels) as half:
        for sentence in (f"{source}: {_described(raster)}", *raster.said):
            say(sentence)

        def predict(predictor: Predictor) -> None:
            with _label_file(rows, raster, worker.legend) as file:
                pixels = RasterPixels(raster, predictor.device)
                sink = _RowSink(worker, pixels, file, _Progress(raster.size[0], say), counts)
                predictor.sweep(pixels, sink)
                sink.finish()

        try:
            worker.deployment.stream(predict, worker.settings)
            say("Writing the files of labels and polygons.")
            rasterio.shutil.copy(rows, half, driver="COG", **_COG)
            polygons = write_polygons(half, output / name, worker.legend, tolerance)
            half.replace(labels)
        except WriteError:
            raise
        except (RasterioError, OSError) as error:
            raise RequestError(
                f"The results of {source} cannot be written to {output}: {str(error)[:200]}. See to the disk, or "
                "choose another --output."
            ) from error
    return Mosaic(labels, polygons, tuple(counts.tolist()))


def require_fitting(settings: ServeSettings, input_scale: Scale) -> None:
    """Refuse settings that are not for mosaics.

    Args:
        settings: of the prediction.
        input_scale: at which the model saw photos in training.

    Raises:
        SettingsError: it says what to choose instead.
    """
    if settings.input_scale == "trained" and input_scale is not None:
        seen = f"{input_scale:g} times their size" if isinstance(input_scale, float) else f"{input_scale} pixels"
        raise SettingsError(
            f"The model was trained on photos scaled to {seen}, and an orthomosaic is no photo that could be. "
            "Predict it at its own pixels with --settings input_scale=original; resample it before (gdalwarp -tr) if "
            "its pixels show more or less of the ground than those of the training."
        )
    for name, is_fine, remedy in (
        ("long_side", settings.long_side is None, "null: a mosaic is predicted at its own pixels"),
        ("scales", settings.scales == (1.0,), "[1.0]: several are averaged of photos alone"),
        ("confidence", not settings.confidence, "false: polygons carry none"),
        ("min_component", settings.min_component <= LARGEST_COMPONENT, f"at most {LARGEST_COMPONENT} pixels"),
    ):
        if not is_fine:
            raise SettingsError(f"For an orthomosaic {name} must be {remedy}. Received: {getattr(settings, name)}.")


class RasterPixels:
    """A TIFF whose windows are normalised one by one; of it the rows of one row of crops are held.

    Args:
        raster: the open file.
        device: where windows go.
    """

    def __init__(self, raster: Raster, device: torch.device) -> None:
        self.size = raster.size
        self._raster, self._device = raster, device
        self._top, self._tallest = 0, 0
        self._rows = np.empty((0, raster.size[1], 3), np.uint8)
        self._valid = np.empty((0, raster.size[1]), bool)

    def crop(self, box: Box) -> Tensor:
        """The normalised pixels 3×h×w of `box`, the mean colour where it leaves the picture."""
        place = self._place(box)
        pixels = torch.from_numpy(np.ascontiguousarray(self._rows[place])).to(self._device).permute(2, 0, 1)
        return pad_to(normalise(pixels[None])[0], box)

    def is_empty(self, box: Box) -> bool:
        """Whether no pixel of `box` counts."""
        place = self._place(box)
        return not self._valid[place].any()

    def valid(self, top: int, count: int) -> np.ndarray:
        """Which pixels of the last row of crops count: count×W bool."""
        return self._valid[top - self._top : top - self._top + count]

    def _place(self, box: Box) -> tuple[slice, slice]:
        bottom = min(box.bottom, self.size[0])
        self._tallest = max(self._tallest, box.bottom - box.top)
        held = self._top + len(self._rows)
        if bottom > held:
            rows, valid = self._raster.rows(held, bottom)
            # No later crop begins above the one that reaches furthest down.
            first = max(box.bottom - self._tallest, self._top)
            kept = slice(first - self._top, None)
            self._rows = np.concatenate([self._rows[kept], rows])
            self._valid = np.concatenate([self._valid[kept], np.ones(rows.shape[:2], bool) if valid is None else valid])
            self._top = first
        return slice(box.top - self._top, bottom - self._top), slice(box.left, box.right)


class _RowSink:
    """Gets rows of logits and writes rows of labels.

    Args:
        worker: whose rule makes labels of them.
        pixels: which of them count.
        file: gets the labels.
        progress: is told of the rows that are written.
        counts: to which pixels of each class are added.
    """

    def __init__(
        self,
        worker: Worker,
        pixels: RasterPixels,
        file: rasterio.io.DatasetWriter,
        progress: _Progress,
        counts: np.ndarray,
    ) -> None:
        deployment = worker.deployment
        rule = worker.settings.rule(deployment.classes, deployment.best_thresholds)
        self._thresholds, self._unwanted = dict(rule.thresholds), worker.unwanted
        self._pixels, self._file, self._progress, self._counts = pixels, file, progress, counts
        self._sieve = _Sieve(rule.min_component, len(deployment.classes), self._write)

    def __call__(self, top: int, logits: Tensor) -> None:
        labels = label_rows(logits, self._thresholds)
        if self._unwanted:
            labels[np.isin(labels, self._unwanted)] = 0
        labels[~self._pixels.valid(top, len(labels))] = EMPTY
        self._sieve.add(labels)

    def finish(self) -> None:
        """Write what is held back."""
        self._sieve.finish()

    def _write(self, top: int, labels: np.ndarray) -> None:
        self._file.write(labels, 1, window=Window(0, top, labels.shape[1], len(labels)))
        self._counts += np.bincount(labels.ravel(), minlength=EMPTY + 1)[: len(self._counts)]
        self._progress.done(top + len(labels))


class _Sieve:
    """Turns small areas into background, row by row, as `remove_small_components` does of the whole.

    An area of fewer than n pixels reaches over fewer than n rows. So n rows above and below a row decide.

    Args:
        min_pixels: areas from this size on stay.
        num_classes: the background included.
        write: gets the first row's number and rows of labels.
    """

    def __init__(self, min_pixels: int, num_classes: int, write: Callable[[int, np.ndarray], None]) -> None:
        self._halo = min_pixels if min_pixels > 1 else 0
        self._num_classes, self._write = num_classes, write
        self._held: list[np.ndarray] = []
        self._first = self._done = self._end = 0

    def add(self, labels: np.ndarray) -> None:
        """Take the next rows, H×W uint8."""
        self._held.append(labels)
        self._end += len(labels)
        # Not at each of them: the rows around are looked at each time.
        if self._end - self._done >= 3 * self._halo:
            self._pass_on(self._end - self._halo)

    def finish(self) -> None:
        """Pass the last rows on."""
        if self._end > self._done:
            self._pass_on(self._end)

    def _pass_on(self, end: int) -> None:
        rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        first = max(end - self._halo, 0)
        self._held = [rows[first - self._first :].copy()] if self._halo else []
        if self._halo:
            remove_small_components(rows, self._halo, self._num_classes)
        self._write(self._done, rows[self._done - self._first : end - self._first])
        self._first, self._done = first if self._halo else end, end


class _Progress:
    """Says now and then how far the work is."""

    def __init__(self, height: int, say: Callable[[str], None]) -> None:
        self._height, self._say = height, say
        self._begun = self._said = time.monotonic()

    def done(self, rows: int) -> None:
        """So many rows from the top are written."""
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_MESSAGES and rows < self._height:
            return
        self._said = now
        left = (now - self._begun) * (self._height - rows) / rows
        self._say(
            f"{100 * rows / self._height:.0f}% predicted" + (f", {left / 60:.0f} min left." if left >= 60 else ".")
        )


@contextmanager
def _label_file(path: Path, raster: Raster, legend: Legend) -> Iterator[rasterio.io.DatasetWriter]:
    """A GeoTIFF of labels in strips, as they come, with place and colours."""
    height, width = raster.size
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=1,
        dtype="uint8",
        nodata=EMPTY,
        crs=raster.crs,
        transform=raster.transform,
        blockysize=_STRIP,
        compress="deflate",
        zlevel=1,
        bigtiff="if_safer",
    ) as file:
        file.write_colormap(1, {index: (*rgb, 255) for index, rgb in enumerate(legend.palette)} | {EMPTY: (0, 0, 0, 0)})
        file.update_tags(CLASSES=json.dumps(legend.classes))
        yield file


@contextmanager
def _half(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that is not whole yet, which is gone at the end of the block."""
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield half
    finally:
        half.unlink(missing_ok=True)


def _described(raster: Raster) -> str:
    height, width = raster.size
    place = raster.crs.to_string()[:60] if raster.crs else "without a coordinate reference system"
    return f"{width}×{height} pixels, {place}."
