"""Labelled source and unlabelled target as training batches; validation photos with their truth.

Every sample is a function of (seed, iteration, place in the batch) and of nothing else: no order of
loading, number of workers or earlier iteration changes it, and a resumed run needs no replay.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.batches import Batch, PackedBatch, PackedCrops
from common.data.images import read_image
from common.data.sampling import ClassSampler
from common.data.transforms import (
    AugmentationSettings,
    InputScale,
    augment_colour,
    augment_geometry,
    crop_place,
    crop_place_holding,
    resize_mask,
    straighten,
)
from common.hrda.pixels import IGNORE_LABEL

# Streams of random numbers that must not coincide.
_SOURCE, _TARGET, _LABELLED_TARGET = 0, 1, 2
_ORDER, _SAMPLE, _CLASS = 0, 1, 2

# Share of a crop that must be foreground for the crop to count as holding some: 0.1% is a crack
# 4 px wide that runs through a quarter of the side of a crop of 256 px.
_FOREGROUND_SHARE = 0.001


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
    """Share of the labelled crops that are drawn again, up to 10 times, until they hold foreground; where photos are
    drawn by class, crops are drawn for that class instead."""
    labelled_target_share: float = 0.25
    """Share of the labelled crops that come from labelled target photos, where there are any."""
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels at the top, bottom, left and right of a target photo, before it is resized, that do not count."""


class _Labelled(NamedTuple):
    """Labelled photos that crops are drawn from."""

    domain: int
    """Number of their streams of random numbers."""
    photos: list[tuple[Path, Path]]
    sampler: ClassSampler | None


