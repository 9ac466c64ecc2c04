"""Prediction of local files, without an instance."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.data.images import ImageError
from common.data.reading import Patience, only_this_one
from common.hrda.checks import SettingsError, received
from common.paths import is_file, is_folder
from common.plain_yaml import read_yaml, settings_text
from serve.batch.collection import SUFFIXES, passed_over
from serve.batch.outputs.format import Format
from serve.batch.outputs.writing import Tally, Writer
from serve.batch.photos import read_photo, require_rasters
from serve.batch.result import result_names
from serve.batch.tiff import RasterOptions, is_larger_than_photos, is_orthomosaic, is_tiff
from serve.batch.worker import Worker
from serve.errors import RequestError
from serve.model.settings import said

if TYPE_CHECKING:
    from serve.batch.orthomosaic import Mosaic


def predict_local(
    worker: Worker,
    source: Path,
    output: Path,
    *,
    draw: bool = False,
    formats: Sequence[Format] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    raster: RasterOptions | None = None,
) -> list[Path]:
    """Predict an image, or every image of a folder, one after the other.

    Args:
        worker: what predicts them.
        source: an image file or a folder with images.
        output: folder for the results, made when missing. For a folder as source they go into a folder of its name.
        draw: also write `PHOTO.png`, the image with what was found in colour.
        formats: what to write, each into a folder of its name. Without any it is `PHOTO.json`, an annotation in
            Supervisely's format an image, with no folder of its own.
        options: fields of `OutputOptions`.
        raster: how samples of TIFF files become pixels. Without formats every one of them is then predicted as an
            orthomosaic, and without it those that `is_orthomosaic` names; with formats those that are larger than
            photos, and of the others the formats have the place.

    Returns:
        The files that were written.

    Raises:
        RequestError: no image there, or some could not be read; the others are predicted, unless their disk is away.
        WriteError: a result could not be written.
    """
    found, left_out = find_images(source)
    if left_out:
        print(left_out, flush=True)
    if formats:
        mosaics = [path for path in found if is_larger_than_photos(path)]
    else:
        mosaics = [path for path in found if is_orthomosaic(path) or (raster and is_tiff(path.name))]
    images = [path for path in found if path not in mosaics]
    if raster:
        require_rasters()
    predict = predicts_mosaics(worker) if mosaics else None
    folder = output / source.resolve().name if is_folder(source) else output
    make_folder(folder)
    outputs = worker.options(**options)
    writer = Writer(folder, formats, worker.legend, outputs, draw=draw)
    tally, begun = Tally(worker.legend), perf_counter()
    if worker.best_thresholds:
        print(
            f"Thresholds that were best in the model's validation: {said(worker.best_thresholds)}. "
            "--settings thresholds={} takes the most probable class, as at 0.5.",
            flush=True,
        )
    names, unreadable = result_names([path.name for path in found]), []
    patience = Patience(lambda text: print(text, file=sys.stderr, flush=True))
    for number, path in enumerate(images, start=1):
        try:
            photo = patience.read(partial(read_photo, path, path.name, names[path.name], raster, print), path)
        except ImageError as error:
            if worker.settings.strict:
                raise
            if not only_this_one(error):
                raise RequestError(
                    f"{error} Its disk is away. {tally.photos} of {len(images)} are predicted."
                ) from error
            unreadable.append(str(error))
            continue
        [result] = worker.results([photo], writer.needs)
        target, shares = writer.add(result), tally.add(result.labels)
        print(f"[{number}/{len(images)}] {path} -> {target}: {shares}", flush=True)
    writer.finish()
    for path in mosaics:
        try:
            mosaic = predict(worker, path, folder, raster, name=names[path.name], tolerance=outputs.tolerance)
            writer.files += mosaic.files
        except RequestError as error:
            unreadable.append(str(error))
    if images:
        print(tally.summary(perf_counter() - begun), flush=True)
    if worker.left_out:
        print(worker.left_out, flush=True)
    print(f"Written: {folder}", flush=True)
    if unreadable:
        raise RequestError(
            f"{len(unreadable)} of {len(found)} images could not be read, the others are predicted:\n"
            + "\n".join(unreadable)
        )
    return writer.files


def predicts_mosaics(worker: Worker) -> Callable[..., Mosaic]:
    """`predict_orthomosaic`, once it is known to be possible.

    Raises:
        RequestError: a package that it needs is not installed.
        SettingsError: as `predict_orthomosaic`.
    """
    require_rasters()
    from serve.batch.orthomosaic import predict_orthomosaic, require_fitting

    require_fitting(worker.settings, worker.deployment.input_scale)
    return predict_orthomosaic


def make_folder(path: Path) -> None:
    """Make the folder for results where it is missing.

    Raises:
        RequestError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder {path} for the results cannot be made: {error.strerror}. Choose another --output."
        ) from error


def find_images(source: Path) -> tuple[list[Path], str]:
    """The image `source`, or the images of the folder `source` by name; and what else is there, in a sentence or empty.

    Raises:
        RequestError: there is nothing, or nothing that is read as an image.
    """
    kinds = ", ".join(sorted(SUFFIXES))
    if is_folder(source):
        entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir()]
        found = [path for path in entries if path not in folders and path.suffix.lower() in SUFFIXES]
        rest = [path for path in entries if path not in folders and path not in found]
        left_out = passed_over(folders, "subfolder", "subfolders")
        left_out += passed_over(rest, "file that is no image", "files that are no images")
        said = f"Passed over in {source}: {', '.join(left_out)}." if left_out else ""
        if not found:
            raise RequestError(f"There is no image in {source}. Expected one of: {kinds}. {said}".strip())
        return found, said
    if not is_file(source):
        raise RequestError(f"There is no image or folder at {source}.")
    if source.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{source} is not an image. Expected one of: {kinds}.")
    return [source], ""


def settings_of_words(words: Sequence[str]) -> dict[str, Any]:
    """The settings that the command line was given: `NAME=VALUE` each, or one YAML or JSON file of them.

    What the text of a value means is for `serve.model.settings.read_settings` to say.

    Raises:
        RequestError: the file cannot be read.
        SettingsError: neither that nor names and values.
    """
    if len(words) == 1 and words[0].endswith((".json", ".yaml", ".yml")):
        return _settings_of_file(Path(words[0]))
    settings: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=" if "=" in word else ":")
        if not separator:
            raise SettingsError(f"settings are given as NAME=VALUE, such as stride=256. Received: {received(word)}.")
        settings[name] = value
    return settings


def _settings_of_file(path: Path) -> dict[str, Any]:
    try:
        text = settings_text(path)
        found = json.loads(text) if path.suffix == ".json" else read_yaml(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"The settings in {path} cannot be read: {error}") from error
    if not isinstance(found, dict | None):
        raise SettingsError(f"{path} must hold names and values of settings. Received: {received(found)}.")
    return found or {}
