"""Images of one request: those that came with it, and whether they are still wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
from fastapi import UploadFile

from common.data.images import ImageError, decode_image, read_size
from serve.limits import Limits
from serve.sources.unreadable import image_or_reason


class Images(Protocol):
    """Images in the order of a request, decoded when they are needed."""

    sizes: Sequence[tuple[int, int]]
    """Height and width of each before it is decoded; (0, 0) where they are not known."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """H×W×3 uint8 RGB each."""


class WantedImages:
    """Images of which no further one is read once nobody wants it: the SDK's loop over images does not ask.

    Args:
        images: of a request.
        goes_on: asked before each.
    """

    def __init__(self, images: Images, goes_on: Callable[[], bool]) -> None:
        self._images, self._goes_on = images, goes_on

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[np.ndarray]:
        with closing(iter(self._images)) as images:
            while self._goes_on() and (image := next(images, None)) is not None:
                yield image


class UploadedImages(Sequence[np.ndarray]):
    """Images of one request, decoded when they are needed: what waits are the compressed bytes.

    Iterating yields in place of an image that cannot be read the reason.
    """

    def __init__(self, contents: Sequence[tuple[str, bytes]], limits: Limits) -> None:
        self._contents = list(contents)
        self._limits = limits

    @classmethod
    def read(cls, files: Sequence[UploadFile], limits: Limits) -> UploadedImages:
        """Read the files of a form."""
        return cls([(file.filename or f"file {n}", file.file.read()) for n, file in enumerate(files)], limits)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image by its header; (0, 0) where it has none that can be read."""
        return [self._size(content) for _, content in self._contents]

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> np.ndarray:
        name, content = self._contents[index]
        return decode_image(content, name, max_pixels=self._limits.max_pixels)

    def __iter__(self) -> Iterator[np.ndarray | Exception]:
        for index in range(len(self)):
            yield image_or_reason(lambda index=index: self[index])

    def _size(self, content: bytes) -> tuple[int, int]:
        try:
            width, height = read_size(content)
        except ImageError:
            width = height = 0
        # What is wrong with an image is told when its turn comes.
        return (height, width) if width * height <= self._limits.max_pixels else (0, 0)
