"""Images of the Supervisely instance: fetched within bounds, decoded as in training, kept for a while.

The SDK's cache keeps decoded images on disk by nothing but their ids, so that a client gets what another one was
allowed to see; it takes images for ids from whoever sends them; and a download that failed lets the next request for
the same image wait for minutes. Here the encoded bytes are kept in memory, for the client whose token fetched them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import numpy as np
from cachetools import TTLCache
from fastapi import FastAPI
from supervisely import Api, ProjectType
from supervisely.nn.inference.cache import InferenceImageCache

from common.data.images import decode_image
from serve.errors import NotFound, RequestError, TooLarge
from serve.limits import Limits
from serve.sources.instance_api import WatchedApi
from serve.sources.unreadable import image_or_reason

KEPT_BYTES = 256 * 2**20
KEPT_S = 600
FETCHED_AHEAD = 8
"""Images that are fetched at the same time."""
MOST_ANNOUNCED = 100
"""Images that are fetched at most because a client says that it will ask for them."""


class InstanceImages(InferenceImageCache):
    """The SDK's cache with images of our own; for videos see `serve.sources.videos`."""

    def __init__(self, limits: Limits, folder: str) -> None:
        super().__init__(maxsize=256, ttl=KEPT_S, is_persistent=True, base_folder=folder)
        self._limits = limits
        self._contents: TTLCache = TTLCache(KEPT_BYTES, KEPT_S, getsizeof=len)
        self._fetching: dict[tuple, Future] = {}
        self._guard = threading.Lock()
        self._ahead = ThreadPoolExecutor(FETCHED_AHEAD, thread_name_prefix="fetch")

    def read_image(self, api: WatchedApi, image_id: int) -> np.ndarray:
        """An image: H×W×3 uint8 RGB.

        Raises:
            requests.HTTPError: the instance refuses, e.g. because there is no such image.
            TooLarge, ImageError: more than the service reads, or no image.
        """
        content = self._content(api, image_id)
        return decode_image(content, f"{image_id} of the instance", max_pixels=self._limits.max_pixels)

    def download_image(self, api: WatchedApi, image_id: int, related: bool = False) -> np.ndarray | Exception:
        """An image for the SDK's loops, or why it cannot be read, so that they go on with the others."""
        if related:
            raise RequestError("Only images are predicted, not the photos of a point cloud.")
        return image_or_reason(lambda: self.read_image(api, image_id))

    def download_images(
        self, api: WatchedApi, dataset_id: int, image_ids: Sequence[int], **_: Any
    ) -> list[np.ndarray | Exception]:
        """Images of one dataset, in the order of their ids; in place of one that cannot be read, why not."""
        return [self.download_image(api, image_id) for image_id in image_ids]

    def images(self, api: WatchedApi, image_ids: Sequence[int], sizes: Sequence[tuple[int, int]]) -> FetchedImages:
        """Images of known sizes one after the other, the next ones on their way."""
        return FetchedImages(self, api, image_ids, sizes)

    def begin(self, api: WatchedApi, image_id: int) -> Future:
        """Start to fetch an image that will soon be asked for; what fails is told when it is."""
        return self._ahead.submit(self._content, api, image_id)

    def prefetch(self, api: WatchedApi, image_ids: Sequence[int]) -> None:
        """Fetch images that will soon be asked for, as many as may be kept; what fails is told when they are."""
        wait([self.begin(api, image_id) for image_id in image_ids[:MOST_ANNOUNCED]])

    def holds(self, image_id: int) -> bool:
        """Whether the image is there for some client."""
        with self._guard:
            return any(key[-1] == image_id for key in self._contents)

    def add_cache_endpoint(self, server: FastAPI) -> None:
        """The SDK's route fetches from addresses that its caller names: see `serve.routes` for ours."""

    def add_cache_files_endpoint(self, server: FastAPI) -> None:
        """The SDK's route would let anyone say what an image of the instance looks like: there is none."""

    def _content(self, api: WatchedApi, image_id: int) -> bytes:
        key = (api.server_address, api.token, image_id)
        with self._guard:
            if (kept := self._contents.get(key)) is not None:
                return kept
            fetching = self._fetching.get(key)
            first = fetching is None
            if first:
                fetching = self._fetching[key] = Future()
        if not first:
            return fetching.result()
        try:
            content = fetch(api, "images.download", {"id": image_id}, f"Image {image_id} of the instance", self._limits)
        except BaseException as error:
            fetching.set_exception(error)
            raise
        else:
            fetching.set_result(content)
            with self._guard:
                if len(content) <= KEPT_BYTES // 4:
                    self._contents[key] = content
            return content
        finally:
            with self._guard:
                del self._fetching[key]


