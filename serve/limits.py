"""What the service allows itself and others: read once, from the environment of the process.

Every field can be set by a variable: `max_queue` by `HRDA_MAX_QUEUE` and so on. Users read about them in README.md.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.hrda.checks import Expected, schema
from common.hrda.settings import PositiveWhole
from common.web.settings import Amount, DoorSettings

MOST_MEGAPIXELS = 178
"""Pillow opens no larger images without a warning of its own."""


@schema
class Limits(DoorSettings):
    """Bounds of the service. Refuses values that cannot work when it is made."""

    max_megapixels: Annotated[
        float, Field(gt=0, le=MOST_MEGAPIXELS), Expected(f"a positive number, at most {MOST_MEGAPIXELS}")
    ] = 128
    """Largest image, in millions of pixels; checked in its header, before it is decoded."""
    max_image_mb: Amount = 128
    """Largest encoded image from the instance or a URL, in megabytes."""
    max_queue: PositiveWhole = 32
    """Requests and jobs that may be computed or wait at the same time; more are answered 429."""
    max_queue_mb: Amount = 2048
    """Bytes that those may have uploaded, in megabytes; more are answered 429."""
    max_batch_size: PositiveWhole = 16
    """Largest `batch_size` of a request: images that are decoded at once."""
    max_windows: PositiveWhole = 100_000
    """Windows of both resolutions that are computed for a request whose client waits, and for one image of a job."""
    max_window_megapixels: Amount = 32
    """Windows that go through the network together, in millions of pixels: their number times that of one."""
    max_frames: PositiveWhole = 1000
    """Most frames of a video that are predicted while a client waits; a job predicts any number."""
    workers: PositiveWhole = 4
    """Requests that are prepared at the same time; the model computes one after the other."""
    jobs: PositiveWhole = 4
    """Asynchronous jobs that run at the same time."""
    request_timeout_s: Amount = 600
    """Longest wait for the answer to a request that is not asynchronous, in seconds."""
    url_timeout_s: Amount = 30
    """Longest time to fetch an image from a URL, redirects included, in seconds."""
    instance_timeout_s: Amount = 120
    """Longest time for an answer of the instance, and for each megabyte of a video from it, in seconds."""
    retry_after_s: PositiveWhole = 5
    """What a client that was refused is told to wait, in seconds."""
    job_ttl_s: PositiveWhole = 900
    """How long the results of a job are kept when nobody asks for them, in seconds."""
    stuck_s: Amount = 900
    """Longest time for one batch of windows, in seconds, after which the service says that it does not live."""
    drain_s: Amount = 30
    """How long a shutdown waits for what is being computed, in seconds."""
    allow_compile: bool = False
    """Let requests ask for `compile`. While the network is compiled, for a minute or more, all others wait."""
    allow_http: bool = False
    """Fetch images from http:// too."""
    allow_private_addresses: bool = False
    """Fetch images from this machine and from private networks too. A caller can then reach what the machine can."""
    any_instance: bool = False
    """Let a request name the Supervisely instance that its ids belong to, in place of SERVER_ADDRESS."""

    @property
    def max_pixels(self) -> int:
        """Largest image in pixels."""
        return int(self.max_megapixels * 1e6)

    @property
    def max_image_bytes(self) -> int:
        """Largest encoded image in bytes."""
        return int(self.max_image_mb * 2**20)

    @property
    def max_queue_bytes(self) -> int:
        """Most bytes of all requests in the queue."""
        return int(self.max_queue_mb * 2**20)
