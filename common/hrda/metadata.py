"""What a file says of the network in it, besides its weights: one schema for checkpoints and exported networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Self

from pydantic import Field

from common.hrda.catalogue import ANY_OF_TIMM, ENCODERS, is_encoder
from common.hrda.checks import (
    CheckpointError,
    Expected,
    Fraction,
    FromList,
    PlainSettings,
    SettingsError,
    require,
    schema,
    without_received,
)
from common.hrda.pixels import Scale
from common.hrda.settings import LONGEST_EDGE, ModelSettings, PhotoFactor

_MOST_PLAIN = 1_000_000
_DEEPEST_PLAIN = 24

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[tuple[Channel, Channel, Channel], FromList]
ClassName = Annotated[str, Field(min_length=1, max_length=255)]
ScaledEdge = Annotated[Annotated[int, Field(ge=16, le=LONGEST_EDGE)] | None, Expected(f"from 16 to {LONGEST_EDGE}")]


@schema
class TrainedScale(PlainSettings):
    """The scale at which a network was trained: two edges in pixels, or a factor of the images' own resolution."""

    short_edge: ScaledEdge = None
    """Longest that the shorter side may be."""
    long_edge: ScaledEdge = None
    """Longest that the longer side may be."""
    factor: PhotoFactor = 1.0
    """Size as a multiple of the image's own, with both edges null."""

    def __post_init__(self) -> None:
        edges = (self.short_edge, self.long_edge)
        fits = edges == (None, None) or (None not in edges and self.short_edge <= self.long_edge)
        require(fits, "short_edge", "at most long_edge, or null with it", edges)
        require(self.factor == 1 or edges == (None, None), "factor", "1 where there are edges", self.factor)

    @property
    def scale(self) -> Scale:
        """As `Predictor` takes it; None: the images' own resolution."""
        if self.short_edge is None or self.long_edge is None:
            return None if self.factor == 1 else self.factor
        return (self.short_edge, self.long_edge)


@schema
class WeightsOrigin(PlainSettings):
    """Where the weights come from that an encoder started from."""

    source: Annotated[str, Field(min_length=1, max_length=300)]
    """What published them, or the file that held them."""
    licence: Annotated[str, Field(min_length=1, max_length=300)]
    """Under which they are, as their publisher states it; it holds for what is trained from them too."""


