"""What the service allows itself and others: read once, from the environment of the process.

Every field can be set by a variable: `max_queue` by `HRDA_MAX_QUEUE` and so on. Users read about them in README.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from common.hrda.settings import SettingsError, closest, require

PREFIX = "HRDA_"
MOST_MEGAPIXELS = 178
"""Pillow opens no larger images without a warning of its own."""
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Limits:
    """Bounds of the service. Refuses values that cannot work when it is made."""

    max_megapixels: float = 128
    """Largest image, in millions of pixels; checked in its header, before it is decoded."""
    max_image_mb: float = 128
    """Largest encoded image from the instance or a URL, in megabytes."""
    max_json_mb: float = 8
    """Largest request of JSON, in megabytes."""
    max_request_mb: float = 512
    """Largest request with uploaded files, and largest video, in megabytes."""
    max_queue: int = 32
    """Requests and jobs that may be computed or wait at the same time; more are answered 429."""
    max_queue_mb: float = 2048
    """Bytes that those may have uploaded, in megabytes; more are answered 429."""
    max_batch_size: int = 16
    """Largest `batch_size` of a request: images that are decoded at once."""
    max_frames: int = 1000
    """Most frames of a video that are predicted while a client waits; a job predicts any number."""
    workers: int = 4
    """Requests that are prepared at the same time; the model computes one after the other."""
    jobs: int = 4
    """Asynchronous jobs that run at the same time."""
    request_timeout_s: float = 600
    """Longest wait for the answer to a request that is not asynchronous, in seconds."""
    upload_timeout_s: float = 120
    """Longest time for a request's body to arrive, in seconds."""
    url_timeout_s: float = 30
    """Longest time to fetch an image from a URL, redirects included, in seconds."""
    retry_after_s: int = 5
    """What a client that was refused is told to wait, in seconds."""
    job_ttl_s: int = 900
    """How long the results of a job are kept when nobody asks for them, in seconds."""
    drain_s: float = 30
    """How long a shutdown waits for what is being computed, in seconds."""
    allow_http: bool = False
    """Fetch images from http:// too."""
    allow_private_addresses: bool = False
    """Fetch images from this machine and from private networks too. A caller can then reach what the machine can."""
    any_instance: bool = False
    """Let a request name the Supervisely instance that its ids belong to, in place of SERVER_ADDRESS."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                require(isinstance(value, bool), field.name, "true or false", value)
            else:
                kind = int if field.type == "int" else int | float
                good = isinstance(value, kind) and not isinstance(value, bool) and 0 < value < float("inf")
                require(good, field.name, "a positive whole number" if kind is int else "a positive number", value)
        require(
            self.max_megapixels <= MOST_MEGAPIXELS, "max_megapixels", f"at most {MOST_MEGAPIXELS}", self.max_megapixels
        )

    @property
    def max_pixels(self) -> int:
        """Largest image in pixels."""
        return int(self.max_megapixels * 1e6)

    @property
    def max_image_bytes(self) -> int:
        """Largest encoded image in bytes."""
        return int(self.max_image_mb * 2**20)

    @property
    def max_request_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_request_mb * 2**20)

    @property
    def max_queue_bytes(self) -> int:
        """Most bytes of all requests in the queue."""
        return int(self.max_queue_mb * 2**20)

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Self:
        """The defaults, changed by variables such as `HRDA_MAX_QUEUE=8`.

        Args:
            variables: in place of those of the process.

        Raises:
            SettingsError: a variable of that prefix with an unknown name (with the nearest valid one) or a bad value.
        """
        variables = os.environ if variables is None else variables
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        values = {}
        for name, text in variables.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                raise SettingsError(f"Unknown variable {name!r}: {closest(name, list(known))}")
            values[known[name].name] = _read(name, text.strip(), str(known[name].type))
        return cls(**values)


def _read(name: str, text: str, kind: str) -> bool | int | float:
    if kind == "bool":
        require(text.lower() in _ON + _OFF, name, "true or false", text)
        return text.lower() in _ON
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError as error:
        expected = "a whole number" if kind == "int" else "a number"
        raise SettingsError(f"{name} must be {expected}. Received: {text!r}.") from error
