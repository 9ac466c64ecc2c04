"""What a domain looks like before it is downloaded: sizes, labels and pixels, asked of the instance in bounded time.

Numbers of images and labels are the instance's own and exact. Sizes and pixels are read of evenly picked images, and
the facts say of how many.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from supervisely import Api, ImageInfo, ProjectMeta

from common.data.choice import RESERVED, UNCHOSEN_IS_BACKGROUND, label_indices
from common.data.project import DRAWABLE, ProjectError, draw_mask
from common.hrda.pixels import IGNORE_LABEL
from train.instance.domains import FoundDomain

RARE_SHARE = 0.03
"""A class that covers less of the photos than this is rare."""

_SAMPLES = 4
_PICKED = 100
_WHOLE_LIST = 500
"""A list of at most this many images is read whole, in one request."""
_AT_ONCE = 5
"""Images of one request to a longer list: neighbours are alike, so few of them."""
_LABELS_AT_ONCE = 10
_SECONDS_TO_DRAW = 20.0
_PIXELS_AT_ONCE = 4_000_000


class Superseded(Exception):
    """Nobody waits for these facts any more."""


@dataclass(frozen=True)
class ClassFacts:
    """One class in one domain."""

    images: int
    """Number of images with a label of it."""
    objects: int
    """Number of its labels."""
    pixel_share: float | None = None
    """Share from 0 to 1 of all pixels counted, where labels that overlap count once; None if none were counted."""

    @property
    def is_rare(self) -> bool:
        """Whether it is labelled and covers little."""
        return self.images > 0 and self.pixel_share is not None and self.pixel_share < RARE_SHARE


@dataclass(frozen=True)
class DomainFacts:
    """One domain."""

    images: int
    labelled_images: int
    """Number of images with at least one label."""
    sized_images: int
    """Of how many images the sizes were read."""
    smallest: tuple[int, int] | None
    """Width and height in pixels of the image of the smallest area; None if no size is known."""
    largest: tuple[int, int] | None
    """Width and height in pixels of the image of the largest area."""
    median_long_edge: int | None
    """Median of the longer sides in pixels."""
    classes: Mapping[str, ClassFacts] = field(default_factory=dict)
    """The classes that can be trained, in the project's order, without the background."""
    counted_images: int = 0
    """On how many images the pixels were counted."""
    undrawable: tuple[str, ...] = ()
    """Sentences about images that training would refuse."""
    samples: tuple[ImageInfo, ...] = ()
    """A few images to show."""


def domain_facts(
    api: Api, domain: FoundDomain, *, drawn: int = _PICKED, is_stale: Callable[[], bool] = lambda: False
) -> DomainFacts:
    """Ask the instance what a domain looks like.

    Long lists are not read whole: a project of 100,000 images takes about as many requests as one of 1,000.

    Args:
        api: of the instance; not to be used by another thread meanwhile, as it remembers what it was asked last.
        domain: from `find_domain`.
        drawn: on how many images, picked evenly, pixels are counted at most; 0 where labels do not matter.
        is_stale: asked between requests; once it says yes, nothing more is read.

    Raises:
        Superseded: `is_stale` said yes.
        requests.RequestException: the instance refuses or does not answer.
    """

    def post(body: dict[str, Any]) -> dict[str, Any]:
        if is_stale():
            raise Superseded
        return api.post("images.list", {"filter": [], "sort": "id", "sort_order": "asc", **body}).json()

    lists = _lists(domain)
    listed, picked = _pick(post, lists, max(drawn, _PICKED))
    sizes = sorted(
        ((image["width"], image["height"]) for image in listed if image.get("width") and image.get("height")),
        key=lambda size: size[0] * size[1],
    )
    labelled = sum(post({**body, "page": 1, "per_page": 1, "filters": [_ANY_LABEL]})["total"] for body, _ in lists)
    meta = ProjectMeta.from_json(api.project.get_meta(domain.project.id))
    names = [c.name for c in meta.obj_classes if c.name not in RESERVED and c.geometry_type in DRAWABLE]
    counts = _label_counts(api.project.get_stats(domain.project.id), domain)
    pixels = _Pixels(names[: IGNORE_LABEL - 1])
    if labelled and drawn:
        pixels.count(_annotations(api, _evenly(picked, drawn), is_stale), meta)
    shares = pixels.shares()
    return DomainFacts(
        images=domain.images_count,
        labelled_images=labelled,
        sized_images=len(sizes),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        median_long_edge=round(median(max(size) for size in sizes)) if sizes else None,
        classes={name: ClassFacts(*counts.get(name, (0, 0)), shares.get(name)) for name in names},
        counted_images=pixels.images,
        undrawable=tuple(pixels.undrawable),
        samples=tuple(filter(None, (api.image.get_info_by_id(image["id"]) for image in _evenly(picked, _SAMPLES)))),
    )