@schema
class NetworkMetadata(PlainSettings):
    """Classes of a network and the settings that it was trained with."""

    classes: Annotated[
        tuple[ClassName, ...],
        FromList,
        Field(min_length=2, max_length=255),
        Expected("from 2 to 255 names of classes, of 1 to 255 characters each"),
    ]
    """Class names by index; index 0 is the background."""
    palette: Annotated[tuple[Colour, ...], FromList, Expected("three numbers from 0 to 255 for each class")]
    """RGB colour of each class."""
    settings: dict[str, Any]
    """The run's settings as plain data, of which `model` rebuilds the network. When present, `input` is the scale
    that it was trained at, and `encoder_weights` where the weights come from that its encoder started from."""

    def __post_init__(self) -> None:
        names, count = len(self.classes), self.model.num_classes
        require(len(set(self.classes)) == names, "classes", "names of which none comes twice", self.classes)
        require(len(self.palette) == names, "palette", f"a colour for each of {names} classes", len(self.palette))
        fits = names == count or "num_classes" not in self.settings["model"]
        require(fits, "classes", f"a name for each of {count} outputs", names)
        _ = self.input_scale, self.weights_origin

    @classmethod
    def read(cls, data: Any) -> Self:
        """The metadata in plain data of a file; names that are not of this schema are passed over.

        Raises:
            CheckpointError: something in it cannot be. The message repeats nothing of the file and does not name it.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError("what describes it is no list of names with values.")
        known = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        require_plain(known)
        try:
            return cls.from_dict(known)
        except SettingsError as error:
            raise CheckpointError(without_received(error)) from error

    @property
    def model(self) -> ModelSettings:
        """What the network is made of.

        Raises:
            SettingsError: `settings` do not say so.
        """
        model = self.settings.get("model")
        if not isinstance(model, Mapping):
            raise SettingsError("settings.model must be keys with values.")
        if not model.keys() <= {each.name for each in fields(ModelSettings)}:
            raise SettingsError("settings.model has keys that this version of the app does not know: update the app.")
        if "encoder" in model and (not isinstance(model["encoder"], str) or not is_encoder(model["encoder"])):
            known = ", ".join(ENCODERS)
            raise SettingsError(f"settings.model.encoder must be one of {known}, or {ANY_OF_TIMM}<name in timm>.")
        try:
            return ModelSettings.from_dict(model)
        except SettingsError as error:
            raise SettingsError(f"settings.model.{error}") from None

    @property
    def input_scale(self) -> Scale:
        """The scale that images were brought to in training, as `Predictor` takes it; None: own resolution.

        Raises:
            SettingsError: `settings` have no such scale.
        """
        scale = self.settings.get("input")
        if scale is None:
            return None
        if not isinstance(scale, Mapping) or not scale.keys() <= {each.name for each in fields(TrainedScale)}:
            raise SettingsError("settings.input must be short_edge and long_edge, or factor.")
        try:
            return TrainedScale.from_dict(scale).scale
        except SettingsError as error:
            raise SettingsError(f"settings.input.{error}") from None

    @property
    def weights_origin(self) -> WeightsOrigin | None:
        """Where the encoder's weights came from; None where the file does not say.

        Raises:
            SettingsError: `settings` say it wrongly.
        """
        origin = self.settings.get("encoder_weights")
        if origin is None:
            return None
        if not isinstance(origin, Mapping) or origin.keys() != {"source", "licence"}:
            raise SettingsError("settings.encoder_weights must be source and licence.")
        try:
            return WeightsOrigin.from_dict(origin)
        except SettingsError as error:
            raise SettingsError(f"settings.encoder_weights.{error}") from None


@schema
class ExportMetadata(NetworkMetadata):
    """What an exported network carries."""

    best_thresholds: dict[str, Fraction] = field(default_factory=dict)
    """Probability of each class at which it was found best in training."""
    source: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$"), Expected("a SHA-256 sum")] = ""
    """SHA-256 sum of the checkpoint that was exported; empty where it is not known."""
    probe: Annotated[tuple[float, ...], FromList, Expected("numbers")] = ()
    """What PyTorch computed when it was exported, see `common.hrda.prediction.probes`; empty in older files."""

    def __post_init__(self) -> None:
        NetworkMetadata.__post_init__(self)
        fits = self.best_thresholds.keys() <= set(self.classes[1:])
        require(fits, "best_thresholds", "of classes of the network but the background", self.best_thresholds)


@schema
class CheckpointMetadata(NetworkMetadata):
    """What one of our checkpoints carries."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures of the last validation."""
    score: Annotated[float | None, Field(allow_inf_nan=True)] = None
    """The served model's score in the last validation."""
    iteration: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Iterations done."""
    serve_teacher: bool = False
    """Whether the teacher is the better one."""


def require_plain(value: Any) -> None:
    """Refuse what is not plain data of a moderate size: text, numbers, flags, and lists and mappings of them.

    Raises:
        CheckpointError: it is not. The message does not name the file.
    """
    left = _MOST_PLAIN

    def walk(inner: Any, depth: int) -> None:
        nonlocal left
        left -= 1 + (len(inner) if isinstance(inner, str) else 0)
        if left < 0 or depth > _DEEPEST_PLAIN:
            raise CheckpointError("what describes it is too large or too deeply nested.")
        if isinstance(inner, Mapping):
            for key, each in inner.items():
                if not isinstance(key, str):
                    raise CheckpointError("what describes it has names that are no text.")
                walk(key, depth + 1)
                walk(each, depth + 1)
        elif isinstance(inner, list | tuple):
            for each in inner:
                walk(each, depth + 1)
        elif not isinstance(inner, str | bool | int | float | None):
            raise CheckpointError("what describes it is no plain data.")

    walk(value, 0)