class TrainingBatches(Dataset[Batch]):
    """Item k is the batch of iteration k.

    Each domain is gone through in an order that is shuffled anew at every pass, independently of the others; labelled
    photos with a sampler are drawn by class instead. Where there are labelled target photos, an even share of the
    labelled crops is of them.

    Args:
        source: pairs of image file and mask file (PNG of class indices, same size as the image).
        target: image files, or none for training without a target.
        recipe: how photos become crops.
        batch_size: images of each domain in a batch.
        iterations: number of batches.
        seed: decides every random choice.
        cache: keeps decoded images at input scale; pass None to decode every time.
        sampler: draws source photos by class; None: each comes once a pass.
        labelled_target: pairs like those of `source`.
        labelled_target_sampler: like `sampler`, of the labelled target photos.
        part: the places in each batch that are drawn, where several processes share it; None: all.
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
        sampler: ClassSampler | None = None,
        labelled_target: Sequence[tuple[Path, Path]] = (),
        labelled_target_sampler: ClassSampler | None = None,
        part: range | None = None,
    ) -> None:
        if not source:
            raise ValueError("Training needs at least one labelled source image. Received: none.")
        self._source = _Labelled(_SOURCE, list(source), sampler)
        self._labelled_target = _Labelled(_LABELLED_TARGET, list(labelled_target), labelled_target_sampler)
        self._target = list(target)
        self._recipe = recipe
        self._batch_size, self._iterations, self._seed = batch_size, iterations, seed
        self._part = range(batch_size) if part is None else part
        self._cache = cache or MemoryCache(0)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._iterations

    def __getitem__(self, iteration: int) -> Batch:
        return self.packed(iteration).unpack(torch.device("cpu"))

    def packed(self, iteration: int) -> PackedBatch:
        """The batch of an iteration as bytes."""
        source = self._packed(iteration, self._draw_labelled)
        return PackedBatch(source, self._packed(iteration, self._draw_target) if self._target else None)

    def _packed(self, iteration: int, draw: Callable[[int, int], tuple[np.ndarray, np.ndarray, int]]) -> PackedCrops:
        crops, size = len(self._part), self._recipe.crop_size
        images = torch.empty(crops, *size, 3, dtype=torch.uint8)
        maps = torch.empty(crops, *size, dtype=torch.uint8)
        sizes = []
        for slot, image_out, map_out in zip(self._part, images.numpy(), maps.numpy(), strict=True):
            image, map_, padding = draw(iteration, slot)
            _write_padded(image, image_out, 0)
            _write_padded(map_, map_out, padding)
            sizes.append(map_.shape)
        return PackedCrops(images, maps, tuple(sizes))

    def fill_cache(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode photos and masks into the cache until all are there or it is full; `progress` gets (done, of)."""
        labelled = self._source.photos + self._labelled_target.photos
        photos = [*labelled, *((path, None) for path in self._target)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # Only this thread writes to the cache; the others decode, which OpenCV does without holding Python up.
            for done, arrays in enumerate(pool.map(self._decode, photos), 1):
                for key, array in arrays.items():
                    self._cache.get(key, lambda array=array: array)
                if self._cache.full:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return
                if progress is not None:
                    progress(done, len(photos))

    def _decode(self, photo: tuple[Path, Path | None]) -> dict[object, np.ndarray]:
        """What the cache keeps of a photo; nothing once the cache is full."""
        path, mask_path = photo
        if self._cache.full:
            return {}
        image = self._read_image(path)
        arrays = {("image", path): image}
        if mask_path is not None:
            arrays["mask", mask_path] = resize_mask(read_mask(mask_path), image.shape[:2])
        elif any(self._recipe.margins):
            arrays["valid", path] = self._valid(path, image.shape[:2])
        return arrays

    def _draw_labelled(self, iteration: int, slot: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A crop of a labelled photo (H×W×3 uint8), its class indices (H×W uint8), and the index of padding."""
        recipe, rng = self._recipe, self._generator(_SOURCE, _SAMPLE, iteration, slot)
        labelled, number = self._labelled_at(iteration * self._batch_size + slot)
        if labelled.sampler is None:
            wanted, index = None, self._pick(labelled.domain, len(labelled.photos), number)
        else:
            wanted, index = labelled.sampler.draw(self._generator(_SOURCE, _CLASS, iteration, slot))
        image_path, mask_path = labelled.photos[index]
        image = self._image(image_path)
        mask = self._cache.get(("mask", mask_path), lambda: resize_mask(read_mask(mask_path), image.shape[:2]))
        image, mask = augment_geometry(image, mask, recipe.augmentation, rng)
        if wanted is not None:
            place = labelled.sampler.place(mask, wanted, recipe.crop_size, rng)
        elif rng.random() < recipe.rare_class_share:
            foreground = (mask != 0) & (mask != IGNORE_LABEL)
            needed = _FOREGROUND_SHARE * math.prod(recipe.crop_size)
            place = crop_place_holding(foreground, recipe.crop_size, rng, needed=needed)
        else:
            place = crop_place(mask.shape, recipe.crop_size, rng)
        return augment_colour(image[place], recipe.augmentation.photometric, rng), mask[place], IGNORE_LABEL

    def _draw_target(self, iteration: int, slot: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A crop of a target photo (H×W×3 uint8), where its pseudo-labels count (H×W uint8), and 0 for padding."""
        recipe, rng = self._recipe, self._generator(_TARGET, _SAMPLE, iteration, slot)
        path = self._target[self._pick(_TARGET, len(self._target), iteration * self._batch_size + slot)]
        image = self._image(path)
        valid = np.ones(image.shape[:2], dtype=np.uint8)
        if any(recipe.margins):
            valid = self._cache.get(("valid", path), lambda: self._valid(path, image.shape[:2]))
        image, valid = augment_geometry(image, valid, recipe.augmentation, rng)
        place = crop_place(valid.shape, recipe.crop_size, rng)
        return image[place], valid[place], 0

    def _labelled_at(self, place: int) -> tuple[_Labelled, int]:
        """Whose turn it is at this place of the endless sequence of labelled crops, and how many of theirs it had."""
        share = self._recipe.labelled_target_share if self._labelled_target.photos else 0.0
        before, after = math.floor(place * share), math.floor((place + 1) * share)
        return (self._labelled_target, before) if after > before else (self._source, place - before)

    def _image(self, path: Path) -> np.ndarray:
        return self._cache.get(("image", path), lambda: self._read_image(path))

    def _read_image(self, path: Path) -> np.ndarray:
        return self._recipe.scale.resize(read_image(path))

    def _valid(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """1 where a pseudo-label of the photo counts, at input scale."""
        top, bottom, left, right = self._recipe.margins
        height, width = read_image(path).shape[:2]
        valid = np.zeros((height, width), dtype=np.uint8)
        valid[top : height - bottom, left : width - right] = 1
        return resize_mask(valid, size)

    def _pick(self, domain: int, count: int, number: int) -> int:
        """Which of `count` images stands at place `number` of the endless shuffled sequence."""
        passes, place = divmod(number, count)
        if self._orders.get(domain, (None,))[0] != passes:
            rng = np.random.default_rng([self._seed, domain, _ORDER, passes])
            self._orders[domain] = passes, rng.permutation(count)
        return int(self._orders[domain][1][place])

    def _generator(self, domain: int, purpose: int, iteration: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, domain, purpose, iteration, slot])


def read_mask(path: Path) -> np.ndarray:
    """H×W uint8 class indices from a PNG file.

    Raises:
        ValueError: the file cannot be read.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"Expected a readable 8-bit single-channel PNG mask. Received: {path}.")
    return mask


def _write_padded(array: np.ndarray, out: np.ndarray, value: int) -> None:
    """`array` (H×W or H×W×3) into `out` (h×w or h×w×3), with `value` at the bottom and right where it ends."""
    height, width = array.shape[:2]
    out[:height, :width] = straighten(array)
    out[height:] = value
    out[:height, width:] = value


class _Packed(Dataset[PackedBatch]):
    """The batches as bytes, which are what a process of a data loader copies to the one that trains."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def __getitem__(self, iteration: int) -> PackedBatch:
        return self._batches.packed(iteration)


def iterate(batches: TrainingBatches, start: int, workers: int, device: torch.device | None = None) -> Iterator[Batch]:
    """The batches from iteration `start` on, drawn ahead by `workers` processes (0: by this one).

    They are on `device`, on the CPU if that is None.
    """
    device = device or torch.device("cpu")
    packed = DataLoader(
        _Packed(batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
    )
    return (batch.unpack(device) for batch in packed)


def _start_worker(_worker: int) -> None:
    # Workers share the machine's cores already; OpenCV's own threads would only fight over them.
    cv2.setNumThreads(0)
    # Ctrl-C and the end of a terminal reach them, too, but ending is the training process's decision; and they must not
    # inherit a handler that keeps them from being ended by it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
