"""Files that came with a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from fastapi import UploadFile

from common.data.images import decode_image
from serve.limits import Limits


class UploadedImages(Sequence[np.ndarray]):
    """Images of one request, decoded when they are needed: what waits are the compressed bytes."""

    def __init__(self, contents: Sequence[tuple[str, bytes]], limits: Limits) -> None:
        self._contents = list(contents)
        self._limits = limits
        self._goes_on: Callable[[], bool] = lambda: True

    @classmethod
    def read(cls, files: Sequence[UploadFile], limits: Limits) -> UploadedImages:
        """Read the files of a form."""
        return cls([(file.filename or f"file {n}", file.file.read()) for n, file in enumerate(files)], limits)

    def ask_before_each(self, goes_on: Callable[[], bool]) -> None:
        """End the sequence once `goes_on` says no: the SDK's loop over images does not ask."""
        self._goes_on = goes_on

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> np.ndarray:
        name, content = self._contents[index]
        return decode_image(content, name, max_pixels=self._limits.max_pixels)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            if not self._goes_on():
                return
            yield self[index]
