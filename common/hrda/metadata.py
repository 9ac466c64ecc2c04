"""What a file says of the network in it, besides its weights: one schema for checkpoints and exported networks."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from common.hrda.checks import Count, Expected, Fraction, FromList, PlainSettings, require, schema
from common.hrda.settings import ModelSettings

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[tuple[Channel, Channel, Channel], FromList]


@schema
class NetworkMetadata(PlainSettings):
    """Classes of a network and the settings that it was trained with."""

    classes: Annotated[
        tuple[str, ...], FromList, Field(min_length=2, max_length=255), Expected("from 2 to 255 names of classes")
    ]
    """Class names by index; index 0 is the background."""
    palette: Annotated[tuple[Colour, ...], FromList, Expected("three numbers from 0 to 255 for each class")]
    """RGB colour of each class."""
    settings: dict[str, Any]
    """The run's settings as plain data, of which `model` rebuilds the network."""

    def __post_init__(self) -> None:
        require(
            len(self.palette) == len(self.classes),
            "palette",
            f"a colour for each of {len(self.classes)} classes",
            len(self.palette),
        )
        count = self.model.num_classes
        fits = len(self.classes) == count or "num_classes" not in self.settings["model"]
        require(fits, "classes", f"a name for each of {count} outputs", len(self.classes))

    @property
    def model(self) -> ModelSettings:
        """What the network is made of.

        Raises:
            SettingsError: `settings` do not say so.
        """
        return ModelSettings.from_dict(self.settings.get("model"))


@schema
class ExportMetadata(NetworkMetadata):
    """What an exported network carries."""

    best_thresholds: dict[str, Fraction] = field(default_factory=dict)
    """Probability of each class at which it was found best in training."""


@schema
class CheckpointMetadata(NetworkMetadata):
    """What one of our checkpoints carries."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures of the last validation."""
    score: Annotated[float | None, Field(allow_inf_nan=True)] = None
    """The served model's score in the last validation."""
    iteration: Count = 0
    """Iterations done."""
    serve_teacher: bool = False
    """Whether the teacher is the better one."""
