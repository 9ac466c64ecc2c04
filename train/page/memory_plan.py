"""Whether a training fits into the memory of a graphics card, and what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from common.hrda.catalogue import smaller_encoders
from common.hrda.training.memory import estimate_training_memory
from train.settings.training import TrainSettings

CONTEXT_BYTES = 2**30
"""What a process needs on a card besides tensors: the driver's context and the workspaces of its libraries."""
GAPS = 1.1
"""The allocator takes more from the card than is in use: blocks of other sizes remain between those in use."""
CROP_GRID = 64
GIB = 2**30


@dataclass(frozen=True)
class GraphicsCard:
    """A CUDA device at this moment."""

    name: str
    free: int
    """In bytes."""
    total: int
    """In bytes."""


def best_card() -> GraphicsCard | None:
    """The CUDA device with the most free memory; None if there is none."""
    cards = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        cards.append(GraphicsCard(torch.cuda.get_device_name(index), free, total))
    return max(cards, key=lambda card: card.free, default=None)


def memory_of(settings: TrainSettings) -> int:
    """Bytes that a training with `settings` takes on its device."""
    compute = settings.compute
    # 16 bits, whichever: that is all that counts here.
    reduced = torch.cuda.is_available() if compute.precision == "auto" else compute.precision != "float32"
    estimate = estimate_training_memory(
        settings.model,
        batch_size=settings.batch_size // compute.accumulate,
        adapting=settings.mode == "uda",
        reduced_precision=reduced,
        activation_checkpointing=compute.activation_checkpointing,
    )
    return round(estimate * GAPS) + CONTEXT_BYTES


def fits(settings: TrainSettings, card: GraphicsCard) -> bool:
    """Whether a training with `settings` fits into what is free on `card`."""
    return memory_of(settings) <= card.free


def describe_need(settings: TrainSettings, card: GraphicsCard | None) -> tuple[str, str]:
    """What a training takes, whether that fits, and what does if it does not.

    Returns:
        A sentence or two for the page, and their kind: 'info', 'success' or 'warning'.
    """
    height, width = settings.model.crop_size
    need = (
        f"Training {settings.model.encoder} with batch {settings.batch_size} and crops of {height} × {width} takes "
        f"about {gib(memory_of(settings))} of memory."
    )
    if card is None:
        sentence = (
            "This machine has no graphics card: it trains on its processor, and says the time after ten iterations."
        )
        return f"{need} {sentence}", "info"
    place = f"{card.name} has {gib(card.free)} free of {gib(card.total)}"
    if fits(settings, card):
        return f"{need} It fits: {place}.", "success"
    smaller = list(_smaller(settings, card))
    remedy = f"What fits: {' or '.join(smaller)}." if smaller else "Nothing fits: free the card, or use another one."
    return f"{need} That does not fit: {place}. {remedy}", "warning"


def gib(count: int) -> str:
    """Bytes in gibibytes."""
    return f"{count / GIB:.1f} GiB"


def _smaller(settings: TrainSettings, card: GraphicsCard) -> Iterator[str]:
    """Changes of one setting, each the least that makes the training fit."""
    for batch_size in range(settings.batch_size - 1, 0, -1):
        if fits(replace(settings, batch_size=batch_size), card):
            yield f"batch {batch_size}"
            break
    height, width = settings.model.crop_size
    for side in range(min(height, width) - CROP_GRID, 0, -CROP_GRID):
        crop = tuple(max(round(s * side / min(height, width) / CROP_GRID), 1) * CROP_GRID for s in (height, width))
        if fits(replace(settings, model=replace(settings.model, crop_size=crop)), card):
            yield f"crop {crop[0]} × {crop[1]}"
            break
    for encoder in smaller_encoders(settings.model.encoder):
        if fits(replace(settings, model=replace(settings.model, encoder=encoder)), card):
            yield f"model {encoder}"
            break
