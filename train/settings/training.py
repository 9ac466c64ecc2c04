"""Everything a training run can be told, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from common.hrda.checks import (
    Count,
    Expected,
    Fraction,
    FromList,
    OffIsFalse,
    PlainSettings,
    SettingsError,
    closest,
    received,
    require,
    schema,
    section,
    section_of,
    unknown,
)
from common.hrda.network.downloads import FOLDER
from common.hrda.settings import InferenceSettings, Mode, ModelSettings, SelfTrainingSettings, ThinSettings
from common.plain_yaml import read_yaml
from train.settings.sections import (
    CheckpointSettings,
    ComputeSettings,
    DataSettings,
    Interval,
    OptimizerSettings,
    ValidationSettings,
)

RANDOM, IMAGENET, AUTO = "none", "imagenet", "auto"
"""What `pretrained` may be besides a file."""
_RETIRED: dict[str, tuple[Any, str]] = {
    "optimizer.betas": ([0.9, 0.999], "every run has [0.9, 0.999]"),
    "optimizer.warmup_start_ratio": (1e-6, "every run has 1.0e-06"),
    "self_training.feature_distance_min_share": (0.75, "every run has 0.75"),
    "pretrained_dir": (
        None,
        f"the owner of the machine says where downloaded weights are kept, by the variable {FOLDER} in its environment",
    ),
}
"""Former settings, which files of former runs name: the value at which they are passed over, and why they went."""
DEFAULT_YAML = Path(__file__).parents[1] / "hyperparameters.yaml"


def _pretrained(value: Any) -> Any:
    # What YAML reads from no and null.
    return RANDOM if value is None or value is False else value


def _known_pretrained(value: str) -> str:
    if not value:
        raise ValueError
    is_file = "/" in value or Path(value).suffix != ""
    if not is_file and value not in (RANDOM, IMAGENET, AUTO):
        hint = closest(value, (RANDOM, IMAGENET, AUTO))
        raise SettingsError(f"Unknown pretrained {received(value)}: {hint} A file is given with its path.")
    return value


Pretrained = Annotated[
    str,
    BeforeValidator(_pretrained),
    AfterValidator(_known_pretrained),
    Expected(f"{RANDOM}, {IMAGENET}, {AUTO}, or the path or URL of a .pth or .safetensors file"),
]
_Weight = Annotated[float, Field(ge=0, le=1000)]
ClassWeights = Annotated[
    Literal["off", "auto"]
    | Annotated[tuple[_Weight, ...], FromList, Field(min_length=1)]
    | Annotated[dict[str, _Weight], Field(min_length=1)],
    OffIsFalse,
    Expected("'off', 'auto', a list of numbers from 0 to 1000, or names with such"),
]


@schema
class TrainSettings(PlainSettings):
    """A training run. The defaults are the crack set-up that the project starts from."""

    mode: Mode = "uda"
    """'source-only': supervised on the source. 'control': with a second pass on strongly augmented source in
    place of the mixed images. 'uda': HRDA. 'supervised': on a labelled target, as an upper bound."""
    iterations: Annotated[int, Field(ge=1, le=10_000_000)] = 20000
    """Optimiser steps of the run."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 6
    """Crops of each domain in an iteration."""
    seed: Count = 0
    """Decides every random choice; equal seeds give equal runs on a CPU."""
    log_interval: Interval = 50
    """Iterations between progress lines and points of the curves."""
    self_training_start: Fraction = 0.0
    """Share of the iterations that train on the source alone before self-training starts."""
    class_weights: ClassWeights = "off"
    """Weights of the classes in every loss: 'off', 'auto' (from the shares in the source), a weight for each class
    with the background first, or weights by class name (1 for those left out)."""
    pretrained: Pretrained = AUTO
    """What the encoder starts from: 'none' (random weights), 'imagenet' (the published ones, whose licence is said
    before the training), 'auto' (these where they can be had and are not marked non-commercial, else random ones), or
    the path or URL of a file."""
    model: section(ModelSettings) = field(default_factory=ModelSettings)
    """What the network is made of; its number of classes follows from the chosen classes."""
    self_training: section(SelfTrainingSettings) = field(default_factory=SelfTrainingSettings)
    """Teacher, pseudo-labels, mixing and strong augmentation."""
    thin: section(ThinSettings) = field(default_factory=ThinSettings)
    """Losses for classes that are a few pixels wide."""
    inference: section(InferenceSettings) = field(default_factory=InferenceSettings)
    """How validation photos larger than a crop are predicted."""
    optimizer: section(OptimizerSettings) = field(default_factory=OptimizerSettings)
    """AdamW and its learning rate."""
    data: section(DataSettings) = field(default_factory=DataSettings)
    """How photos and labels are read and turned into crops."""
    validation: section(ValidationSettings) = field(default_factory=ValidationSettings)
    """When the models are measured."""
    checkpoint: section(CheckpointSettings) = field(default_factory=CheckpointSettings)
    """When the run is written to disk."""
    compute: section(ComputeSettings) = field(default_factory=ComputeSettings)
    """How an iteration is computed."""

    def __post_init__(self) -> None:
        require(
            self.optimizer.warmup_iterations < self.iterations,
            "optimizer.warmup_iterations",
            f"below iterations ({self.iterations}), or the learning rate never gets to its value",
            self.optimizer.warmup_iterations,
        )
        require(
            not isinstance(self.class_weights, tuple) or any(self.class_weights),
            "class_weights",
            "above 0 for one class at least, or nothing is learnt",
            list(self.class_weights),
        )
        require(
            self.batch_size % self.compute.accumulate == 0,
            "compute.accumulate",
            f"a number that divides batch_size ({self.batch_size})",
            self.compute.accumulate,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Settings from nested plain data; keys that are left out keep their default.

        Raises:
            SettingsError: unknown key (with the nearest valid name) or bad value; the message starts with the
                path of the key.
        """
        if not isinstance(data, Mapping):
            raise SettingsError(f"The settings must be keys with values. Received: {received(data)}.")
        return super().from_dict(_without_gone(data))

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Settings from YAML text, of which every key may be left out.

        Raises:
            SettingsError: not YAML, unknown key or bad value.
        """
        data = read_yaml(text)
        return cls.from_dict({} if data is None else data)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested data that JSON and YAML can hold."""
        plain = super().to_dict()
        del plain["model"]["num_classes"]
        return plain

    def to_yaml(self) -> str:
        """The settings as YAML text that `from_yaml` reads."""
        return yaml.dump(self.to_dict(), sort_keys=False, Dumper=yaml.SafeDumper)

    def with_overrides(self, overrides: Sequence[str]) -> Self:
        """New settings with values replaced, each given as `key.sub=value`, the value in YAML.

        Of a section the keys that are given are replaced, and the others stay.

        Example:
            >>> TrainSettings().with_overrides(["optimizer.lr=1e-3", "data.scale={long_edge: null, short_edge: null}"])

        Raises:
            SettingsError: not of that form, unknown key or bad value.
        """
        data = self.to_dict()
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise SettingsError(
                    f"An override must look like key=value, such as optimizer.lr=1e-3. Received: {received(override)}."
                )
            path = [name.strip() for name in key.split(".")]
            given = read_yaml(value)
            _require_sections(path[:-1], path)
            for name in reversed(path):
                given = {name: given}
            data = _merged(data, _without_gone(given), TrainSettings)
        return self.from_dict(data)


def _without_gone(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`data`, of which `path` is the dotted name with a dot behind it, without former settings.

    Raises:
        SettingsError: one of them says what no run does any more, or the number of classes is given.
    """
    kept = {}
    for key, value in data.items():
        name = f"{path}{key}"
        if name == "model.num_classes":
            # It follows from the classes; two places to say it could disagree.
            raise SettingsError(f"{name} follows from the chosen classes. Leave it out.")
        if name not in _RETIRED:
            kept[key] = _without_gone(value, f"{name}.") if isinstance(value, Mapping) else value
        elif value != _RETIRED[name][0]:
            raise SettingsError(
                f"{name} is no setting any more: {_RETIRED[name][1]}. Leave it out. Received: {received(value)}."
            )
    return kept


def _require_sections(outer: Sequence[str], path: Sequence[str]) -> None:
    """Refuse a name below what is one value; unknown names are refused where the value is put."""
    owner = TrainSettings
    for depth, name in enumerate(outer, 1):
        info = owner.__pydantic_fields__.get(name)
        if info is None:
            return
        owner = section_of(info)
        if owner is None:
            raise SettingsError(f"'{'.'.join(path[:depth])}' is one value and has no '{path[depth]}'.")


def _merged(data: Mapping[str, Any], given: Mapping[Any, Any], owner: type, path: tuple[str, ...] = ()) -> dict:
    """`data`, of the schema `owner` at `path`, with the values of `given`; sections are gone into."""
    merged = dict(data)
    for name, value in given.items():
        info = owner.__pydantic_fields__.get(name)
        if info is None:
            raise SettingsError(unknown(name, path, owner, TrainSettings))
        inner = section_of(info)
        if inner is not None and isinstance(value, Mapping):
            merged[name] = _merged(data[name], value, inner, (*path, name))
        else:
            merged[name] = value
    return merged
