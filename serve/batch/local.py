"""Prediction of local files, without an instance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from supervisely import Annotation

from common.data.images import IMAGE_SUFFIXES, ImageError, read_image
from serve.errors import RequestError

if TYPE_CHECKING:
    from serve.sdk import SdkServer

BACKGROUND = "__bg__"


def predict_local(server: SdkServer, source: Path, output: Path, settings: Mapping[str, Any], draw: bool) -> list[Path]:
    """Predict an image, or every image of a folder, one after the other.

    Args:
        server: with a model deployed.
        source: an image file or a folder with images.
        output: folder for `NAME.json`, an annotation in Supervisely's format an image; made when missing.
            For a folder as source they go into a folder of its name.
        settings: as in inference_settings.yaml; what is left out has its default.
        draw: also write `NAME.png`, the image with the predicted areas drawn in.

    Returns:
        The annotations' files.

    Raises:
        RequestError: no image there, or some could not be read; the others are predicted.
        SettingsError: unknown setting or bad value.
    """
    state = {"settings": dict(settings)}
    server.validate_inference_state(state)
    images = find_images(source)
    folder = output / source.resolve().name if source.is_dir() else output
    folder.mkdir(parents=True, exist_ok=True)
    written, unreadable = [], []
    for number, path in enumerate(images, start=1):
        try:
            image = read_image(path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        annotation = server.annotate(image, settings)
        target = folder / f"{path.name}.json"
        target.write_text(json.dumps(annotation.to_json()), encoding="utf-8")
        if draw:
            draw_areas(image, annotation, folder / f"{path.name}.png")
        written.append(target)
        print(f"[{number}/{len(images)}] {path} -> {target}", flush=True)
    if unreadable:
        raise RequestError(
            f"{len(unreadable)} of {len(images)} images could not be read, the others are predicted:\n"
            + "\n".join(unreadable)
        )
    return written


def find_images(source: Path) -> list[Path]:
    """The image `source`, or the images of the folder `source` by name.

    Raises:
        RequestError: there is nothing, or nothing that is read as an image.
    """
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise RequestError(f"There is no image in {source}. Expected one of: {', '.join(sorted(IMAGE_SUFFIXES))}.")
        return found
    if not source.is_file():
        raise RequestError(f"There is no image or folder at {source}.")
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        raise RequestError(f"{source} is not an image. Expected one of: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return [source]


def draw_areas(image: np.ndarray, annotation: Annotation, path: Path) -> None:
    """Write `image` (H×W×3 uint8 RGB) with all areas but the background drawn over it."""
    shown = annotation.clone(labels=[label for label in annotation.labels if label.obj_class.name != BACKGROUND])
    # Thicker contours, as the SDK chooses for large photos, would hide a thin crack.
    shown.draw_pretty(image.copy(), thickness=1, output_path=str(path))
