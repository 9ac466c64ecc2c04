"""Labelled source and unlabelled target as training batches; validation photos with their truth.

Every sample is a function of (seed, iteration, place in the batch) and of nothing else: no order of
loading, number of workers or earlier iteration changes it, and a resumed run needs no replay.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.images import read_image
from common.data.transforms import (
    AugmentationSettings,
    InputScale,
    augment_colour,
    augment_geometry,
    crop_place,
    crop_place_with_foreground,
    pad_to,
    resize_mask,
)
from common.hrda.predictor import IMAGENET_MEAN, IMAGENET_STD
from common.hrda.settings import IGNORE_LABEL

# Streams of random numbers that must not coincide.
_SOURCE, _TARGET = 0, 1
_ORDER, _SAMPLE = 0, 1

# Share of a crop that must be foreground for the crop to count as holding some: 0.1% is a crack
# 4 px wide that runs through a quarter of the side of a crop of 256 px.
_FOREGROUND_SHARE = 0.001


class Batch(NamedTuple):
    """What one iteration trains on. B images, h×w the crop."""

    source_images: torch.Tensor
    """B×3×h×w float32, normalised."""
    source_labels: torch.Tensor
    """B×h×w int64 class indices, 255 where nothing counts."""
    target_images: torch.Tensor | None
    """B×3×h×w float32, normalised; None without a target."""
    target_valid: torch.Tensor | None
    """B×h×w bool, False in padding and in the margins whose pseudo-labels do not count."""


class MemoryCache:
    """Keeps arrays up to a number of bytes; what does not fit is made anew each time."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._kept: dict[object, np.ndarray] = {}
        self.full = limit_bytes <= 0
        """Whether something was refused for want of room."""

    def get(self, key: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under `key`, or the one that `make` returns."""
        if key in self._kept:
            return self._kept[key]
        array = make()
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            self._kept[key] = array
        else:
            self.full = True
        return array


@dataclass(frozen=True)
class Recipe:
    """How photos become crops."""

    crop_size: tuple[int, int]
    """Height and width of the crop in pixels."""
    scale: InputScale
    augmentation: AugmentationSettings
    rare_class_share: float = 0.0
    """Share of the source crops that are drawn again, up to 10 times, until they hold foreground."""
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels at the top, bottom, left and right of a target photo, before it is resized, that do not count."""


class TrainingBatches(Dataset[Batch]):
    """Item k is the batch of iteration k.

    Each domain is gone through in an order that is shuffled anew at every pass, independently of the other.

    Args:
        source: pairs of image file and mask file (PNG of class indices, same size as the image).
        target: image files, or none for training without a target.
        recipe: how photos become crops.
        batch_size: images of each domain in a batch.
        iterations: number of batches.
        seed: decides every random choice.
        cache: keeps decoded images at input scale; pass None to decode every time.
    """

    def __init__(
        self,
        source: Sequence[tuple[Path, Path]],
        target: Sequence[Path],
        recipe: Recipe,
        *,
        batch_size: int,
        iterations: int,
        seed: int,
        cache: MemoryCache | None = None,
    ) -> None:
        if not source:
            raise ValueError("Training needs at least one labelled source image. Received: none.")
        self._source, self._target = list(source), list(target)
        self._recipe = recipe
        self._batch_size, self._iterations, self._seed = batch_size, iterations, seed
        self._cache = cache or MemoryCache(0)

    def __len__(self) -> int:
        return self._iterations

    def __getitem__(self, iteration: int) -> Batch:
        slots = range(self._batch_size)
        images, labels = zip(*(self._source_sample(iteration, slot) for slot in slots), strict=True)
        if not self._target:
            return Batch(torch.stack(images), torch.stack(labels), None, None)
        target_images, valid = zip(*(self._target_sample(iteration, slot) for slot in slots), strict=True)
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(target_images), torch.stack(valid))

    def fill_cache(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode photos into the cache until all are there or it is full; `progress` gets (done, of)."""
        paths = [path for path, _ in self._source] + self._target
        for done, path in enumerate(paths, 1):
            if self._cache.full:
                return
            self._image(path)
            if progress is not None:
                progress(done, len(paths))

    def _source_sample(self, iteration: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        recipe, rng = self._recipe, self._generator(_SOURCE, iteration, slot)
        image_path, mask_path = self._source[self._pick(_SOURCE, len(self._source), iteration, slot)]
        image = self._image(image_path)
        mask = self._cache.get(("mask", mask_path), lambda: resize_mask(read_mask(mask_path), image.shape[:2]))
        image, mask = augment_geometry(image, mask, recipe.augmentation, rng)
        if rng.random() < recipe.rare_class_share:
            place = crop_place_with_foreground(mask, recipe.crop_size, rng, min_share=_FOREGROUND_SHARE)
        else:
            place = crop_place(mask.shape, recipe.crop_size, rng)
        image = augment_colour(image[place], recipe.augmentation.photometric, rng)
        label = pad_to(mask[place], recipe.crop_size, IGNORE_LABEL).astype(np.int64)
        return _to_input(image, recipe.crop_size), torch.from_numpy(label)

    def _target_sample(self, iteration: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        recipe, rng = self._recipe, self._generator(_TARGET, iteration, slot)
        path = self._target[self._pick(_TARGET, len(self._target), iteration, slot)]
        image = self._image(path)
        valid = np.ones(image.shape[:2], dtype=np.uint8)
        if any(recipe.margins):
            valid = self._cache.get(("valid", path), lambda: self._valid(path, image.shape[:2]))
        image, valid = augment_geometry(image, valid, recipe.augmentation, rng)
        place = crop_place(valid.shape, recipe.crop_size, rng)
        valid = pad_to(valid[place], recipe.crop_size, 0).astype(bool)
        return _to_input(image[place], recipe.crop_size), torch.from_numpy(valid)

    def _image(self, path: Path) -> np.ndarray:
        return self._cache.get(("image", path), lambda: self._recipe.scale.resize(read_image(path)))

    def _valid(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """1 where a pseudo-label of the photo counts, at input scale."""
        top, bottom, left, right = self._recipe.margins
        height, width = read_image(path).shape[:2]
        valid = np.zeros((height, width), dtype=np.uint8)
        valid[top : height - bottom, left : width - right] = 1
        return resize_mask(valid, size)

    def _pick(self, domain: int, count: int, iteration: int, slot: int) -> int:
        """Which of `count` images stands at this place of the endless shuffled sequence."""
        passes, place = divmod(iteration * self._batch_size + slot, count)
        return int(np.random.default_rng([self._seed, domain, _ORDER, passes]).permutation(count)[place])

    def _generator(self, domain: int, iteration: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, domain, _SAMPLE, iteration, slot])


def read_mask(path: Path) -> np.ndarray:
    """H×W uint8 class indices from a PNG file.

    Raises:
        ValueError: the file cannot be read.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"Expected a readable 8-bit single-channel PNG mask. Received: {path}.")
    return mask


