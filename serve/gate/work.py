"""What a request would compute, bounded before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from common.web.refusals import Refusal
from serve.errors import TooLarge
from serve.limits import Limits
from serve.model.deployment import Deployment
from serve.model.pool import Pool
from serve.model.settings import ServeSettings

_FEWER = "Choose a larger stride or window, fewer or smaller scales, or send fewer or smaller images"


MOST_PROBABILITIES = 2**30
"""Numbers in an answer of probabilities, of two bytes each."""


def require_few_probabilities(size: tuple[int, int], deployment: Deployment | Pool) -> None:
    """Refuse an image of `size` (H, W) whose probabilities of all classes are more than an answer holds.

    Raises:
        TooLarge: it says how many.
    """
    (height, width), classes = size, len(deployment.classes)
    if height * width * classes > MOST_PROBABILITIES:
        raise TooLarge(
            f"An answer holds at most {MOST_PROBABILITIES / 1e6:.0f} million probabilities. Send parts of the image. "
            f"Received: {width}×{height} pixels of {classes} classes."
        )


def require_allowed(settings: ServeSettings, limits: Limits) -> None:
    """Refuse settings that the service's owner has to allow.

    Raises:
        Refusal: it says where.
    """
    if settings.compile and not limits.allow_compile:
        raise Refusal(
            403,
            "compile is switched off, because all other requests wait while a network is compiled. Leave it out, or "
            "set HRDA_ALLOW_COMPILE=true where the service is started.",
        )


def require_bounded(
    sizes: Sequence[tuple[int, int]], settings: ServeSettings, deployment: Deployment | Pool, limits: Limits
) -> None:
    """Refuse what would take more windows or memory than the service gives to one request.

    Args:
        sizes: (H, W) of the images, or of their regions, that are predicted.
        settings: of the request.
        deployment: predicts them.
        limits: of the service.

    Raises:
        TooLarge: it says how much, and what to do.
        Refusal: as `require_allowed`.
    """
    require_allowed(settings, limits)
    works = {size: deployment.work(size, settings) for size in set(sizes)}
    for (height, width), work in works.items():
        if work.pixels > limits.max_pixels:
            raise TooLarge(
                f"An image may have at most {limits.max_megapixels:g} megapixels after it is scaled. Choose smaller "
                f"scales, or long_side. Received: {width}×{height}, which becomes {work.pixels / 1e6:.1f} megapixels."
            )
    windows = sum(works[size].windows for size in sizes)
    if windows > limits.max_windows:
        raise TooLarge(
            f"At most {limits.max_windows} windows are computed for one request. {_FEWER}. "
            f"Received: {len(sizes)} images that take {windows} windows."
        )
    complete = settings.complete(deployment.crop_size)
    height, width = complete.window
    together = complete.batch_size * height * width / 1e6
    if together > limits.max_window_megapixels:
        raise TooLarge(
            f"Windows that are computed together may have at most {limits.max_window_megapixels:g} megapixels. Choose "
            f"a smaller batch_size or window. Received: {complete.batch_size} of {width}×{height}."
        )
