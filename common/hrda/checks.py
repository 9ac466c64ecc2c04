"""The gate for what comes from outside: typed schemas, and the one place that turns a wrong value into a sentence.

A schema is a frozen dataclass made by `schema`. Bounds are said once, in its annotations, and descriptions in its
docstrings. pydantic checks strictly: "yes" is no flag, 1.0 is no count, and a number is finite. What it finds wrong
becomes a `SettingsError` that names the value, what was expected, and what came, cut to fit a line.
"""

from __future__ import annotations

import difflib
import functools
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

T = TypeVar("T")

LONGEST_RECEIVED = 80
"""Characters of a received value that a message repeats."""
_MOST_KNOWN = 40
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
IN_PART = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""For messages of other programs, of which only the names of a schema are read, as strictly as ours."""


class SettingsError(ValueError):
    """A value from outside has an unknown name or cannot work. The message says the remedy."""


class CheckpointError(ValueError):
    """A file does not hold what is asked for. The message names the file and what was expected."""


@dataclass(frozen=True)
class Expected:
    """In an annotation: what a field expects, where bounds alone do not say it."""

    text: str


Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
ClassNames = Annotated[
    tuple[str, ...],
    Strict(False),
    Expected("names of classes, such as [person, car], in quotes where they are numbers or words such as no"),
]
# Plain data has lists where settings hold tuples, which cannot change.
FromList = Strict(False)
# YAML 1.1 reads an unquoted off as false.
OffIsFalse = BeforeValidator(lambda value: "off" if value is False else value)


class _Short(reprlib.Repr):
    """A bounded look at any value: no text, list or number is formatted whole."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 4, 6, 6
        self.maxstring = self.maxother = 60

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write numbers of thousands of digits.
        return super().repr_int(value, level) if value.bit_length() < 256 else f"a number of {value.bit_length()} bits"


def received(value: Any) -> str:
    """`value` as a message repeats it: at most `LONGEST_RECEIVED` characters, whatever it is."""
    short = _Short().repr(value)
    return short if len(short) <= LONGEST_RECEIVED else f"{short[: LONGEST_RECEIVED - 1]}…"


def without_received(error: SettingsError) -> str:
    """A message up to what was received: of a file's values nothing is repeated."""
    return str(error).partition(" Received: ")[0]


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the nearest of `known`, or all of them when none is near."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name[:LONGEST_RECEIVED], known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    more = ", …" if len(known) > _MOST_KNOWN else ""
    return f"expected one of: {', '.join(sorted(known)[:_MOST_KNOWN])}{more}."


def require(condition: bool, name: str, expected: str, value: Any) -> None:
    """Refuse a value of the setting `name` unless `condition` holds: for what depends on several values.

    Raises:
        SettingsError: it says what was expected and what was received.
    """
    if not condition:
        raise SettingsError(f"{name} must be {expected}. Received: {received(value)}.")


class PlainSettings:
    """Reading from and writing to plain data, shared by all schemas."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make settings from plain, possibly nested data; keys that are left out keep their default.

        Raises:
            SettingsError: unknown key (with the nearest valid name) or bad value.
        """
        if not isinstance(data, Mapping):
            raise SettingsError(f"{cls.__name__} needs keys and values. Received: {received(data)}.")
        try:
            return _made(cls, data)
        except ValidationError as error:
            raise SettingsError(sentence(error, cls)) from None

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested data that JSON and YAML can hold (tuples become lists)."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose values are checked when it is made.

    Every field needs a docstring below it. An error in any field is a `SettingsError`.
    """
    made = checked_dataclass(frozen=True, config=_CONFIG)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            checked(self, *args, **values)
        except ValidationError as error:
            raise SettingsError(sentence(error, made)) from None

    made.__init__ = __init__
    return made


def section(cls: type[T]) -> Any:
    """The annotation of a field that is a schema itself and is read from keys with values."""

    def read(value: Any) -> T:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("not_keys", "keys with values")
        return _made(cls, value)

    return Annotated[cls, BeforeValidator(read)]


def dotted_names(cls: type) -> list[str]:
    """The dotted names of all single values of a schema."""
    names = []
    for name, info in cls.__pydantic_fields__.items():
        inner = section_of(info)
        names += [name] if inner is None else [f"{name}.{below}" for below in dotted_names(inner)]
    return names


def section_of(info: FieldInfo) -> type | None:
    """The schema that a field is; None for a single value."""
    return info.annotation if hasattr(info.annotation, "__pydantic_fields__") else None


def sentence(error: ValidationError, cls: type, spelt: Callable[[str], str] = str) -> str:
    """What is wrong first in data for the schema `cls`, for a person.

    Args:
        error: of pydantic.
        cls: the outermost schema.
        spelt: how the sender writes the name of a field.
    """
    [first, *_] = error.errors(include_url=False)
    names, owner, info = _walk(first["loc"], cls)
    names = [spelt(name) for name in names]
    path = ".".join(names)
    inside = f"In {'.'.join(names[:-1])}: " if len(names) > 1 else ""
    match first["type"]:
        case "unexpected_keyword_argument":
            return unknown(first["loc"][-1], names, owner, cls)
        case "not_keys":
            return f"{path} must be keys with values. Received: {received(first['input'])}."
        case "value_error" if isinstance(cause := first["ctx"]["error"], SettingsError):
            # Of a schema: it is of several values together.
            is_of_section = info is not None and section_of(info) is not None
            return f"In {path}: {cause}" if is_of_section else f"{inside}{cause}"
        case "missing" if len(names) == len(first["loc"]):
            return f"{inside}{names[-1]} is missing. Expected: {expected(info)}."
    if info is None:
        return unknown(first["loc"][-1] if first["loc"] else "", names, owner, cls)
    choices = _choices(info)
    if choices and all(isinstance(choice, str) for choice in choices) and not _said(info):
        hint = closest(str(first["input"])[:LONGEST_RECEIVED], choices)
        return f"{inside}Unknown {names[-1]} {received(first['input'])}: {hint}"
    return f"{inside}{names[-1]} must be {expected(info)}. Received: {received(first['input'])}."


def unknown(key: Any, path: Iterable[str], owner: type, root: type) -> str:
    """That the schema `owner`, at `path` in `root`, has no setting `key`, and what may have been meant."""
    # Half of a character, which JSON can hold, cannot be written.
    name = str(key)[:LONGEST_RECEIVED].encode(errors="replace").decode()
    elsewhere = [known for known in dotted_names(root) if "." in known and known.rpartition(".")[2] == name]
    hint = f"did you mean '{elsewhere[0]}'?" if elsewhere else closest(name, owner.__pydantic_fields__)
    if "." in name and name in dotted_names(root):
        hint = f"write it as {name.replace('.', ': {')}: …{'}' * name.count('.')}."
    # Where settings have sections, the path says where they belong.
    is_tree = any(section_of(info) for info in root.__pydantic_fields__.values())
    of = "" if is_tree else f" of {root.__name__}"
    return f"Unknown setting '{'.'.join([*path, name])}'{of}: {hint}"


def expected(info: FieldInfo) -> str:
    """What a field expects, from its annotation: the bounds are said there and nowhere else."""
    return _phrase(info.annotation, info.metadata)


def _made(cls: type[T], data: Mapping[Any, Any]) -> T:
    """An instance of a schema, with pydantic's own error, to which outer schemas add where it is."""
    for key in data:
        if not isinstance(key, str):
            raise SettingsError(f"Unknown setting {received(key)}: names are text.")
    instance = object.__new__(cls)
    cls.__init__.__wrapped__(instance, **data)
    return instance


