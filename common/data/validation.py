"""Validation photos with their truth, at their own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.images import ImageError
from common.data.reading import Patience, read_labelled_photo, read_mask


class ValidationPhoto(NamedTuple):
    """A labelled photo to measure on."""

    name: str
    image: np.ndarray
    """H×W×3 uint8 at the photo's own size."""
    truth: np.ndarray
    """H×W uint8 class indices."""
    number: int = 0
    """Among the photos to be measured."""


def to_measure(labelled: Sequence[tuple[Path, Path]], max_images: int | None) -> list[tuple[Path, Path]]:
    """All of the pairs of image and mask file, or `max_images` of them at even distances."""
    if max_images is None or max_images >= len(labelled):
        return list(labelled)
    return [labelled[index] for index in np.linspace(0, len(labelled) - 1, max_images).round().astype(int)]


def validation_photos(
    labelled: Sequence[tuple[Path, Path]],
    max_images: int | None = None,
    *,
    patience: Patience | None = None,
    lost: dict[Path, str] | None = None,
) -> Iterator[ValidationPhoto]:
    """The validation photos one by one, or `max_images` of them at even distances.

    Args:
        labelled: pairs of image file and mask file.
        max_images: at most so many.
        patience: with which what cannot be read is read again.
        lost: takes the photos that cannot be read and are left out, and why; None: none is left out.

    Raises:
        ImageError, MaskLost: a photo or mask cannot be read, or all photos are lost.
    """
    is_any = False
    for number, (image_path, mask_path) in enumerate(to_measure(labelled, max_images)):

        def read(image_path: Path = image_path, mask_path: Path = mask_path) -> tuple[np.ndarray, np.ndarray]:
            return read_labelled_photo(image_path, mask_path), read_mask(mask_path)

        found = (patience or Patience()).read(read, image_path, lost)
        if found is not None:
            is_any = True
            yield ValidationPhoto(image_path.name, *found, number)
    if lost and not is_any:
        raise ImageError(f"None of the validation photos can be read any more. The last one: {lost[image_path]}")