# What the instance's own pages send for "any class".
_ANY_LABEL = {"type": "objects_class", "data": {"from": 1, "to": 9999, "include": True, "classId": None}}

_Lists = list[tuple[dict[str, Any], int]]
_Post = Callable[[dict[str, Any]], dict[str, Any]]


def _lists(domain: FoundDomain) -> _Lists:
    """What to ask `images.list` for, and how many images it then knows."""
    if domain.is_whole:
        return [({"projectId": domain.project.id}, domain.images_count)]
    return [({"datasetId": one.id}, one.images_count) for one in domain.datasets.values() if one.images_count]


def _pick(post: _Post, lists: _Lists, wanted: int) -> tuple[list[dict], list[dict]]:
    """All images that were listed, and about `wanted` of them that lie evenly over all."""
    total = sum(count for _, count in lists)
    positions = np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))
    listed: list[dict] = []
    picked: list[dict] = []
    start = 0
    for body, count in lists:
        places = positions[(positions >= start) & (positions < start + count)] - start
        start += count
        if not places.size:
            continue
        if count <= _WHOLE_LIST:
            page = post({**body, "page": 1, "per_page": _WHOLE_LIST})["entities"]
            listed += page
            # The instance may have lost images since it counted them.
            picked += [page[place] for place in places if place < len(page)]
            continue
        for number in np.unique(places[::_AT_ONCE] // _AT_ONCE + 1).tolist():
            page = post({**body, "page": number, "per_page": _AT_ONCE})["entities"]
            listed += page
            picked += page
    return listed, picked


def _evenly(items: Sequence[Any], wanted: int) -> list[Any]:
    if not items:
        return []
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(wanted, len(items))).round().astype(int))]


def _label_counts(stats: dict[str, Any], domain: FoundDomain) -> dict[str, tuple[int, int]]:
    """Numbers of labelled images and of labels by class."""
    ids = {dataset.id for dataset in domain.datasets.values()}

    def by_class(entries: list[dict]) -> dict[str, int]:
        return {
            entry["objectClass"]["name"]: entry["total"]
            if domain.is_whole
            else sum(dataset["count"] for dataset in entry["datasets"] if dataset["id"] in ids)
            for entry in entries
        }

    images, objects = by_class(stats["images"]["objectClasses"]), by_class(stats["objects"]["items"])
    return {name: (count, objects.get(name, 0)) for name, count in images.items()}


def _annotations(
    api: Api, images: list[dict], is_stale: Callable[[], bool]
) -> Iterator[tuple[dict, dict[str, Any] | None]]:
    """Each image with its annotation, None without labels, until the time is over."""
    deadline = time.monotonic() + _SECONDS_TO_DRAW
    # In an order of which every beginning lies evenly over the domain too.
    images = random.Random(0).sample(images, len(images))
    for start in range(0, len(images), _LABELS_AT_ONCE):
        if time.monotonic() > deadline:
            return
        datasets: dict[int, list[dict]] = defaultdict(list)
        for image in images[start : start + _LABELS_AT_ONCE]:
            if image["labelsCount"]:
                datasets[image["datasetId"]].append(image)
            else:
                yield image, None
        for dataset_id, labelled in datasets.items():
            if is_stale():
                raise Superseded
            ids = [image["id"] for image in labelled]
            yield from zip(labelled, api.annotation.download_json_batch(dataset_id, ids), strict=True)


class _Pixels:
    """Counts pixels of masks as training draws them."""

    def __init__(self, names: list[str]) -> None:
        self.images = 0
        self.undrawable: list[str] = []
        self._names = names
        self._counts = np.zeros(256, np.int64)

    def count(self, annotations: Iterator[tuple[dict, dict[str, Any] | None]], meta: ProjectMeta) -> None:
        """Take images in."""
        indices = label_indices((c.name for c in meta.obj_classes), self._names, UNCHOSEN_IS_BACKGROUND)
        for image, annotation in annotations:
            if annotation is None:
                self._counts[0] += (image.get("width") or 0) * (image.get("height") or 0)
            else:
                size = annotation["size"]["height"], annotation["size"]["width"]
                try:
                    mask = draw_mask(annotation, meta, indices, size, name=image["name"])
                except ProjectError as error:
                    self.undrawable.append(str(error))
                    continue
                self._counts += _histogram(mask)
            self.images += 1

    def shares(self) -> dict[str, float]:
        """Share of each class; empty if nothing was counted."""
        total = self._counts.sum()
        if not total:
            return {}
        return {name: float(self._counts[i] / total) for i, name in enumerate(self._names, start=1)}


def _histogram(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    # numpy counts in a copy of 8 bytes a pixel: piece by piece, a large photo needs little.
    pieces = np.array_split(mask.ravel(), mask.size // _PIXELS_AT_ONCE + 1)
    return sum(np.bincount(piece, minlength=256) for piece in pieces)
