"""Bounds of the service, read from the environment."""

from dataclasses import fields
from pathlib import Path

import pytest

from common.hrda.checks import SettingsError
from serve.limits import Limits

PAGE = Path(__file__).parents[2] / "serve" / "README.md"


def test_variables_change_the_defaults_and_others_are_passed_over():
    given = {"HRDA_MAX_QUEUE": "8", "HRDA_ALLOW_HTTP": "yes", "HRDA_DRAIN_S": "2.5", "HOME": "/", "hrda_jobs": "9"}
    assert Limits.from_environment(given) == Limits(max_queue=8, allow_http=True, drain_s=2.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"HRDA_MAX_QUEU": "8"}, "did you mean 'HRDA_MAX_QUEUE'"),
        ({"HRDA_MAX_QUEUE": "many"}, "HRDA_MAX_QUEUE must be a positive whole number"),
        ({"HRDA_MAX_QUEUE": "0"}, "HRDA_MAX_QUEUE must be a positive whole number"),
        ({"HRDA_DRAIN_S": "nan"}, "HRDA_DRAIN_S must be a positive number"),
        ({"HRDA_ALLOW_HTTP": "maybe"}, "HRDA_ALLOW_HTTP must be true or false"),
        ({"HRDA_MAX_MEGAPIXELS": "900"}, "at most 178"),
    ],
)
def test_bad_variable_is_refused_by_name(given, message):
    with pytest.raises(SettingsError, match=message):
        Limits.from_environment(given)


def test_user_page_tells_every_variable_with_its_default():
    page = PAGE.read_text(encoding="utf-8")
    for field in fields(Limits):
        default = str(field.default).lower()
        assert f"| `HRDA_{field.name.upper()}` | {default} |" in page, field.name