def _plain(value: Any) -> Any:
    if isinstance(value, PlainSettings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _walk(loc: tuple[Any, ...], cls: type) -> tuple[list[str], type, FieldInfo | None]:
    """The names of fields along `loc`, the schema that the last one is of, and that field; what is inside of a single
    value (places of a list, kinds of a union) does not count."""
    names: list[str] = []
    owner, info = cls, None
    if loc and isinstance(loc[0], int):
        # An argument without its name.
        loc = (list(cls.__pydantic_fields__)[loc[0]], *loc[1:])
    for part in loc:
        within = cls.__pydantic_fields__ if info is None else getattr(section_of(info), "__pydantic_fields__", {})
        if part not in within:
            break
        owner = cls if info is None else section_of(info)
        info = within[part]
        names.append(part)
    if info is not None and section_of(info) is not None and len(names) < len(loc):
        owner = section_of(info)
    return names, owner, info


def _said(info: FieldInfo) -> bool:
    return any(isinstance(each, Expected) for each in info.metadata)


def _choices(info: FieldInfo) -> tuple[Any, ...]:
    kinds = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    named = [kind for kind in kinds if kind is not type(None)]
    return get_args(named[0]) if len(named) == 1 and get_origin(named[0]) is Literal else ()


def _phrase(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    metadata = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = [part for each in inner for part in (each.metadata if isinstance(each, FieldInfo) else [each])] + (
            metadata
        )
    for each in metadata:
        if isinstance(each, Expected):
            return each.text
    if get_origin(annotation) in (Union, types.UnionType):
        return _either([_phrase(kind) for kind in get_args(annotation)])
    if get_origin(annotation) is Literal:
        return _either([str(choice) for choice in get_args(annotation)])
    if annotation in (int, float):
        return _number("whole number" if annotation is int else "number", metadata)
    return {bool: "true or false", str: "text", type(None): "null"}.get(annotation, "keys with values")


def _either(phrases: list[str]) -> str:
    """Alternatives as a person lists them; `true or false` and `null` are three alternatives."""
    parts = [part for phrase in phrases for part in phrase.replace("true or false", "true, false").split(", ")]
    separator = ", or " if parts[-1] == "null" and parts[0] != "true" else " or "
    return ", ".join(parts[:-1]) + separator + parts[-1] if len(parts) > 1 else parts[0]


def _number(kind: str, bounds: Iterable[Any]) -> str:
    found = {
        name: getattr(bound, name)
        for bound in bounds
        for name in ("ge", "gt", "le", "lt")
        if getattr(bound, name, None) is not None
    }
    if "gt" in found and kind == "whole number" and found["gt"] == 0:
        return "a positive whole number"
    least = found.get("ge", found.get("gt"))
    most = found.get("le", found.get("lt"))
    if least is None:
        return f"a {kind}"
    if most is None:
        return f"a {kind} above {least:g}" if "gt" in found else f"a {kind} of {least:g} or more"
    low = f"above {_plain_number(least)}" if "gt" in found else _plain_number(least)
    return f"a {kind} from {low} to {'below ' if 'lt' in found else ''}{_plain_number(most)}"


def _plain_number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
