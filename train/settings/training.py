"""Everything a training run can be told, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import yaml

from common.hrda.settings import (
    MODES,
    InferenceSettings,
    ModelSettings,
    PlainSettings,
    SelfTrainingSettings,
    SettingsError,
    closest,
    require,
)
from train.settings.sections import (
    CheckpointSettings,
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    ValidationSettings,
    is_count,
    is_number,
)
from train.settings.yaml_text import read_yaml

RANDOM, IMAGENET, AUTO = "none", "imagenet", "auto"
"""What `pretrained` may be besides a file."""
DEFAULT_YAML = Path(__file__).parents[1] / "hyperparameters.yaml"


@dataclass(frozen=True)
class TrainSettings(PlainSettings):
    """A training run. The defaults are the crack set-up that the project starts from."""

    mode: str = "uda"
    """'source-only': supervised on the source. 'control': with a second pass on strongly augmented source in
    place of the mixed images. 'uda': HRDA. 'supervised': on a labelled target, as an upper bound."""
    iterations: int = 20000
    """Optimiser steps of the run."""
    batch_size: int = 6
    """Crops of each domain in an iteration."""
    seed: int = 0
    """Decides every random choice; equal seeds give equal runs on a CPU."""
    log_interval: int = 50
    """Iterations between progress lines and points of the curves."""
    self_training_start: float = 0.0
    """Share of the iterations that train on the source alone before self-training starts."""
    class_weights: str | tuple[float, ...] | dict[str, float] = "off"
    """Weights of the classes in every loss: 'off', 'auto' (from the shares in the source), a weight for each class
    with the background first, or weights by class name (1 for those left out)."""
    pretrained: str = RANDOM
    """What the encoder starts from: 'none' (random weights), 'imagenet' (the published ones, for non-commercial use
    only), 'auto' (these where they can be had, else random ones), or the path or URL of a file of a MiT encoder."""
    pretrained_dir: str | None = None
    """Folder in which downloaded weights are kept and looked for; null: torch's, `TORCH_HOME`/hub/checkpoints."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """What the network is made of; its number of classes follows from the chosen classes."""
    self_training: SelfTrainingSettings = field(default_factory=SelfTrainingSettings)
    """Teacher, pseudo-labels, mixing and strong augmentation."""
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    """How validation photos larger than a crop are predicted."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW and its learning rate."""
    data: DataSettings = field(default_factory=DataSettings)
    """How photos and labels are read and turned into crops."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """When the models are measured."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """When the run is written to disk."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """How an iteration is computed."""

    def __post_init__(self) -> None:
        if self.class_weights is False:
            # YAML 1.1 reads an unquoted off as false.
            object.__setattr__(self, "class_weights", "off")
        if self.pretrained is None or self.pretrained is False:
            # What YAML reads from no and null.
            object.__setattr__(self, "pretrained", RANDOM)
        if self.mode not in MODES:
            raise SettingsError(f"Unknown mode '{self.mode}': {closest(str(self.mode), MODES)}")
        for name in ("iterations", "batch_size", "log_interval"):
            require(is_count(getattr(self, name), 1), name, "a whole number of 1 or more", getattr(self, name))
        require(is_count(self.seed, 0), "seed", "a whole number of 0 or more", self.seed)
        require(
            is_number(self.self_training_start, 0, 1),
            "self_training_start",
            "a number from 0 to 1",
            self.self_training_start,
        )
        _require_class_weights(self.class_weights)
        _require_pretrained(self.pretrained)
        require(
            self.pretrained_dir is None or isinstance(self.pretrained_dir, str),
            "pretrained_dir",
            "a folder or null",
            self.pretrained_dir,
        )
        require(
            self.optimizer.warmup_iterations < self.iterations,
            "optimizer.warmup_iterations",
            f"below iterations ({self.iterations}), or the learning rate never gets to its value",
            self.optimizer.warmup_iterations,
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
        return _build(cls, data, path="")

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
        return _plain(self)

    def to_yaml(self) -> str:
        """The settings as YAML text that `from_yaml` reads."""
        return yaml.dump(self.to_dict(), sort_keys=False, Dumper=yaml.SafeDumper)

    def with_overrides(self, overrides: Sequence[str]) -> Self:
        """New settings with values replaced, each given as `key.sub=value`, the value in YAML.

        Example:
            >>> TrainSettings().with_overrides(["optimizer.lr=1e-3", "data.scale.long_edge=null"])

        Raises:
            SettingsError: not of that form, unknown key or bad value.
        """
        data = self.to_dict()
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise SettingsError(
                    f"An override must look like key=value, such as optimizer.lr=1e-3. Received: {override!r}."
                )
            place, settings, names = data, type(self), key.strip().split(".")
            for depth, name in enumerate(names[:-1]):
                settings = _nested(settings).get(name)
                if settings is None:
                    _refuse_unknown(name, ".".join(names[:depth]), place)
                    raise SettingsError(
                        f"'{'.'.join(names[: depth + 1])}' is one value and has no '{names[depth + 1]}'."
                    )
                place = place[name]
            _refuse_unknown(names[-1], ".".join(names[:-1]), place)
            place[names[-1]] = read_yaml(value)
        return self.from_dict(data)


def _require_class_weights(weights: Any) -> None:
    if isinstance(weights, str):
        if weights not in ("off", "auto"):
            raise SettingsError(
                f"class_weights must be 'off', 'auto', a list of numbers or names with numbers. Received: {weights!r}."
            )
        return
    values = weights.values() if isinstance(weights, Mapping) else weights
    valid = isinstance(weights, Mapping | tuple) and len(weights) > 0 and all(is_number(v, 0) for v in values)
    require(valid, "class_weights", "'off', 'auto', a list of numbers of 0 or more, or names with such", weights)


def _require_pretrained(pretrained: Any) -> None:
    expected = f"{RANDOM}, {IMAGENET}, {AUTO}, or the path or URL of a .pth file"
    require(isinstance(pretrained, str) and pretrained != "", "pretrained", expected, pretrained)
    is_file = "/" in pretrained or Path(pretrained).suffix != ""
    if not is_file and pretrained not in (RANDOM, IMAGENET, AUTO):
        hint = closest(pretrained, (RANDOM, IMAGENET, AUTO))
        raise SettingsError(f"Unknown pretrained '{pretrained}': {hint} A file is given with its path.")


def _nested(settings: type) -> dict[str, type]:
    """The fields of a settings class that are settings themselves."""
    return {f.name: f.default_factory for f in fields(settings) if isinstance(f.default_factory, type)}


def _hidden(settings: type) -> tuple[str, ...]:
    # The number of classes follows from the classes; two places to say it could disagree.
    return ("num_classes",) if settings is ModelSettings else ()


def _build(settings: type, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise SettingsError(f"{path or 'The settings'} must be keys with values. Received: {data!r}.")
    known = [f.name for f in fields(settings) if f.name not in _hidden(settings)]
    values: dict[str, Any] = {}
    for key, value in data.items():
        _refuse_unknown(key, path, known)
        inner = _nested(settings).get(key)
        where = f"{path}.{key}" if path else str(key)
        values[key] = _build(inner, value, where) if inner else _tuple(value)
    try:
        return settings(**values)
    except SettingsError as error:
        raise SettingsError(f"In {path}: {error}" if path else str(error)) from None
    except TypeError as error:
        raise SettingsError(f"In {path or 'the settings'}: a value is of the wrong kind ({error}).") from error


def _refuse_unknown(key: Any, path: str, known: Any) -> None:
    if key not in known:
        elsewhere = [name for name in _paths(TrainSettings) if name.rpartition(".")[2] == key]
        hint = f"did you mean '{elsewhere[0]}'?" if elsewhere else closest(str(key), list(known))
        raise SettingsError(f"Unknown setting '{f'{path}.{key}' if path else key}': {hint}")


def _paths(settings: type, path: str = "") -> list[str]:
    """The dotted names of all single values."""
    names = []
    for f in fields(settings):
        inner = _nested(settings).get(f.name)
        if inner:
            names += _paths(inner, f"{path}{f.name}.")
        elif f.name not in _hidden(settings):
            names.append(path + f.name)
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, PlainSettings):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in _hidden(type(value))}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
