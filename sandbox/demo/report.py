"""What the demo measured: a table of the arms, and a picture of photos, truth and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from common.data.images import read_image
from common.data.project import open_project, prepare_labelled
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.metrics import SegmentationMetrics

PICTURE_HEIGHT = 224
CAPTION_HEIGHT = 26
OVERLAY = np.array([255, 32, 32])


@dataclass(frozen=True)
class Photo:
    """A validation photo."""

    name: str
    image: np.ndarray
    """H×W×3 uint8 RGB."""
    truth: np.ndarray
    """H×W uint8: 1 where there is foreground of any class, 255 where nothing counts."""


@dataclass(frozen=True)
class ArmResult:
    """How good one arm is on the validation photos, everything in percent."""

    iou: float
    """IoU of the foreground at threshold 0.5."""
    best_iou: float
    """The same at the threshold that suits this arm best; it was looked for on the same photos."""
    best_threshold: float
    f1_2px: float
    """F1 with a tolerance of 2 pixels, at threshold 0.5."""
    precision_2px: float
    recall_2px: float


def read_photos(spec: str, classes: Sequence[str], cache: Path) -> list[Photo]:
    """The validation photos with their labels, all foreground classes as one."""
    labelled = prepare_labelled(open_project(spec), classes, cache, role="validation", progress=lambda _: None)
    photos = []
    for record, mask_path in labelled:
        mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        truth = np.where(mask == 255, 255, mask > 0).astype(np.uint8)
        photos.append(Photo(record.name, read_image(record.image_path), truth))
    return photos


def measure(checkpoint: Path, photos: Sequence[Photo]) -> tuple[ArmResult, list[np.ndarray]]:
    """Predict the photos with a checkpoint, as serving does.

    Returns:
        The figures, and each photo's H×W bool prediction at threshold 0.5.
    """
    bundle = load_checkpoint(checkpoint)
    windows = InferenceSettings.from_dict(bundle.settings["inference"])
    predictor = Predictor(bundle.model, windows, input_scale=bundle.input_scale)
    metrics = SegmentationMetrics(["background", "foreground"])
    predictions = []
    for photo in photos:
        background = predictor.probabilities([photo.image])[0][0]
        predictions.append(background <= 0.5)
        metrics.update(predictions[-1].astype(np.uint8), photo.truth, (background, 1 - background))
    scores = metrics.compute()
    result = ArmResult(
        iou=100 * scores["iou/foreground"],
        best_iou=100 * scores["best_iou/foreground"],
        best_threshold=scores["best_threshold/foreground"],
        f1_2px=100 * scores["f1_2px/foreground"],
        precision_2px=100 * scores["precision_2px/foreground"],
        recall_2px=100 * scores["recall_2px/foreground"],
    )
    return result, predictions


def gain(results: Mapping[str, ArmResult]) -> str:
    """What HRDA gained over the others, in a sentence; empty where there is no other."""
    others = [name for name in results if name != "HRDA"]
    if "HRDA" not in results or not others:
        return ""
    parts = [f"{results['HRDA'].iou - results[name].iou:+.1f} points of IoU against {name}" for name in others]
    return f"HRDA at threshold 0.5: {', '.join(parts)}."


def table(results: Mapping[str, ArmResult]) -> str:
    """The arms' figures as text."""
    width = max(len(name) for name in results)
    lines = [f"{'':{width}}  IoU at 0.5  IoU at best threshold  F1 at 2 px  (precision, recall)"]
    for name, r in results.items():
        lines.append(
            f"{name:{width}}  {r.iou:9.1f}%  {r.best_iou:9.1f}% at {r.best_threshold:.2f}   {r.f1_2px:9.1f}%"
            f"  ({r.precision_2px:.1f}, {r.recall_2px:.1f})"
        )
    return "\n".join(lines)


def picture(path: Path, photos: Sequence[Photo], columns: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write a PNG: a row a photo, the photo itself, its truth, and a column for each arm's predictions.

    Args:
        path: the file.
        photos: the rows.
        columns: bool predictions of these photos by the arm's name.
    """
    masks = {"truth": [photo.truth == 1 for photo in photos], **columns}
    rows = [
        [photo.image] + [overlay(photo.image, column[index]) for column in masks.values()]
        for index, photo in enumerate(photos)
    ]
    sheet(path, ["photo", *masks], rows)


def sheet(path: Path, captions: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> None:
    """Write a picture of rows of pictures.

    Args:
        path: the file.
        captions: a name for each column.
        rows: H×W×3 uint8 RGB pictures, as many a row as there are captions.
    """
    tiles = [[Image.fromarray(tile).resize(_tile_size(tile)) for tile in row] for row in rows]
    width = max(sum(tile.width for tile in row) for row in tiles)
    whole = Image.new("RGB", (width, CAPTION_HEIGHT + PICTURE_HEIGHT * len(tiles)), "white")
    pen = ImageDraw.Draw(whole)
    for column, name in enumerate(captions):
        pen.text((tiles[0][0].width * column + 6, 6), name, fill="black", font_size=14)
    for index, row in enumerate(tiles):
        left = 0
        for tile in row:
            whole.paste(tile, (left, CAPTION_HEIGHT + PICTURE_HEIGHT * index))
            left += tile.width
    whole.save(path)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo with the mask drawn over it."""
    shaded = image.copy()
    shaded[mask] = (0.25 * image[mask] + 0.75 * OVERLAY).astype(np.uint8)
    return shaded


def _tile_size(tile: np.ndarray) -> tuple[int, int]:
    return round(tile.shape[1] * PICTURE_HEIGHT / tile.shape[0]), PICTURE_HEIGHT
