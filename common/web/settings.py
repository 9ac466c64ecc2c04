"""What both apps read of the environment about who may come in, and how much they take in.

Every field can be set by a variable: `api_token` by `HRDA_API_TOKEN` and so on.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import field, fields
from functools import cache
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from common.hrda.checks import AboveZero, Expected, FromList, SettingsError, closest, schema, sentence
from common.hrda.settings import PositiveWhole

PREFIX = "HRDA_"
TOKEN = f"{PREFIX}API_TOKEN"
LEAST_TOKEN = 16
"""Characters of a token: fewer can be guessed."""

Amount = Annotated[AboveZero, Expected("a positive number")]


def _names(text: Any) -> Any:
    return [name.strip().lower() for name in text.split(",") if name.strip()] if isinstance(text, str) else text


Names = Annotated[tuple[str, ...], BeforeValidator(_names), FromList, Expected("names of hosts with commas between")]


@schema
class DoorSettings:
    """Who may come in, and how much is received. Refuses values that cannot work when it is made."""

    api_token: str | None = field(default=None, repr=False)
    """What callers must send: as `Authorization: Bearer …`, or as the password of a user of any name."""
    allowed_hosts: Names = ()
    """Names by which people and proxies reach the app, besides its address, localhost and this machine's name."""
    model_control: bool = True
    """Whether callers may deploy, freeze, train, stop a training and end the app."""
    max_connections: PositiveWhole = 256
    """Connections at the same time. For one more the one that has been without a request for longest is closed."""
    max_websockets: PositiveWhole = 64
    """Pages that are open at the same time, each with a websocket; one more is answered 429."""
    max_header_kb: PositiveWhole = 32
    """Largest head of a request (its address and headers), in kilobytes."""
    idle_timeout_s: Amount = 15
    """Longest wait for the head of a request, and for the next 16 kilobytes of its body or of the answer to be taken,
    in seconds."""
    max_json_mb: Amount = 8
    """Largest request of JSON, in megabytes."""
    max_request_mb: Amount = 512
    """Largest request with uploaded files, and largest video, in megabytes."""
    max_arriving_mb: Amount = 1024
    """Bytes of all requests that have not arrived whole yet, in megabytes; more are answered 429."""
    upload_timeout_s: Amount = 120
    """Longest time for a request's body to arrive, in seconds."""

    @property
    def max_json_bytes(self) -> int:
        """Largest request of JSON in bytes."""
        return int(self.max_json_mb * 2**20)

    @property
    def max_request_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_request_mb * 2**20)

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None, *, others_too: bool = False) -> Self:
        """The defaults, changed by variables such as `HRDA_MAX_CONNECTIONS=64`.

        Args:
            variables: in place of those of the process.
            others_too: pass over variables of that prefix that are not near to one of these, of another app.

        Raises:
            SettingsError: a variable of that prefix with an unknown name (with the nearest valid one) or a bad value.
        """
        variables = os.environ if variables is None else variables
        known = {_variable(each.name): each.name for each in fields(cls)}
        given = {name: text.strip() for name, text in variables.items() if name.startswith(PREFIX)}
        for name in given.keys() - known.keys():
            if not others_too or difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                raise SettingsError(f"Unknown variable {name!r}: {closest(name, known)}")
        if TOKEN in given:
            _check_token(given[TOKEN])
        try:
            return _reader(cls).validate_strings({known[name]: given[name] for name in given.keys() & known.keys()})
        except ValidationError as error:
            raise SettingsError(sentence(error, cls, _variable)) from None


def _check_token(token: str) -> None:
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        # The value is a secret, so no message repeats it.
        raise SettingsError(
            f"{TOKEN} must be at least {LEAST_TOKEN} letters, digits and signs without spaces. "
            'Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )


def _variable(name: str) -> str:
    return PREFIX + name.upper()


@cache
def _reader(cls: type[DoorSettings]) -> TypeAdapter[DoorSettings]:
    return TypeAdapter(cls)
