"""Typed settings of the model, of self-training and of inference.

Every class checks itself when it is made (`common.hrda.checks`), so that a wrong value is refused, with the remedy,
before any long work starts. `from_dict` reads plain data (YAML, JSON, a checkpoint) strictly.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from common.hrda.catalogue import ANY_OF_TIMM, DEFAULT, ENCODERS, is_encoder
from common.hrda.checks import (
    ClassNames,
    Count,
    Expected,
    Fraction,
    FractionBelowOne,
    FromList,
    PlainSettings,
    SettingsError,
    closest,
    require,
    schema,
)

Preset = Literal["exact", "balanced", "fast"]
Blending = Literal["uniform", "gaussian"]
Precision = Literal["float32", "bfloat16", "float16"]
PseudoLabelRule = Literal["published", "per_class", "class_balanced"]
Mixing = Literal["class", "none"]
SkeletonLoss = Literal["recall", "cldice"]
Mode = Literal["source-only", "control", "uda", "supervised"]
PRESETS, PRECISIONS, PSEUDO_LABEL_RULES, MODES = map(get_args, (Preset, Precision, PseudoLabelRule, Mode))

PSEUDO_LABEL_VIEWS = (1, 2, 4)
SHAPING = ("encoder", "decoder_channels", "attention_channels", "attention_classwise", "fine_branch")
"""Settings of the model on which the shapes of its weights depend, besides the number of classes."""


def _encoder(name: str) -> str:
    if not is_encoder(name):
        others = f"Others of timm: {ANY_OF_TIMM}<name in timm>, in lower-case letters, digits, _ and one point."
        raise SettingsError(f"Unknown encoder '{name[:80]}': {closest(name, ENCODERS)} {others}")
    return name


Encoder = Annotated[str, AfterValidator(_encoder)]


def _views(count: int) -> int:
    if count not in PSEUDO_LABEL_VIEWS:
        raise ValueError
    return count


BACKGROUND = 0
"""Index of the class that is no finding."""
BALANCED_TRUST = 0.5
"""Probability from which the preset `balanced` trusts the context: the knee in docs/benchmarks.md."""
LONGEST_EDGE = 16384
"""Longest side in pixels of what a network may be trained on."""
PhotoFactor = Annotated[float, Field(ge=0.1, le=4)]
"""Size at which a network sees photos, as a multiple of their own."""
_LONGEST_CROP, _WIDEST_DECODER = 4096, 4096

PositiveWhole = Annotated[int, Field(gt=0)]
_Weight = Annotated[float, Field(ge=0, le=100)]
_Margin = Annotated[int, Field(ge=0, le=65535)]
_MultipleOf64, _MultipleOf8 = (Annotated[int, Field(gt=0, multiple_of=edge)] for edge in (64, 8))
CropSize = Annotated[
    tuple[_MultipleOf64, _MultipleOf64], FromList, Expected("two positive multiples of 64: height, width")
]
_TrainedEdge = Annotated[int, Field(gt=0, le=_LONGEST_CROP, multiple_of=64)]
TrainedCrop = Annotated[
    tuple[_TrainedEdge, _TrainedEdge],
    FromList,
    Expected(f"two positive multiples of 64 up to {_LONGEST_CROP}: height, width"),
]
Channels = Annotated[int, Field(ge=1, le=_WIDEST_DECODER)]
Stride = Annotated[tuple[_MultipleOf8, _MultipleOf8], FromList, Expected("two positive multiples of 8: height, width")]


def _scales(lowest: float) -> object:
    """The annotation of 1 to 8 factors from `lowest` to 4."""
    factor = Annotated[float, Field(ge=lowest, le=4)]
    text = f"1 to 8 numbers from {lowest} to 4"
    return Annotated[tuple[factor, ...], FromList, Field(min_length=1, max_length=8), Expected(text)]


@schema
class ModelSettings(PlainSettings):
    """What the network is made of. Stored in the checkpoint: serving rebuilds it from here."""

    encoder: Encoder = DEFAULT
    """Name in the catalogue of encoders, or `timm:` and the name of another in timm."""
    num_classes: Annotated[int, Field(ge=2, le=255)] = 2
    """Number of classes, background included: one class besides it at the least."""
    crop_size: TrainedCrop = (512, 512)
    """Height and width of the training crop in pixels, multiples of 64: the high-resolution
    sub-crop of half the side must lie on whole cells at every stride of the encoder."""
    decoder_channels: Channels = 256
    """Width of the decoder (DAFormer: 256). 64 makes training on a CPU possible."""
    attention_channels: Channels = 256
    """Width of the scale attention's decoder (HRDA: 256)."""
    attention_classwise: bool = True
    """One attention channel a class; False: one for all classes."""
    fine_branch: bool = False
    """Whether the high-resolution prediction is refined at stride 2 with features of the image itself, for what is 2 or
    3 pixels wide, in place of ending at stride 4 as published."""
    detail_loss_weight: Fraction = 0.1
    """λd: share of the loss that the high-resolution detail prediction alone receives."""
    dropout: FractionBelowOne = 0.1
    """Dropout before the decoder's last layer."""
    drop_path: FractionBelowOne = 0.1
    """Highest stochastic-depth rate of the encoder (it grows linearly from 0 with depth)."""


