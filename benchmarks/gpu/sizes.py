"""How large the measured networks and images are: on a card as users have them, on a processor just large enough."""

from __future__ import annotations

from dataclasses import dataclass

from common.hrda.prediction.runtime import why_not_compiled


@dataclass(frozen=True)
class Sizes:
    """What the parts of the benchmark measure."""

    training: tuple[str, ...]
    """Cases of `benchmarks.train`, in the order of their worth."""
    encoders: tuple[str, ...]
    """Of the networks that predict."""
    crop: tuple[int, int]
    """Window of the networks that predict, and of those that are compared."""
    images: tuple[int, ...]
    """Sides of square photos to predict, the smallest first."""
    channels: int
    """Of the decoder."""
    iterations: int
    """Timed ones of each training."""
    repeats: int
    """Timed predictions of each image."""
    compiles: bool
    """Whether networks are compiled: a processor compiles for minutes."""


CARD = Sizes(
    training=("mit_b0:512x2", "mit_b5:512x2", "mit_b3:512x2", "mit_b0:1024x2", "mit_b5:1024x2", "mit_b3:1024x2"),
    encoders=("mit_b0", "mit_b5"),
    crop=(512, 512),
    images=(1024, 4096),
    channels=256,
    iterations=8,
    repeats=5,
    compiles=True,
)
TINY = Sizes(
    training=("mit_b0:64x2",),
    encoders=("mit_b0",),
    crop=(64, 64),
    images=(96, 128),
    channels=8,
    iterations=1,
    repeats=1,
    compiles=False,
)


def sizes_for(device: str) -> Sizes:
    """What to measure on a device."""
    return TINY if device == "cpu" else CARD


def why_not_compiled_here(sizes: Sizes, device_type: str) -> str | None:
    """Why networks are not compiled, as a sentence; None if they are."""
    return why_not_compiled(device_type) if sizes.compiles else "networks are compiled on cards only"
