"""The sections of a training run's settings: optimiser, data, validation, checkpoints, computing."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from common.data.choice import Unchosen, UnchosenLabels
from common.data.labelled import TrainingScale
from common.data.labels import LabelScaling
from common.data.sampling import RareClassSettings
from common.data.transforms import AugmentationSettings, InputScale
from common.hrda.checks import (
    AtLeastOne,
    ClassNames,
    Count,
    Expected,
    Fraction,
    PlainSettings,
    SettingsError,
    schema,
    section,
)
from common.hrda.settings import Precision

Interval = Annotated[int, Field(ge=1, le=1_000_000)]
"""Iterations between what comes again and again."""


@schema
class OptimizerSettings(PlainSettings):
    """AdamW and its learning rate over the run."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate of the encoder after the warm-up."""
    head_lr_factor: Annotated[float, Field(ge=0, le=1000)] = 10.0
    """Learning rate of the decoder as a multiple of `lr`."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-4
    """Decay of all weights but those of norms and position blocks."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of vision transformers and SAM2-Hiera: each layer learns at this share of the rate of the layer behind it, so
    that the first ones keep what their weights have learnt. 0.65 to 0.9 are usual; null: all learn at `lr`."""
    warmup_iterations: Count = 500
    """Iterations over which the rate grows to its value."""
    power: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Power of the polynomial by which the rate falls to 0 at the end of the run; 0 keeps it constant."""
    skip_limit: AtLeastOne = 20
    """An iteration whose loss or gradient is no finite number changes nothing; so many in a row end the run."""


@schema
class DataSettings(PlainSettings):
    """How photos and labels are read and turned into crops."""

    scale: section(InputScale) = field(default_factory=InputScale)
    """Scale at which photos are trained on and predicted; stored in the checkpoint for serving."""
    label_scaling: LabelScaling = "keep_thin"
    """How labels get to that scale, in training, class weights, sampling and previews alike: with 'keep_thin', lines
    thinner than a pixel stay lines; with 'nearest', as in the reference, they become dots or vanish."""
    augmentation: section(AugmentationSettings) = field(default_factory=AugmentationSettings)
    """Random changes of the training photos."""
    rare_class_share: Fraction = 0.0
    """Share of the source crops that are drawn again, up to 10 times, until they hold foreground, whatever photo they
    are of; 0 is off."""
    rare_class_sampling: section(RareClassSettings) = field(default_factory=RareClassSettings)
    """Draw photos and crops by class instead, rare classes more often; takes the place of `rare_class_share`."""
    labelled_target_share: Fraction = 0.25
    """Share of the source crops that are of labelled target photos, where there are any."""
    unchosen_classes: UnchosenLabels = "background"
    """What labels of classes that are not trained become: 'background', or 'ignore' for no loss there. A class that is
    called background becomes that in any case."""
    ignored_classes: ClassNames = ()
    """Names of single classes that are not trained and become 'ignore', whatever becomes of the others."""
    skip_broken: bool = False
    """Leave photos out that cannot be read, with a warning, instead of stopping; for one that is lost during the run
    another is drawn."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    memory_cache_mb: Annotated[int, Field(ge=0, le=16_000_000)] = 2048
    """Decoded photos are kept in memory up to this many megabytes; 0 decodes them every time."""
    cache_dir: Annotated[str | None, Expected("a folder or null")] = None
    """Folder for the masks drawn from labels; null: the folder `cache` of the run."""

    @property
    def unchosen(self) -> Unchosen:
        """What labels of classes that are not trained become."""
        return Unchosen(self.unchosen_classes, self.ignored_classes)

    @property
    def training_scale(self) -> TrainingScale:
        """How large labels are when they are learnt from."""
        return TrainingScale(self.scale, self.label_scaling)

    def __post_init__(self) -> None:
        if self.rare_class_share > 0 and self.rare_class_sampling.mode != "off":
            raise SettingsError(
                "rare_class_share and rare_class_sampling both choose crops: set rare_class_share to 0, or "
                "rare_class_sampling.mode to off. "
                f"Received: {self.rare_class_share} and '{self.rare_class_sampling.mode}'."
            )


@schema
class ValidationSettings(PlainSettings):
    """When the student and the teacher are measured."""

    interval: Interval = 1000
    """Iterations between measurements; there is always one at the end."""
    max_images: Annotated[AtLeastOne | None, Expected("a whole number of 1 or more, or null for all")] = None
    """At most so many validation photos, picked at even distances; null: all."""
    previews: Annotated[int, Field(ge=0, le=1000)] = 4
    """Pictures are written of so many validation photos and as many target photos at each measurement; 0 is off."""


@schema
class CheckpointSettings(PlainSettings):
    """When the run is written to disk."""

    interval: Interval = 1000
    """Iterations between writes of the last checkpoint; it is also written at the end and when stopped."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """So many of the last states are kept. A run can be resumed from each of them."""


@schema
class ComputeSettings(PlainSettings):
    """How an iteration is computed: what it costs in time and memory, hardly what it results in."""

    precision: Literal["auto", Precision] = "auto"
    """Precision of convolutions and matrix products; weights, losses and averages are float32 in any case. 'auto':
    bfloat16 on graphics cards, float16 on those that lack it, float32 on processors."""
    tf32: bool = True
    """Whether graphics cards round what is computed in float32 to TF32 before they multiply."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile: faster iterations after some minutes; without a compiler the run
    says so and goes on without."""
    accumulate: AtLeastOne = 1
    """Parts of the batch that go through the network one after the other: less memory; batch norm sees one part."""
    clip_norm: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """The gradient of all weights is shortened to this length where it is longer; null: never."""
    activation_checkpointing: bool = False
    """Compute the encoder's blocks once more in the backward pass instead of keeping what they computed: less memory
    for about a quarter more time."""
