"""One model on several devices, with one queue before them."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.hrda.prediction.predictor import Work
from common.processors import available_processors
from serve.model.deployment import PYTORCH, Deployment
from serve.model.settings import ServeSettings


class Pool:
    """Deployments of one model as one: each prediction goes to the next one that is free.

    Args:
        members: of the same file and runtime, each on a device of its own, or sharing the processors.
    """

    def __init__(self, members: Sequence[Deployment]) -> None:
        first = members[0]
        self.name, self.classes, self.palette = first.name, first.classes, first.palette
        self.runtime, self.best_thresholds = first.runtime, first.best_thresholds
        self.encoder, self.crop_size, self.input_scale = first.encoder, first.crop_size, first.input_scale
        self.weights_origin = first.weights_origin
        self.device = ",".join(str(each.device) for each in members)
        self.members = tuple(members)
        self._free: queue.SimpleQueue[Deployment] = queue.SimpleQueue()
        for each in members:
            self._free.put(each)

    def predict(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As `Deployment.predict`, as many calls at a time as there are members."""
        with self._next() as member:
            return member.predict(*args, **kwargs)

    def work(self, size: tuple[int, int], settings: ServeSettings) -> Work:
        """What the prediction of an image of `size` (H, W) takes."""
        return self.members[0].work(size, settings)

    @property
    def self_check(self) -> str:
        """How what they run on compares with plain PyTorch, of each that tells something else."""
        return "; ".join(dict.fromkeys(each.self_check for each in self.members))

    @contextmanager
    def _next(self) -> Iterator[Deployment]:
        member = self._free.get()
        try:
            yield member
        finally:
            self._free.put(member)


def deployed(path: str | Path, device: str, runtime: str = PYTORCH) -> Deployment | Pool:
    """Read a model for one device, or for several with commas between, such as 'cuda:0,cuda:1'.

    Raises:
        CheckpointError, RequestError: as `Deployment.from_file`.
    """
    devices = [each.strip() for each in device.split(",")]
    if len(devices) == 1:
        return Deployment.from_file(path, device, runtime)
    if set(devices) == {"cpu"}:
        # They share the processors: more threads than that would wait for one another.
        torch.set_num_threads(max(min(torch.get_num_threads(), available_processors() // len(devices)), 1))
    return Pool([Deployment.from_file(path, each, runtime) for each in devices])
