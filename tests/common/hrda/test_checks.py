"""The gate: schemas refuse what cannot work, in bounded sentences that name place, expectation and remedy."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pytest

from common.hrda.checks import (
    LONGEST_RECEIVED,
    AboveZero,
    AtLeastOne,
    Expected,
    Fraction,
    FromList,
    PlainSettings,
    SettingsError,
    closest,
    dotted_names,
    received,
    schema,
    section,
)
from common.hrda.settings import InferenceSettings, ModelSettings, SelfTrainingSettings
from serve.limits import Limits
from serve.model.settings import ServeSettings
from train.settings.training import TrainSettings


@schema
class Inner(PlainSettings):
    """Settings below others."""

    rate: AboveZero = 1.0
    """A rate."""
    kind: Literal["slow", "fast"] = "slow"
    """A choice."""
    pair: Annotated[tuple[AtLeastOne, AtLeastOne], FromList, Expected("two whole numbers")] = (1, 2)
    """A pair."""


@schema
class Outer(PlainSettings):
    """Settings above others."""

    inner: section(Inner) = Inner()
    """The ones below."""
    share: Fraction = 0.5
    """A share."""
    flag: bool = False
    """A flag."""
    bound: AtLeastOne | None = None
    """A bound, or none."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"flag": "yes"}, "flag must be true or false. Received: 'yes'."),
        ({"flag": 1}, "flag must be true or false. Received: 1."),
        ({"share": True}, "share must be a number from 0 to 1. Received: True."),
        ({"share": math.nan}, "share must be a number from 0 to 1. Received: nan."),
        ({"inner": {"rate": math.inf}}, "In inner: rate must be a number above 0. Received: inf."),
        ({"inner": {"rate": "1"}}, "In inner: rate must be a number above 0. Received: '1'."),
        ({"inner": {"kind": "fst"}}, "In inner: Unknown kind 'fst': did you mean 'fast'?"),
        ({"inner": {"pair": [1]}}, "In inner: pair must be two whole numbers. Received: [1]."),
        ({"inner": {"pair": [1, 0]}}, "In inner: pair must be two whole numbers. Received: 0."),
        ({"inner": 3}, "inner must be keys with values. Received: 3."),
        ({"inner": {"rte": 1}}, "Unknown setting 'inner.rte': did you mean 'rate'?"),
        ({"rate": 1}, "Unknown setting 'rate': did you mean 'inner.rate'?"),
        ({"bound": 0}, "bound must be a whole number of 1 or more, or null. Received: 0."),
        ({"bound": 1.0}, "bound must be a whole number of 1 or more, or null. Received: 1.0."),
        ({3: 1}, "Unknown setting 3: names are text."),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_place(data, message) -> None:
    with pytest.raises(SettingsError) as caught:
        Outer.from_dict(data)
    assert str(caught.value) == message


def test_nested_plain_data_is_read_and_written_back() -> None:
    outer = Outer.from_dict({"inner": {"pair": [3, 4]}, "bound": 2})
    assert outer == Outer(inner=Inner(pair=(3, 4)), bound=2)
    assert Outer.from_dict(outer.to_dict()) == outer
    assert dotted_names(Outer) == ["inner.rate", "inner.kind", "inner.pair", "share", "flag", "bound"]


LARGE = {
    "text": "x" * 10**6,
    "texts": ["x" * 10**5] * 10**4,
    "keys": {str(i): "y" * 10**4 for i in range(1000)},
    "number": 1 << 20000,
    "levels": [[[[[[1]]]]]],
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_no_message_formats_more_than_a_line(value) -> None:
    assert len(received(value)) <= LONGEST_RECEIVED
    with pytest.raises(SettingsError) as caught:
        Outer.from_dict({"share": value})
    assert len(str(caught.value)) < 200
    with pytest.raises(SettingsError) as caught:
        Outer.from_dict({f"{received(value)}{'z' * 10**5}": 1})
    assert len(str(caught.value)) < 300


def test_a_hint_names_few() -> None:
    assert closest("zzzz", [f"name{index}" for index in range(1000)]).count("name") == 40


@pytest.mark.parametrize(
    "settings", [TrainSettings, ModelSettings, InferenceSettings, SelfTrainingSettings, ServeSettings, Limits]
)
def test_every_field_is_described_once(settings) -> None:
    def check(cls) -> None:
        # Fields of a class above have their description there.
        for name in cls.__annotations__:
            info = cls.__pydantic_fields__[name]
            assert info.description, f"{cls.__name__}.{name} has no docstring below it"
            if hasattr(info.annotation, "__pydantic_fields__"):
                check(info.annotation)

    check(settings)
