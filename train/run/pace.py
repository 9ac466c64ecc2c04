"""How long an iteration takes on this machine, measured with noise in place of photos: `python -m train.run.pace`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from common.data.choice import BACKGROUND
from common.data.datasets import Batch
from common.hrda import SettingsError
from common.hrda.out_of_memory import is_out_of_memory
from common.processors import share_processors
from train.run.device import find_device
from train.run.initial_weights import Start
from train.run.learner import Learner
from train.run.preparation import PreparedData
from train.settings.training import TrainSettings

TIMED = 3
"""Iterations that are timed on a graphics card, after one in which kernels are chosen and averages made. On a processor
one is timed, with a batch of one: there the time grows with the batch, and the memory with it."""
_BLOCK = 32
_COLOUR = (0, 0, 0)


def seconds_per_iteration(settings: TrainSettings, device: torch.device) -> float:
    """The time of an iteration without the reading of photos, which is done beside it.

    Args:
        settings: of the run; what names classes or files does not count.
        device: where to compute.

    Raises:
        SettingsError: settings that do not work on this device.
    """
    settings = settings.with_overrides(
        ["class_weights=off", "pretrained=none", "self_training_start=0", "self_training.feature_distance_weight=0"]
    )
    is_processor, batch_size = device.type == "cpu", settings.batch_size
    if is_processor:
        settings = settings.with_overrides(["batch_size=1", "compute.accumulate=1"])
    classes = (BACKGROUND, *(f"class {index}" for index in range(1, settings.model.num_classes)))
    shares = (1 / len(classes),) * len(classes)
    data = PreparedData(classes, (_COLOUR,) * len(classes), [], shares, [], [])
    learner, batch = Learner(settings, data, device, Start(), lambda _: None), _noise(settings, len(classes))
    learner.learn(batch, 0)
    _wait(device)
    begun = time.perf_counter()
    timed = 1 if is_processor else TIMED
    for iteration in range(1, timed + 1):
        learner.learn(batch, iteration)
    _wait(device)
    seconds = (time.perf_counter() - begun) / timed
    return seconds * batch_size if is_processor else seconds


def _noise(settings: TrainSettings, classes: int) -> Batch:
    """Noise with labels in blocks."""
    height, width = settings.model.crop_size
    count, generator = settings.batch_size, torch.Generator().manual_seed(0)
    images, target = torch.randn(2, count, 3, height, width, generator=generator)
    blocks = torch.randint(classes, (count, height // _BLOCK, width // _BLOCK), generator=generator)
    labels = blocks.repeat_interleave(_BLOCK, 1).repeat_interleave(_BLOCK, 2)
    if settings.mode != "uda":
        return Batch(images, labels, None, None)
    return Batch(images, labels, target, torch.ones(count, height, width, dtype=torch.bool))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(settings_file: str, device: str) -> int:
    """Print the seconds; 2 with a sentence where that is not possible."""
    share_processors()
    try:
        settings = TrainSettings.from_yaml(Path(settings_file).read_text(encoding="utf-8"))
        print(seconds_per_iteration(settings, find_device(device)))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print("memory has run out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
