"""Labelled source and unlabelled target as training batches.

Every sample is a function of (seed, iteration, place in the batch) and of nothing else: no order of
loading, number of workers or earlier iteration changes it, and a resumed run needs no replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from common.data.batches import Batch, PackedBatch, PackedCrops
from common.data.images import ImageError, read_image
from common.data.labels import LabelScaling, resize_labels, skeleton_tubes
from common.data.reading import Patience, read_labelled_photo, read_mask
from common.data.sampling import ClassSampler
from common.data.transforms import (
    AugmentationSettings,
    InputScale,
    augment_colour,
    augment_geometry,
    crop_place,
    crop_place_holding,
    straighten,
)
from common.hrda.pixels import IGNORE_LABEL
from common.processors import available_processors

# Streams of random numbers that must not coincide.
_SOURCE, _TARGET, _LABELLED_TARGET = 0, 1, 2
_ORDER, _SAMPLE, _CLASS, _REPLACED = 0, 1, 2, 3

T = TypeVar("T")
Arrays = tuple[np.ndarray, np.ndarray]

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
    label_scaling: LabelScaling = "keep_thin"
    """How labels are resized."""
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels at the top, bottom, left and right of a target photo, before it is resized, that do not count."""
    tubes: bool = False
    """Whether labelled crops come with the pixels near their middle lines."""


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
        skip_broken: whether another photo is drawn for one that cannot be read.
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
        skip_broken: bool = False,
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
        self._skip_broken = skip_broken
        self.lost: dict[Path, str] = {}
        """The photos that others are drawn for, and why."""

    def __len__(self) -> int:
        return self._iterations

    def __getitem__(self, iteration: int) -> Batch:
        return self.packed(iteration).unpack(torch.device("cpu"))

    def packed(self, iteration: int, patience: Patience | None = None) -> PackedBatch:
        """The batch of an iteration as bytes.

        Args:
            iteration: from 0.
            patience: with which what cannot be read is read again; None: it is not.

        Raises:
            ImageError: a photo cannot be read, and none is drawn for it; without patience any that cannot be read.
            MaskLost: a mask cannot be read.
        """
        source = self._packed(iteration, self._draw_labelled, patience)
        if self._recipe.tubes:
            tubes = np.stack([skeleton_tubes(labels) for labels in source.maps.numpy()])
            source = source._replace(tubes=torch.from_numpy(tubes))
        return PackedBatch(source, self._packed(iteration, self._draw_target, patience) if self._target else None)

    def _packed(
        self,
        iteration: int,
        draw: Callable[[int, int, Patience | None], tuple[np.ndarray, np.ndarray, int]],
        patience: Patience | None,
    ) -> PackedCrops:
        crops, size = len(self._part), self._recipe.crop_size
        images = torch.empty(crops, *size, 3, dtype=torch.uint8)
        maps = torch.empty(crops, *size, dtype=torch.uint8)
        sizes = []
        for slot, image_out, map_out in zip(self._part, images.numpy(), maps.numpy(), strict=True):
            image, map_, padding = draw(iteration, slot, patience)
            _write_padded(image, image_out, 0)
            _write_padded(map_, map_out, padding)
            sizes.append(map_.shape)
        return PackedCrops(images, maps, tuple(sizes))

    def fill_cache(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        stop: Callable[[], bool] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Decode photos and masks into the cache until all are there or it is full.

        Args:
            progress: gets (done, of).
            stop: ends it, once it gives True.
            patience: with which what cannot be read is read again.

        Raises:
            ImageError, MaskLost: as `packed` with patience.
        """
        labelled = self._source.photos + self._labelled_target.photos
        photos = [*labelled, *((path, None) for path in self._target)]
        with ThreadPoolExecutor(available_processors()) as pool:
            # Only this thread writes to the cache; the others decode, which OpenCV does without holding Python up.
            try:
                for done, (photo, arrays) in enumerate(zip(photos, pool.map(self._tried, photos), strict=True), 1):
                    if arrays is None:
                        # It stays out of the cache, and out of the batches too if it is lost.
                        self._read(lambda photo=photo: self._decode(photo), photo[0], patience or Patience())
                        continue
                    for key, array in arrays.items():
                        self._cache.get(key, lambda array=array: array)
                    if self._cache.full or (stop is not None and stop()):
                        return
                    if progress is not None:
                        progress(done, len(photos))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _tried(self, photo: tuple[Path, Path | None]) -> dict[object, np.ndarray] | None:
        """What the cache keeps of a photo; nothing once the cache is full; None if it cannot be read."""
        try:
            return {} if self._cache.full else self._decode(photo)
        except ImageError:
            return None

    def _decode(self, photo: tuple[Path, Path | None]) -> dict[object, np.ndarray]:
        path, mask_path = photo
        image = self._read_image(path, mask_path)
        arrays = {("image", path): image}
        if mask_path is not None:
            arrays["mask", mask_path] = self._read_labels(mask_path, image.shape[:2])
        elif any(self._recipe.margins):
            arrays["valid", path] = self._valid(path, image.shape[:2])
        return arrays

    def _draw_labelled(
        self, iteration: int, slot: int, patience: Patience | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """A crop of a labelled photo (H×W×3 uint8), its class indices (H×W uint8), and the index of padding."""
        recipe, rng = self._recipe, self._generator(_SOURCE, _SAMPLE, iteration, slot)
        labelled, number = self._labelled_at(iteration * self._batch_size + slot)
        if labelled.sampler is None:
            wanted, index = None, self._pick(labelled.domain, len(labelled.photos), number)
            alike = []
        else:
            wanted, index = labelled.sampler.draw(self._generator(_SOURCE, _CLASS, iteration, slot))
            alike = labelled.sampler.photos[wanted]
        others = (
            labelled.photos[other]
            for indices in (alike, range(len(labelled.photos)))
            for other in self._shuffled(indices, iteration, slot)
        )
        image, mask = self._first_read(self._labelled_photo, labelled.photos[index], others, patience)
        image, mask = augment_geometry(image, mask, recipe.augmentation, rng, recipe.label_scaling)
        if wanted is not None:
            place = labelled.sampler.place(mask, wanted, recipe.crop_size, rng)
        elif rng.random() < recipe.rare_class_share:
            foreground = (mask != 0) & (mask != IGNORE_LABEL)
            needed = _FOREGROUND_SHARE * math.prod(recipe.crop_size)
            place = crop_place_holding(foreground, recipe.crop_size, rng, needed=needed)
        else:
            place = crop_place(mask.shape, recipe.crop_size, rng)
        return augment_colour(image[place], recipe.augmentation.photometric, rng), mask[place], IGNORE_LABEL

    def _draw_target(self, iteration: int, slot: int, patience: Patience | None) -> tuple[np.ndarray, np.ndarray, int]:
        """A crop of a target photo (H×W×3 uint8), where its pseudo-labels count (H×W uint8), and 0 for padding."""
        recipe, rng = self._recipe, self._generator(_TARGET, _SAMPLE, iteration, slot)
        path = self._target[self._pick(_TARGET, len(self._target), iteration * self._batch_size + slot)]
        others = (self._target[other] for other in self._shuffled(range(len(self._target)), iteration, slot))
        image, valid = self._first_read(self._target_photo, path, others, patience)
        image, valid = augment_geometry(image, valid, recipe.augmentation, rng, "nearest")
        place = crop_place(valid.shape, recipe.crop_size, rng)
        return image[place], valid[place], 0

    def _labelled_at(self, place: int) -> tuple[_Labelled, int]:
        """Whose turn it is at this place of the endless sequence of labelled crops, and how many of theirs it had."""
        share = self._recipe.labelled_target_share if self._labelled_target.photos else 0.0
        before, after = math.floor(place * share), math.floor((place + 1) * share)
        return (self._labelled_target, before) if after > before else (self._source, place - before)

    def _labelled_photo(self, pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
        """A photo and its class indices, at input scale."""
        image_path, mask_path = pair
        image = self._cache.get(("image", image_path), lambda: self._read_image(image_path, mask_path))
        mask = self._cache.get(("mask", mask_path), lambda: self._read_labels(mask_path, image.shape[:2]))
        return image, mask

    def _target_photo(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """A photo, and 1 where its pseudo-labels count, at input scale."""
        image = self._cache.get(("image", path), lambda: self._read_image(path))
        if not any(self._recipe.margins):
            return image, np.ones(image.shape[:2], dtype=np.uint8)
        return image, self._cache.get(("valid", path), lambda: self._valid(path, image.shape[:2]))

    def _read_image(self, path: Path, mask_path: Path | None = None) -> np.ndarray:
        image = read_image(path) if mask_path is None else read_labelled_photo(path, mask_path)
        return self._recipe.scale.resize(image)

    def _first_read(
        self, read: Callable[[T], Arrays], photo: T, others: Iterable[T], patience: Patience | None
    ) -> Arrays:
        """What `read` gives of a photo; where that is lost and may be left out, of the first of `others` that is not.

        Raises:
            ImageError, MaskLost: as `packed`.
        """
        for one in chain([photo], others):
            path = one if isinstance(one, Path) else one[0]
            if path not in self.lost:
                found = self._read(lambda one=one: read(one), path, patience)
                if found is not None:
                    return found
        raise ImageError(f"None of the photos to draw from can be read any more. The last one: {self.lost[path]}")

    def _read(self, read: Callable[[], T], path: Path, patience: Patience | None) -> T | None:
        """What `read` gives of the photo at `path`; None if it is lost and may be left out."""
        return read() if patience is None else patience.read(read, path, self.lost if self._skip_broken else None)

    def _shuffled(self, indices: Sequence[int], iteration: int, slot: int) -> Iterator[int]:
        """Photos that may take the place of one at this place of the batch, in a random order."""
        yield from self._generator(_SOURCE, _REPLACED, iteration, slot).permutation(indices).tolist()

    def _read_labels(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Class indices of a mask file at `size`."""
        return resize_labels(read_mask(path), size, self._recipe.label_scaling)

    def _valid(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """1 where a pseudo-label of the photo counts, at input scale."""
        top, bottom, left, right = self._recipe.margins
        height, width = read_image(path).shape[:2]
        valid = np.zeros((height, width), dtype=np.uint8)
        # Margins may be wider than the photo, of which nothing counts then.
        valid[top : max(height - bottom, 0), left : max(width - right, 0)] = 1
        return resize_labels(valid, size, "nearest")

    def _pick(self, domain: int, count: int, number: int) -> int:
        """Which of `count` images stands at place `number` of the endless shuffled sequence."""
        passes, place = divmod(number, count)
        if self._orders.get(domain, (None,))[0] != passes:
            rng = np.random.default_rng([self._seed, domain, _ORDER, passes])
            self._orders[domain] = passes, rng.permutation(count)
        return int(self._orders[domain][1][place])

    def _generator(self, domain: int, purpose: int, iteration: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, domain, purpose, iteration, slot])


def _write_padded(array: np.ndarray, out: np.ndarray, value: int) -> None:
    """`array` (H×W or H×W×3) into `out` (h×w or h×w×3), with `value` at the bottom and right where it ends."""
    height, width = array.shape[:2]
    out[:height, :width] = straighten(array)
    out[height:] = value
    out[:height, width:] = value
