"""The sections of a training run's settings: optimiser, data, validation, checkpoints, computing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.data.sampling import RareClassSettings
from common.data.transforms import AugmentationSettings, InputScale
from common.hrda.settings import PRECISIONS, PlainSettings, SettingsError, closest, require

UNCHOSEN_LABELS = ("background", "ignore")


def is_count(value: Any, least: int) -> bool:
    """Whether `value` is a whole number of `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, least: float, most: float = float("inf")) -> bool:
    """Whether `value` is a number from `least` to `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True)
class OptimizerSettings(PlainSettings):
    """AdamW and its learning rate over the run."""

    lr: float = 1e-4
    """Learning rate of the encoder after the warm-up."""
    head_lr_factor: float = 10.0
    """Learning rate of the decoder as a multiple of `lr`."""
    weight_decay: float = 1e-4
    """Decay of all weights but those of norms and position blocks."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors of the gradient and of its square."""
    warmup_iterations: int = 500
    """Iterations over which the rate grows from `warmup_start_ratio` of its value to all of it."""
    warmup_start_ratio: float = 1e-6
    """Share of the rate at the very first iteration."""
    power: float = 1.0
    """Power of the polynomial by which the rate falls to 0 at the end of the run; 0 keeps it constant."""
    skip_limit: int = 20
    """An iteration whose loss or gradient is no finite number changes nothing; so many in a row end the run."""

    def __post_init__(self) -> None:
        require(is_number(self.lr, 0) and self.lr > 0, "lr", "a number above 0", self.lr)
        for name in ("head_lr_factor", "weight_decay", "power"):
            require(is_number(getattr(self, name), 0), name, "a number of 0 or more", getattr(self, name))
        betas = isinstance(self.betas, tuple) and len(self.betas) == 2 and all(is_number(b, 0) for b in self.betas)
        require(betas and max(self.betas) < 1, "betas", "two numbers from 0 to below 1", self.betas)
        require(
            is_count(self.warmup_iterations, 0),
            "warmup_iterations",
            "a whole number of 0 or more",
            self.warmup_iterations,
        )
        require(
            is_number(self.warmup_start_ratio, 0, 1),
            "warmup_start_ratio",
            "a number from 0 to 1",
            self.warmup_start_ratio,
        )
        require(is_count(self.skip_limit, 1), "skip_limit", "a whole number of 1 or more", self.skip_limit)


@dataclass(frozen=True)
class DataSettings(PlainSettings):
    """How photos and labels are read and turned into crops."""

    scale: InputScale = field(default_factory=InputScale)
    """Scale at which photos are trained on and predicted; stored in the checkpoint for serving."""
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    """Random changes of the training photos."""
    rare_class_share: float = 0.0
    """Share of the source crops that are drawn again, up to 10 times, until they hold foreground, whatever photo they
    are of; 0 is off."""
    rare_class_sampling: RareClassSettings = field(default_factory=RareClassSettings)
    """Draw photos and crops by class instead, rare classes more often; takes the place of `rare_class_share`."""
    labelled_target_share: float = 0.25
    """Share of the source crops that are of labelled target photos, where there are any."""
    unchosen_classes: str = "background"
    """What labels of classes that are not trained become: 'background', or 'ignore' for no loss there."""
    skip_broken: bool = False
    """Leave unreadable photos out, with a warning, instead of stopping."""
    workers: int = 2
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    memory_cache_mb: int = 2048
    """Decoded photos are kept in memory up to this many megabytes; 0 decodes them every time."""
    cache_dir: str | None = None
    """Folder for the masks drawn from labels; null: the folder `cache` of the run."""

    def __post_init__(self) -> None:
        require(
            is_number(self.rare_class_share, 0, 1), "rare_class_share", "a number from 0 to 1", self.rare_class_share
        )
        if self.rare_class_share > 0 and self.rare_class_sampling.mode != "off":
            raise SettingsError(
                "rare_class_share and rare_class_sampling both choose crops: set rare_class_share to 0, or "
                "rare_class_sampling.mode to off. "
                f"Received: {self.rare_class_share} and '{self.rare_class_sampling.mode}'."
            )
        require(
            is_number(self.labelled_target_share, 0, 1),
            "labelled_target_share",
            "a number from 0 to 1",
            self.labelled_target_share,
        )
        if self.unchosen_classes not in UNCHOSEN_LABELS:
            hint = closest(str(self.unchosen_classes), UNCHOSEN_LABELS)
            raise SettingsError(f"Unknown unchosen_classes '{self.unchosen_classes}': {hint}")
        require(isinstance(self.skip_broken, bool), "skip_broken", "true or false", self.skip_broken)
        for name in ("workers", "memory_cache_mb"):
            require(is_count(getattr(self, name), 0), name, "a whole number of 0 or more", getattr(self, name))
        require(
            self.cache_dir is None or isinstance(self.cache_dir, str), "cache_dir", "a folder or null", self.cache_dir
        )


@dataclass(frozen=True)
class ValidationSettings(PlainSettings):
    """When the student and the teacher are measured."""

    interval: int = 1000
    """Iterations between measurements; there is always one at the end."""
    max_images: int | None = None
    """At most so many validation photos, picked at even distances; null: all."""
    previews: int = 4
    """Pictures are written of so many validation photos and as many target photos at each measurement; 0 is off."""

    def __post_init__(self) -> None:
        require(is_count(self.interval, 1), "interval", "a whole number of 1 or more", self.interval)
        require(
            self.max_images is None or is_count(self.max_images, 1),
            "max_images",
            "a whole number of 1 or more, or null for all",
            self.max_images,
        )
        require(is_count(self.previews, 0), "previews", "a whole number of 0 or more", self.previews)


@dataclass(frozen=True)
class CheckpointSettings(PlainSettings):
    """When the run is written to disk."""

    interval: int = 1000
    """Iterations between writes of the last checkpoint; it is also written at the end and when stopped."""
    keep: int = 2
    """So many of the last states of the run are kept, each with all that going on from it needs."""

    def __post_init__(self) -> None:
        for name in ("interval", "keep"):
            require(is_count(getattr(self, name), 1), name, "a whole number of 1 or more", getattr(self, name))


@dataclass(frozen=True)
class ComputeSettings(PlainSettings):
    """How an iteration is computed: what it costs in time and memory, hardly what it results in."""

    precision: str = "auto"
    """Precision of convolutions and matrix products; weights, losses and averages are float32 in any case. 'auto':
    bfloat16 on graphics cards, float16 on those that lack it, float32 on processors."""
    tf32: bool = True
    """Whether graphics cards round what is computed in float32 to TF32 before they multiply."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile: faster iterations after some minutes; without a compiler the run
    says so and goes on without."""
    accumulate: int = 1
    """Parts of the batch that go through the network one after the other: less memory; batch norm sees one part."""
    clip_norm: float | None = None
    """The gradient of all weights is shortened to this length where it is longer; null: never."""
    activation_checkpointing: bool = False
    """Compute the encoder's blocks once more in the backward pass instead of keeping what they computed: less memory
    for about a quarter more time."""

    def __post_init__(self) -> None:
        known = ("auto", *PRECISIONS)
        if self.precision not in known:
            raise SettingsError(f"Unknown precision '{self.precision}': {closest(str(self.precision), known)}")
        for name in ("tf32", "compile", "activation_checkpointing"):
            require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        require(is_count(self.accumulate, 1), "accumulate", "a whole number of 1 or more", self.accumulate)
        require(
            self.clip_norm is None or (is_number(self.clip_norm, 0) and self.clip_norm > 0),
            "clip_norm",
            "a number above 0, or null",
            self.clip_norm,
        )