@schema
class InferenceSettings(PlainSettings):
    """How an image larger than one crop is predicted: windows, their overlap, their batches."""

    window: CropSize | None = None
    """Height and width of a window in pixels; None: the model's training crop."""
    stride: Stride | None = None
    """Distance of neighbouring windows in pixels; None: as the preset says."""
    batch_size: PositiveWhole = 4
    """How many windows go through the network at once. Bounds the memory."""
    preset: Preset = "exact"
    """What is left open above and below: 'exact' is a stride of half the window and overlapping high-resolution
    windows, as published; 'fast' lays them side by side at both resolutions, for about a quarter of the work;
    'balanced' has a stride of half the window, and high-resolution windows side by side, only where the context does
    not see one class alone: about a third of the work where most of a photo is background."""
    detail_overlap: bool | None = None
    """Whether the high-resolution windows in a crop overlap by half; None: as the preset says."""
    trust_context: Fraction | None = None
    """Probability from which the context alone is trusted: a high-resolution window in which it gives one class at
    least so much at every pixel is left out. 1: none is left out; None: as the preset says."""
    blending: Blending | None = None
    """How crops are averaged where they overlap: 'uniform' as published, 'gaussian' trusts their middles more; None: as
    the preset says."""
    flip: bool = False
    """Predict every window also mirrored left to right and average: a little better for twice the time."""
    scales: _scales(0.1) = (1.0,)
    """Predict the image at these scales and average the probabilities, which are then held for the whole image."""

    def __post_init__(self) -> None:
        if self.window is not None and self.stride is not None:
            fits = all(s <= w for s, w in zip(self.stride, self.window, strict=True))
            require(fits, "stride", f"at most the window {self.window}, or pixels would be left out", self.stride)

    def complete(self, crop_size: tuple[int, int]) -> InferenceSettings:
        """The windows for a model that was trained on crops of `crop_size` (height, width), nothing left open.

        Raises:
            SettingsError: the stride is larger than the window, which would leave pixels out.
        """
        window = self.window or tuple(crop_size)
        stride = self.stride or (window if self.preset == "fast" else (window[0] // 2, window[1] // 2))
        overlap = self.preset == "exact" if self.detail_overlap is None else self.detail_overlap
        own = {f.name: getattr(self, f.name) for f in fields(InferenceSettings)}
        is_balanced = self.preset == "balanced"
        trust = self.trust_context
        if trust is None:
            trust = BALANCED_TRUST if is_balanced else 1.0
        blending = self.blending or ("gaussian" if is_balanced else "uniform")
        complete = {"window": window, "stride": stride, "detail_overlap": overlap, "trust_context": trust}
        return InferenceSettings(**own | complete | {"blending": blending})


@schema
class SelfTrainingSettings(PlainSettings):
    """Mean teacher, pseudo-labels, ClassMix and strong augmentation (DACS as in DAFormer)."""

    alpha: Fraction = 0.99
    """Teacher's averaging factor once warmed up. The published HRDA runs use 0.999."""
    alpha_start: Fraction | None = None
    """Averaging factor from which it grows to `alpha` over `alpha_ramp_iterations`, such that the teacher follows a
    student that still changes fast, and averages over more later; None: `alpha` all along, as published."""
    alpha_ramp_iterations: Count = 0
    """Iterations over which the factor grows; needed with `alpha_start`."""
    pseudo_label_rule: PseudoLabelRule = "class_balanced"
    """'published': one weight for every target pixel, the share of pixels of the whole batch that
    reach `pseudo_label_threshold`; it starves thin classes, whose pixels hardly reach that.
    'per_class': every target pixel counts with weight 1; it takes a foreground class where that
    class reaches `class_threshold`, and the background elsewhere. 'class_balanced': each class has a
    cut of its own, found in the teacher's answers of the last iterations, at which the class gets
    the share of the pixels that `balance_source` says (class-balanced self-training, Zou et al.,
    ECCV 2018); pixels that reach none do not count."""
    pseudo_label_threshold: Fraction = 0.968
    """Probability from which a pixel counts as confident (rule 'published')."""
    class_threshold: Fraction = 0.6
    """Probability from which a pixel takes its foreground class (rule 'per_class')."""
    balance_source: Fraction = 0.5
    """Which share of the target's pixels a class gets (rule 'class_balanced'): 1 is its share in the source, 0 the
    share that the teacher expects, the mean of its probabilities; between, a geometric mean of both. Nearer 1 the
    shares cannot drift, nearer 0 they may differ from the source's."""
    balance_keep: Fraction = 0.9
    """Share of each class's pixels, its most confident ones, that count (rule 'class_balanced')."""
    pseudo_label_views: Annotated[int, AfterValidator(_views), Expected("1, 2 or 4")] = 1
    """Views of a target image that the teacher answers and whose probabilities are averaged: 1, the image as it is, as
    published; 2, mirrored left to right too; 4, each of these upside down too, for photos without an up and down. What
    the teacher sees in one view by chance does not become a label; each view costs another of the teacher's passes."""
    pseudo_label_scales: _scales(0.5) = (1.0,)
    """Scales at which the teacher answers each view, whose probabilities are averaged too; (1,) as published. Thin and
    wide shapes are each seen best at a scale of their own. A scale costs its square of a pass."""
    mixing: Mixing = "class"
    """Which pixels of a mixed image are the source's. 'class': those of half of the classes of the source batch, as
    published (ClassMix). 'none': none, the second pass sees the augmented target alone. Of two classes ClassMix draws
    one: every other image is then the source with nothing of the target but in the gaps of its thin class."""
    jitter_probability: Fraction = 0.8
    """Chance, drawn once an iteration, that the mixed images are colour jittered."""
    jitter_strength: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Range of the brightness, contrast, saturation and hue factors; 0.5 is half of the hue circle."""
    blur_probability: Fraction = 0.5
    """Chance, drawn once an iteration, that the mixed images are blurred (σ from 0.15 to 1.15)."""
    masked_weight: _Weight = 0.0
    """Weight of masked image consistency (MIC): a third pass on target images of which blocks are masked, towards the
    same pseudo-labels (in the control arm: on source images, towards their labels). 0 switches it off; published: 1."""
    mask_ratio: Fraction = 0.7
    """Share of the blocks that are masked."""
    mask_block_size: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Expected("a whole number of pixels from 1 to 4096, or null for a sixteenth of the crop"),
    ] = None
    """Side of a block in pixels; None: a sixteenth of the crop's shorter side, as published (64 of 1024)."""
    feature_distance_weight: _Weight = 0.0
    """λ of the feature distance to a frozen ImageNet encoder; 0 switches it off (published: 0.005)."""
    feature_distance_classes: ClassNames = ()
    """Names of the classes whose features are held near ImageNet's: things that ImageNet knows."""
    ignore_margins: Annotated[
        tuple[_Margin, _Margin, _Margin, _Margin],
        FromList,
        Expected("four whole numbers from 0 to 65535: top, bottom, left, right"),
    ] = (0, 0, 0, 0)
    """Rows and columns at the top, bottom, left and right of the target image whose pseudo-labels
    get weight 0 (a vignette, the bonnet of a car)."""

    def __post_init__(self) -> None:
        require(
            self.feature_distance_weight == 0 or len(self.feature_distance_classes) > 0,
            "feature_distance_classes",
            "at least the name of one class when feature_distance_weight is above 0",
            self.feature_distance_classes,
        )
        if self.alpha_start is None:
            return
        require(
            self.alpha_start <= self.alpha,
            "alpha_start",
            f"at most alpha ({self.alpha}), to which it grows",
            self.alpha_start,
        )
        require(
            self.alpha_ramp_iterations > 0,
            "alpha_ramp_iterations",
            "above 0 when alpha_start is given",
            self.alpha_ramp_iterations,
        )


@schema
class ThinSettings(PlainSettings):
    """Losses for classes that are a few pixels wide."""

    border_px: Annotated[int, Field(ge=0, le=16)] = 0
    """Pixels of source labels within so many pixels of another label count less in the cross entropy, as a person draws
    a line now wider and now narrower than it is; 0: all count alike. Middle lines are none of this."""
    border_weight: Fraction = 0.5
    """How much those pixels count."""
    skeleton_weight: _Weight = 0.0
    """Weight of a loss along the middle lines of labels and pseudo-labels, in every pass; 0 is off, 1 as published."""
    skeleton_loss: SkeletonLoss = "recall"
    """'recall': the share of the labels' tubes, middle lines dilated by 2 pixels within the label, that is found
    (skeleton recall, Kirchhoff et al., ECCV 2024). 'cldice': soft clDice (Shit et al., CVPR 2021), which also counts
    middle lines that are found and are not there, and takes several times the memory."""

    @property
    def needs_tubes(self) -> bool:
        """Whether the loss takes the tubes of labels."""
        return self.skeleton_weight > 0 and self.skeleton_loss == "recall"
