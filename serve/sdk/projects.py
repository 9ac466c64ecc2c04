"""Projects of an instance as collections of photos, and as a place for results.

Private names that are read: `_exclude_duplicated_predictions`, by which the SDK's mode `iou_merge` leaves out what is
labelled already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from supervisely import Annotation, Api, Bitmap, Label, ProjectMeta, Tag
from supervisely.annotation.label import LabelingStatus
from supervisely.nn.inference import Inference
from supervisely.nn.inference.inference import _exclude_duplicated_predictions, update_meta_and_ann

from common.data.images import ImageError
from serve.answers import status_and_message
from serve.batch.collection import Item
from serve.batch.command import Instance
from serve.batch.outputs import FORMATS
from serve.batch.outputs.format import OutputOptions
from serve.batch.result import Legend, Result
from serve.batch.storage import safe_name
from serve.errors import NotFound
from serve.limits import Limits
from serve.model.labels import CONFIDENCE, model_meta
from serve.sources.instance_api import WatchedApi
from serve.sources.instance_images import fetch, require_datasets, require_image_project

MARK = "hrda_batch"
"""In an annotation's custom data: which result was put there last, so that none is put there twice."""


@dataclass(frozen=True)
class Place:
    """A project of an instance, as its user reaches it. It goes to other processes, the token too."""

    address: str
    token: str = field(repr=False)
    project_id: int

    @property
    def api(self) -> Api:
        """The instance."""
        return _api(self.address, self.token)


@dataclass(frozen=True)
class ProjectCollection:
    """The images of a project, by the names of their datasets.

    Args:
        place: the project.
        dataset_ids: only those of these datasets and of what is nested in them; empty: all.
    """

    place: Place
    dataset_ids: tuple[int, ...] = ()

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        some = f", datasets {', '.join(map(str, self.dataset_ids))}" if self.dataset_ids else ""
        return f"project {self.place.project_id}{some}"

    def find(self) -> tuple[list[Item], str]:
        """As of `serve.batch.collection.Collection`."""
        api, project_id = self.place.api, self.place.project_id
        require_image_project(api, project_id)
        require_datasets(api, project_id, self.dataset_ids)
        datasets = {dataset.id: dataset for dataset in api.dataset.get_list(project_id, recursive=True)}
        items = []
        for dataset in datasets.values():
            above = [dataset]
            while above[-1].parent_id in datasets:
                above.append(datasets[above[-1].parent_id])
            if self.dataset_ids and not {each.id for each in above} & set(self.dataset_ids):
                continue
            folder = "/".join(each.name.replace("/", "_") for each in reversed(above))
            items += [
                Item(safe_name(f"{folder}/{info.name}"), f"{dataset.id}:{info.id}", info.hash or str(info.size))
                for info in api.image.get_list(dataset.id)
            ]
        if not items:
            raise NotFound(f"There is no image in {self.says}.")
        return sorted(items, key=lambda item: item.name), ""

    def read(self, item: Item) -> bytes:
        """As of `serve.batch.collection.Collection`."""
        image_id = int(item.place.partition(":")[2])
        try:
            return fetch(self.place.api, "images.download", {"id": image_id}, f"image {item.name}", _limits())
        except Exception as error:
            raise ImageError(f"Cannot fetch the image {item.name}: {status_and_message(error)[1]}") from error

    def file_of(self, item: Item) -> None:
        """As of `serve.batch.collection.Collection`."""


@dataclass(frozen=True)
class ProjectUploader:
    """Puts results on the images that they are of.

    An image's annotation is replaced as a whole, in one request that also carries a mark of the result. Whatever ends
    before or after it, the next run finds the mark or puts the result there for the first time.

    Args:
        place: the project, which has the results' classes: see `prepared`.
        mode: 'append', 'replace' or 'iou_merge', as of the SDK.
    """

    place: Place
    mode: str

    @property
    def says(self) -> str:
        """As of `serve.batch.steps.Uploader`."""
        return f"upload {self.mode}"

    def prepared(self, legend: Legend, classes: Sequence[str], options: OutputOptions) -> ProjectUploader:
        """This, with `classes` added to the project where they are missing: here, and not by several processes."""
        project_meta, api = self._meta(), self.place.api
        tags = [Tag(CONFIDENCE, 1.0)] if options.confidence else []
        known = model_meta(legend.classes, legend.palette)
        pixel = Bitmap(np.ones((1, 1), bool))
        labels = [Label(pixel, known.get_obj_class(name), tags=tags) for name in classes]
        meta, _, changed = update_meta_and_ann(project_meta, Annotation((1, 1), labels))
        if changed:
            api.project.update_meta(self.place.project_id, meta)
        return self

    def put(self, item: Item, result: Result, options: OutputOptions, key: str) -> None:
        """As of `serve.batch.steps.Uploader`."""
        api = self.place.api
        dataset_id, _, image_id = item.place.partition(":")
        dataset_id, image_id = int(dataset_id), int(image_id)
        [there] = api.annotation.download_batch(dataset_id, [image_id], with_custom_data=True)
        if (there.annotation.get("customBigData") or {}).get(MARK) == key:
            return
        meta = self._meta()
        [(_, content)] = FORMATS["supervisely"].files(result, options)
        legend = result.legend
        found = Annotation.from_json(json.loads(content), model_meta(legend.classes, legend.palette))
        meta, found, changed = update_meta_and_ann(meta, found)
        if changed:
            meta = api.project.update_meta(self.place.project_id, meta)
        existing = Annotation.from_json(there.annotation, meta)
        if self.mode == "iou_merge":
            overlap = Inference.DEFAULT_IOU_MERGE_THRESHOLD
            [found] = _exclude_duplicated_predictions(api, [found], dataset_id, [image_id], iou=overlap, meta=meta)
        for label in found.labels:
            label.status = LabelingStatus.AUTO
        if self.mode != "replace":
            found = existing.merge(found)
        marked = found.clone(custom_data={**existing.custom_data, MARK: key})
        api.annotation.upload_anns([image_id], [marked])

    def _meta(self) -> ProjectMeta:
        return ProjectMeta.from_json(self.place.api.project.get_meta(self.place.project_id))


def instance() -> Instance:
    """What a batch needs of the instance that the environment names."""
    address, token = os.environ["SERVER_ADDRESS"], os.environ["API_TOKEN"]

    def collection(project_id: int, dataset_ids: Sequence[int]) -> ProjectCollection:
        return ProjectCollection(Place(address, token, project_id), tuple(dataset_ids))

    def uploader(
        project_id: int, mode: str, legend: Legend, classes: Sequence[str], options: OutputOptions
    ) -> ProjectUploader:
        return ProjectUploader(Place(address, token, project_id), mode).prepared(legend, classes, options)

    return Instance(collection, uploader)


@cache
def _api(address: str, token: str) -> WatchedApi:
    """One a process: making it asks the instance for its version."""
    return WatchedApi(Api(address, token), _limits())


@cache
def _limits() -> Limits:
    return Limits.from_environment()
