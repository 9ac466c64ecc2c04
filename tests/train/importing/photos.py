"""Folders in other formats, as people have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.data.project import open_project, prepare_labelled
from train.importing.imported import Reading, imported

SIZE = (32, 48)


def write_photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path, **options)
    return path


def write_mask(path: Path, mask: np.ndarray, palette: Sequence[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette is not None:
        image.putpalette(bytes(palette))
    image.save(path)
    return path


def thin_lines(seed: int = 0, values: Sequence[int] = (1, 2), size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask with a line of one pixel and a patch with a hole."""
    first, second = values
    mask = np.zeros(size, np.uint8)
    cv2.line(mask, (0, seed), (size[1] - 1, size[0] - 1 - seed), int(first))
    mask[20:30, 4:16] = second
    mask[23:26, 8:11] = 0
    return mask


def training_masks(spec: str, classes: Sequence[str], cache: Path) -> dict[str, np.ndarray]:
    """The masks that training learns from, by dataset and name of the photo."""
    labelled = prepare_labelled(open_project(spec), classes, cache, progress=lambda _: None)
    return {record.key: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for record, path in labelled}


def import_it(folder: Path, cache: Path, said: list[str] | None = None, **options: object) -> str:
    return imported(str(folder), cache, Reading((said if said is not None else []).append), **options)