class FetchedImages(Sequence[np.ndarray]):
    """Images of the instance, fetched a few ahead and decoded when they are needed.

    Iterating yields in place of an image that cannot be read the reason.
    """

    def __init__(
        self,
        source: InstanceImages,
        api: WatchedApi,
        image_ids: Sequence[int],
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        self._source, self._api, self._ids = source, api, image_ids
        self.sizes = list(sizes)
        """Height and width of each by what the instance says."""

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source.read_image(self._api, self._ids[index])

    def __iter__(self) -> Iterator[np.ndarray | Exception]:
        ahead = [self._source.begin(self._api, image_id) for image_id in self._ids[1:FETCHED_AHEAD]]
        try:
            for index in range(len(self)):
                if index > 0 and index + FETCHED_AHEAD <= len(self):
                    ahead.append(self._source.begin(self._api, self._ids[index + FETCHED_AHEAD - 1]))
                yield self._source.download_image(self._api, self._ids[index])
        finally:
            for each in ahead:
                each.cancel()


def fetch(api: WatchedApi, method: str, body: dict[str, Any], name: str, limits: Limits) -> bytes:
    """An encoded image from the instance.

    Args:
        api: the instance, as the client that asks.
        method: that answers with the image.
        body: of the request to it.
        name: what an error message calls the image.
        limits: of the service.

    Raises:
        requests.HTTPError: the instance refuses.
        InstanceFailed, Stopped: as `WatchedApi.pieces`.
        TooLarge: more bytes than an image may have.
    """
    content = bytearray()
    with closing(api.pieces(method, body)) as pieces:
        for piece in pieces:
            content += piece
            if len(content) > limits.max_image_bytes:
                raise TooLarge(f"{name[0].upper()}{name[1:]} has more than {limits.max_image_mb:g} megabytes.")
    return bytes(content)


def find_images(api: Api, image_ids: list[int]) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Which images these are, and their sizes (H, W).

    Of each image `name`, `image_id`, `dataset_id` and `project_id` are found, as results tell them.

    Raises:
        KeyError: the SDK says which is not there.
    """
    infos = api.image.get_info_by_id_batch(image_ids)
    projects = {each: api.dataset.get_info_by_id(each).project_id for each in {info.dataset_id for info in infos}}
    found = [
        {
            "name": info.name,
            "image_name": info.name,
            "image_id": info.id,
            "dataset_id": info.dataset_id,
            "project_id": projects[info.dataset_id],
        }
        for info in infos
    ]
    return found, [(info.height or 0, info.width or 0) for info in infos]


def require_image_project(api: Api, project_id: int) -> None:
    """Refuse a project that is not there, or of something else than images.

    Raises:
        RequestError: it says which.
    """
    project = api.project.get_info_by_id(project_id)
    if project is None:
        raise NotFound(f"There is no project {project_id} on the instance, or it is not yours.")
    if project.type != str(ProjectType.IMAGES):
        raise RequestError(f"Only projects of images are predicted. Received: project {project_id} of {project.type}.")


def require_datasets(api: Api, project_id: int, dataset_ids: Sequence[int] | None) -> None:
    """Refuse datasets that the project does not have.

    Raises:
        NotFound: it says which.
    """
    known = {dataset.id for dataset in api.dataset.get_list(project_id, recursive=True)} if dataset_ids else set()
    unknown = [each for each in dataset_ids or () if each not in known]
    if unknown:
        raise NotFound(f"Project {project_id} has no dataset {', '.join(map(str, unknown[:10]))}.")
