"""Typed settings of the model, of self-training and of inference.

Every class checks itself when it is made, so that a wrong value is refused, with the remedy, before
any long work starts. `from_dict` reads plain data (YAML, JSON, a checkpoint) strictly.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from common.hrda.catalogue import ENCODERS

PRESETS = ("exact", "fast")
BLENDINGS = ("uniform", "gaussian")
PRECISIONS = ("float32", "bfloat16", "float16")
PSEUDO_LABEL_RULES = ("published", "per_class", "class_balanced")
PSEUDO_LABEL_VIEWS = (1, 2, 4)
MIXINGS = ("class", "none")
MODES = ("source-only", "control", "uda", "supervised")


class SettingsError(ValueError):
    """A setting has an unknown name or a value that cannot work. The message says the remedy."""


def closest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A hint for a mistyped `name`: the nearest of `known`, or all of them when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(sorted(known))}."


def require(condition: bool, name: str, expected: str, received: Any) -> None:
    """Refuse a value of the setting `name` unless `condition` holds.

    Raises:
        SettingsError: it says what was expected and what was received.
    """
    if not condition:
        raise SettingsError(f"{name} must be {expected}. Received: {received!r}.")


def _size(name: str, value: Any, multiple: int) -> tuple[int, int]:
    """`value` as (height, width), each a positive multiple of `multiple`."""
    expected = f"two positive multiples of {multiple}: height, width"
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    require(is_pair and all(_is_int(v) for v in value), name, expected, value)
    require(all(v > 0 and v % multiple == 0 for v in value), name, expected, value)
    return (int(value[0]), int(value[1]))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scales(name: str, value: object, lowest: float) -> None:
    fits = isinstance(value, tuple) and 0 < len(value) <= 8 and all(_is_number(s) and lowest <= s <= 4 for s in value)
    require(fits, name, f"1 to 8 numbers from {lowest} to 4", value)


def _fraction(name: str, value: Any) -> None:
    require(_is_number(value) and 0 <= value <= 1, name, "a number from 0 to 1", value)


class PlainSettings:
    """Reading from and writing to plain data, shared by all settings."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make settings from plain data; keys that are left out keep their default.

        Raises:
            SettingsError: unknown key (with the nearest valid name) or bad value.
        """
        if not isinstance(data, Mapping):
            raise SettingsError(f"{cls.__name__} needs keys and values. Received: {data!r}.")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise SettingsError(f"Unknown setting '{key}' of {cls.__name__}: {closest(str(key), known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})

    def to_dict(self) -> dict[str, Any]:
        """The settings as data that JSON and YAML can hold (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class ModelSettings(PlainSettings):
    """What the network is made of. Stored in the checkpoint: serving rebuilds it from here."""

    encoder: str = "mit_b5"
    """Name in the catalogue of encoders, mit_b0 (small, fast) to mit_b5 (the published one)."""
    num_classes: int = 2
    """Number of classes, background included."""
    crop_size: tuple[int, int] = (512, 512)
    """Height and width of the training crop in pixels, multiples of 64: the high-resolution
    sub-crop of half the side must lie on whole cells at every stride of the encoder."""
    decoder_channels: int = 256
    """Width of the decoder (DAFormer: 256). 64 makes training on a CPU possible."""
    attention_channels: int = 256
    """Width of the scale attention's decoder (HRDA: 256)."""
    attention_classwise: bool = True
    """One attention channel a class; False: one for all classes."""
    detail_loss_weight: float = 0.1
    """λd: share of the loss that the high-resolution detail prediction alone receives."""
    dropout: float = 0.1
    """Dropout before the decoder's last layer."""
    drop_path: float = 0.1
    """Highest stochastic-depth rate of the encoder (it grows linearly from 0 with depth)."""

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise SettingsError(f"Unknown encoder '{self.encoder}': {closest(str(self.encoder), ENCODERS)}")
        require(
            _is_int(self.num_classes) and 2 <= self.num_classes <= 255,
            "num_classes",
            "a whole number from 2 (background and one class) to 255",
            self.num_classes,
        )
        object.__setattr__(self, "crop_size", _size("crop_size", self.crop_size, 64))
        for name in ("decoder_channels", "attention_channels"):
            value = getattr(self, name)
            require(_is_int(value) and value > 0, name, "a positive whole number", value)
        require(
            isinstance(self.attention_classwise, bool), "attention_classwise", "true or false", self.attention_classwise
        )
        _fraction("detail_loss_weight", self.detail_loss_weight)
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(_is_number(value) and 0 <= value < 1, name, "a number from 0 to below 1", value)


@dataclass(frozen=True)
class InferenceSettings(PlainSettings):
    """How an image larger than one crop is predicted: windows, their overlap, their batches."""

    window: tuple[int, int] | None = None
    """Height and width of a window in pixels; None: the model's training crop."""
    stride: tuple[int, int] | None = None
    """Distance of neighbouring windows in pixels; None: as the preset says."""
    batch_size: int = 4
    """How many windows go through the network at once. Bounds the memory."""
    preset: str = "exact"
    """What is left open above and below: 'exact' is a stride of half the window and overlapping high-resolution
    windows, as published; 'fast' lays them side by side at both resolutions, for about a fifth of the work."""
    detail_overlap: bool | None = None
    """Whether the high-resolution windows in a crop overlap by half; None: as the preset says."""
    blending: str = "uniform"
    """How crops are averaged where they overlap: 'uniform' as published, 'gaussian' trusts their middles more."""
    flip: bool = False
    """Predict every window also mirrored left to right and average: a little better for twice the time."""
    scales: tuple[float, ...] = (1.0,)
    """Predict the image at these scales and average the probabilities, which are then held for the whole image."""

    def __post_init__(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", _size("window", self.window, 64))
        if self.stride is not None:
            object.__setattr__(self, "stride", _size("stride", self.stride, 8))
        if self.window is not None and self.stride is not None:
            fits = all(s <= w for s, w in zip(self.stride, self.window, strict=True))
            require(fits, "stride", f"at most the window {self.window}, or pixels would be left out", self.stride)
        require(
            _is_int(self.batch_size) and self.batch_size > 0, "batch_size", "a positive whole number", self.batch_size
        )
        require(
            self.detail_overlap is None or isinstance(self.detail_overlap, bool),
            "detail_overlap",
            "true, false or null",
            self.detail_overlap,
        )
        require(isinstance(self.flip, bool), "flip", "true or false", self.flip)
        _scales("scales", self.scales, 0.1)
        for name, known in (("preset", PRESETS), ("blending", BLENDINGS)):
            value = getattr(self, name)
            if value not in known:
                raise SettingsError(f"Unknown {name} {value!r}: {closest(str(value), known)}")

    def complete(self, crop_size: tuple[int, int]) -> InferenceSettings:
        """The windows for a model that was trained on crops of `crop_size` (height, width), nothing left open.

        Raises:
            SettingsError: the stride is larger than the window, which would leave pixels out.
        """
        is_fast = self.preset == "fast"
        window = self.window or tuple(crop_size)
        stride = self.stride or (window if is_fast else (window[0] // 2, window[1] // 2))
        overlap = not is_fast if self.detail_overlap is None else self.detail_overlap
        own = {f.name: getattr(self, f.name) for f in fields(InferenceSettings)}
        return InferenceSettings(**own | {"window": window, "stride": stride, "detail_overlap": overlap})


@dataclass(frozen=True)
class SelfTrainingSettings(PlainSettings):
    """Mean teacher, pseudo-labels, ClassMix and strong augmentation (DACS as in DAFormer)."""

    alpha: float = 0.99
    """Teacher's averaging factor once warmed up. The published HRDA runs use 0.999."""
    alpha_start: float | None = None
    """Averaging factor from which it grows to `alpha` over `alpha_ramp_iterations`, such that the teacher follows a
    student that still changes fast, and averages over more later; None: `alpha` all along, as published."""
    alpha_ramp_iterations: int = 0
    """Iterations over which the factor grows; needed with `alpha_start`."""
    pseudo_label_rule: str = "class_balanced"
    """'published': one weight for every target pixel, the share of pixels of the whole batch that
    reach `pseudo_label_threshold`; it starves thin classes, whose pixels hardly reach that.
    'per_class': every target pixel counts with weight 1; it takes a foreground class where that
    class reaches `class_threshold`, and the background elsewhere. 'class_balanced': each class has a
    cut of its own, found in the teacher's answers of the last iterations, at which the class gets
    the share of the pixels that `balance_source` says (class-balanced self-training, Zou et al.,
    ECCV 2018); pixels that reach none do not count."""
    pseudo_label_threshold: float = 0.968
    """Probability from which a pixel counts as confident (rule 'published')."""
    class_threshold: float = 0.6
    """Probability from which a pixel takes its foreground class (rule 'per_class')."""
    balance_source: float = 0.5
    """Which share of the target's pixels a class gets (rule 'class_balanced'): 1 is its share in the source, 0 the
    share that the teacher expects, the mean of its probabilities; between, a geometric mean of both. Nearer 1 the
    shares cannot drift, nearer 0 they may differ from the source's."""
    balance_keep: float = 0.9
    """Share of each class's pixels, its most confident ones, that count (rule 'class_balanced')."""
    pseudo_label_views: int = 1
    """Views of a target image that the teacher answers and whose probabilities are averaged: 1, the image as it is, as
    published; 2, mirrored left to right too; 4, each of these upside down too, for photos without an up and down. What
    the teacher sees in one view by chance does not become a label; each view costs another of the teacher's passes."""
    pseudo_label_scales: tuple[float, ...] = (1.0,)
    """Scales at which the teacher answers each view, whose probabilities are averaged too; (1,) as published. Thin and
    wide shapes are each seen best at a scale of their own. A scale costs its square of a pass."""
    mixing: str = "class"
    """Which pixels of a mixed image are the source's. 'class': those of half of the classes of the source batch, as
    published (ClassMix). 'none': none, the second pass sees the augmented target alone. Of two classes ClassMix draws
    one: every other image is then the source with nothing of the target but in the gaps of its thin class."""
    jitter_probability: float = 0.8
    """Chance, drawn once an iteration, that the mixed images are colour jittered."""
    jitter_strength: float = 0.2
    """Range of the brightness, contrast, saturation and hue factors."""
    blur_probability: float = 0.5
    """Chance, drawn once an iteration, that the mixed images are blurred (σ from 0.15 to 1.15)."""
    masked_weight: float = 0.0
    """Weight of masked image consistency (MIC): a third pass on target images of which blocks are masked, towards the
    same pseudo-labels (in the control arm: on source images, towards their labels). 0 switches it off; published: 1."""
    mask_ratio: float = 0.7
    """Share of the blocks that are masked."""
    mask_block_size: int | None = None
    """Side of a block in pixels; None: a sixteenth of the crop's shorter side, as published (64 of 1024)."""
    feature_distance_weight: float = 0.0
    """λ of the feature distance to a frozen ImageNet encoder; 0 switches it off (published: 0.005)."""
    feature_distance_classes: tuple[str, ...] = ()
    """Names of the classes whose features are held near ImageNet's: things that ImageNet knows."""
    feature_distance_min_share: float = 0.75
    """Smallest share of one class in an encoder cell for the cell to count."""
    ignore_margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Rows and columns at the top, bottom, left and right of the target image whose pseudo-labels
    get weight 0 (a vignette, the bonnet of a car)."""

    def __post_init__(self) -> None:
        for name in (
            "alpha",
            "pseudo_label_threshold",
            "class_threshold",
            "jitter_probability",
            "blur_probability",
            "feature_distance_min_share",
            "mask_ratio",
            "balance_source",
            "balance_keep",
        ):
            _fraction(name, getattr(self, name))
        if self.pseudo_label_rule not in PSEUDO_LABEL_RULES:
            hint = closest(str(self.pseudo_label_rule), PSEUDO_LABEL_RULES)
            raise SettingsError(f"Unknown pseudo_label_rule '{self.pseudo_label_rule}': {hint}")
        require(
            self.pseudo_label_views in PSEUDO_LABEL_VIEWS and not isinstance(self.pseudo_label_views, bool),
            "pseudo_label_views",
            "1, 2 or 4",
            self.pseudo_label_views,
        )
        _scales("pseudo_label_scales", self.pseudo_label_scales, 0.5)
        if self.mixing not in MIXINGS:
            raise SettingsError(f"Unknown mixing '{self.mixing}': {closest(str(self.mixing), MIXINGS)}")
        require(
            _is_number(self.jitter_strength) and 0 <= self.jitter_strength <= 0.5,
            "jitter_strength",
            "a number from 0 to 0.5 (half of the hue circle)",
            self.jitter_strength,
        )
        for name in ("feature_distance_weight", "masked_weight"):
            value = getattr(self, name)
            require(_is_number(value) and value >= 0, name, "a number of 0 or more", value)
        names = self.feature_distance_classes
        require(
            isinstance(names, tuple) and all(isinstance(name, str) for name in names),
            "feature_distance_classes",
            "names of classes, such as [person, car], in place of the indices of former settings",
            names,
        )
        require(
            self.feature_distance_weight == 0 or len(names) > 0,
            "feature_distance_classes",
            "at least the name of one class when feature_distance_weight is above 0",
            names,
        )
        self._check_ramp()
        block = self.mask_block_size
        require(
            block is None or (_is_int(block) and block > 0),
            "mask_block_size",
            "a positive whole number of pixels, or null for a sixteenth of the crop",
            block,
        )
        margins = self.ignore_margins
        require(
            len(margins) == 4 and all(_is_int(m) and m >= 0 for m in margins),
            "ignore_margins",
            "four whole numbers of 0 or more: top, bottom, left, right",
            margins,
        )

    def _check_ramp(self) -> None:
        iterations = self.alpha_ramp_iterations
        require(
            _is_int(iterations) and iterations >= 0, "alpha_ramp_iterations", "a whole number of 0 or more", iterations
        )
        if self.alpha_start is None:
            return
        _fraction("alpha_start", self.alpha_start)
        require(
            self.alpha_start <= self.alpha,
            "alpha_start",
            f"at most alpha ({self.alpha}), to which it grows",
            self.alpha_start,
        )
        require(iterations > 0, "alpha_ramp_iterations", "above 0 when alpha_start is given", iterations)