def _to_input(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """`image` (H×W×3 uint8) as 3×h×w float32, normalised, then filled with 0 up to `size`."""
    mean, std = (np.asarray(v, dtype=np.float32).reshape(3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = pad_to((image.astype(np.float32) - mean) / std, size, 0.0)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def iterate(batches: TrainingBatches, start: int, workers: int, *, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches from iteration `start` on, prepared ahead by `workers` processes (0: by this one)."""
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, len(batches)),
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
        )
    )


def _start_worker(_worker: int) -> None:
    # Workers share the machine's cores already; OpenCV's own threads would only fight over them.
    cv2.setNumThreads(0)
    # Ctrl-C reaches them, too, but ending is the training process's decision; and they must not
    # inherit a handler that keeps them from being ended by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class ValidationPhoto(NamedTuple):
    """A labelled photo to measure on."""

    name: str
    image: np.ndarray
    """H×W×3 uint8 at the photo's own size."""
    truth: np.ndarray
    """H×W uint8 class indices."""


def validation_photos(
    labelled: Sequence[tuple[Path, Path]], max_images: int | None = None
) -> Iterable[ValidationPhoto]:
    """The validation photos one by one, or `max_images` of them at even distances."""
    chosen: Sequence[int] = range(len(labelled))
    if max_images is not None and max_images < len(labelled):
        chosen = np.linspace(0, len(labelled) - 1, max_images).round().astype(int)
    for index in chosen:
        image_path, mask_path = labelled[index]
        yield ValidationPhoto(image_path.name, read_image(image_path), read_mask(mask_path))
