"""Pictures of what a run would learn from: crops of a few source photos, augmented, with their labels."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import requests
from numpy.typing import NDArray
from supervisely import Api, ProjectMeta, logger
from supervisely.app.widgets import Button, Container, Image, Text

from common.data.choice import BACKGROUND, label_indices
from common.data.datasets import TrainingBatches
from common.data.images import read_image
from common.data.labels import resize_labels
from common.data.project import ProjectError, draw_mask
from common.data.sampling import class_sampler
from common.hrda.pixels import IGNORE_LABEL, IMAGENET_MEAN, IMAGENET_STD
from train.instance.domains import Domain, InputError
from train.page.latest import LatestOnly
from train.page.live import put, send
from train.run.preparation import recipe_of
from train.settings.training import TrainSettings

_PICTURES = 4
_PHOTOS = 8
_SIDE = 320
_OVERLAY = 0.5
_IGNORED_COLOUR = (128, 128, 128)


@dataclass(frozen=True)
class SampleSource:
    """What is learnt from, as the page has it chosen."""

    domain: Domain
    """Project and datasets of the source."""
    meta: ProjectMeta
    """Classes of the project."""
    classes: tuple[str, ...]
    """Names of the chosen classes, without the background."""


class Photo(NamedTuple):
    """A labelled photo on this machine."""

    name: str
    path: Path
    annotation: dict[str, Any]
    """In Supervisely's JSON format."""


class SamplePhotos:
    """A few labelled photos of a domain, downloaded once."""

    def __init__(self, count: int = _PHOTOS) -> None:
        self._count = count
        # Gone with the program.
        self._folder = tempfile.TemporaryDirectory(prefix="samples-")
        self._domain: Domain | None = None
        self._photos: list[Photo] = []

    def get(self, api: Api, domain: Domain) -> list[Photo]:
        """The photos of `domain`, downloaded unless they were those of the last call.

        Raises:
            InputError: none of its photos has labels.
            requests.RequestException: the instance does not answer.
        """
        if domain != self._domain:
            self._photos = self._download(api, domain)
            self._domain = domain
        return self._photos

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return Path(self._folder.name)

    def _download(self, api: Api, domain: Domain) -> list[Photo]:
        datasets = domain.dataset_ids or [dataset.id for _, dataset in api.dataset.tree(domain.project_id)]
        photos: list[Photo] = []
        for dataset_id in datasets:
            # Some of each dataset: they differ more from each other than neighbours within one do.
            wanted = min(max(2, self._count // len(datasets)), self._count - len(photos))
            infos = api.image.get_list(dataset_id, limit=wanted, only_labelled=True)[:wanted] if wanted else []
            ids = [info.id for info in infos]
            paths = [self.folder / f"{info.id}{Path(info.name).suffix}" for info in infos]
            api.image.download_paths(dataset_id, ids, [str(path) for path in paths])
            annotations = api.annotation.download_batch(dataset_id, ids) if ids else []
            by_id = {one.image_id: one.annotation for one in annotations}
            photos += [Photo(info.name, path, by_id[info.id]) for info, path in zip(infos, paths, strict=True)]
        if not photos:
            raise InputError("None of the photos of the source has labels. Label some, or choose other datasets.")
        return photos


def draw_samples(
    photos: list[Photo], source: SampleSource, settings: TrainSettings, folder: Path, turn: int
) -> list[NDArray[np.uint8]]:
    """Four crops as the training sees them, with the labels laid over them.

    Args:
        photos: to draw from.
        source: whose classes are drawn, in the project's colours.
        settings: of the run; the very code of the training applies them.
        folder: for the masks.
        turn: another turn draws other crops.

    Returns:
        Four images h×w×3 uint8 RGB, their longer side at most 320 pixels.

    Raises:
        ProjectError: a label that cannot be drawn.
        SettingsError: rare class sampling asks for more pixels of a class than any of the photos has.
        ImageError: a photo that cannot be read.
    """
    indices = label_indices((c.name for c in source.meta.obj_classes), source.classes, settings.data.unchosen)
    pairs, pixels = [], []
    for photo in photos:
        size = read_image(photo.path).shape[:2]
        mask = draw_mask(photo.annotation, source.meta, indices, size, photo.name)
        path = folder / f"{photo.path.stem}_mask.png"
        cv2.imwrite(str(path), mask)
        pairs.append((photo.path, path))
        small = resize_labels(mask, settings.data.scale.size(*size), settings.data.label_scaling)
        pixels.append(np.bincount(small.ravel(), minlength=IGNORE_LABEL + 1)[: len(source.classes) + 1])
    names = (BACKGROUND, *source.classes)
    sampler, _ = class_sampler(settings.data.rare_class_sampling, np.array(pixels), names, "sample")
    batches = TrainingBatches(
        pairs,
        [],
        recipe_of(settings),
        batch_size=_PICTURES,
        iterations=turn + 1,
        seed=settings.seed,
        sampler=sampler,
    )
    batch = batches[turn]
    palette = np.zeros((IGNORE_LABEL + 1, 3), np.float32)
    for index, name in enumerate(source.classes, 1):
        palette[index] = source.meta.get_obj_class(name).color
    palette[IGNORE_LABEL] = _IGNORED_COLOUR
    return [
        _overlaid(image, label, palette)
        for image, label in zip(batch.source_images.numpy(), batch.source_labels.numpy(), strict=True)
    ]


def _overlaid(image: NDArray[np.float32], label: NDArray[np.int64], palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    mean, std = (np.asarray(value, np.float32).reshape(3) for value in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = image.transpose(1, 2, 0) * std + mean
    labelled = (label != 0)[..., None]
    pixels = np.where(labelled, (1 - _OVERLAY) * pixels + _OVERLAY * palette[label], pixels)
    height, width = label.shape
    factor = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_AREA)


def data_url(picture: NDArray[np.uint8]) -> str:
    """An image (h×w×3 uint8 RGB) as the address of a JPEG that contains it."""
    _, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"


class SamplesView:
    """A button and the pictures that it draws, in a thread of its own."""

    def __init__(self, settings: Callable[[], TrainSettings]) -> None:
        """Make the widgets.

        Args:
            settings: gives those to draw with; ValueError with a sentence if there are none.
        """
        self._settings = settings
        self._source: Callable[[], SampleSource] | None = None
        self._photos = SamplePhotos()
        self._turn = 0
        self._are_shown = False
        self._drawing = LatestOnly(self._draw, "samples")
        self.button = Button(
            "Show samples", plain=True, button_size="small", show_loading=False, widget_id="show_samples"
        )
        self._note = Text("", "info", widget_id="samples_note")
        self._images = [Image(width="100%", widget_id=f"sample_{i}") for i in range(1, _PICTURES + 1)]
        self.container = Container(
            [self.button, self._note, Container(self._images, "horizontal", fractions=["1"] * 4)]
        )
        self.button.click(self._order)

    def use_source(self, source: Callable[[], SampleSource]) -> None:
        """Draw from what `source` gives at each click; it raises ValueError with a sentence if nothing is chosen."""
        self._source = source

    def outdate(self) -> None:
        """Say beside pictures that are shown that the settings have changed since."""
        self.forget_error()
        if self._are_shown:
            self._are_shown = False
            self._note.set("These were drawn before the settings changed. Click to draw others.", "warning")

    def forget_error(self) -> None:
        """Take back why no samples were drawn: a person has changed something since."""
        if self._note.status == "error":
            self._note.set("", "text")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until what was ordered is drawn."""
        return self._drawing.wait(timeout)

    def _order(self) -> None:
        self._note.set("Drawing samples…", "info")
        put(self.button, loading=True)
        send()
        self._drawing.order()

    def _draw(self, superseded: Callable[[], bool]) -> None:
        try:
            pictures, sentence = self._pictures(superseded), None
        except requests.RequestException as error:
            pictures, sentence = None, f"The instance does not answer as expected: {error}"
        except (ProjectError, ValueError) as error:
            pictures, sentence = None, str(error)
        except Exception as error:
            logger.error("Samples could not be drawn", exc_info=True)
            pictures, sentence = None, f"The samples could not be drawn: {error!r}."
        put(self.button, loading=False)
        if sentence is not None:
            self._note.set(escape(sentence, quote=False), "error")
        elif pictures is not None:
            self._show(*pictures)

    def _pictures(self, superseded: Callable[[], bool]) -> tuple[list[str], str] | None:
        if self._source is None:
            raise InputError("Choose the source first.")
        settings, source = self._settings(), self._source()
        if not source.classes:
            raise InputError("Choose classes first.")
        # Of its own: the SDK's client is not made for two threads.
        photos = self._photos.get(Api.from_env(), source.domain)
        if superseded():
            return None
        drawn = draw_samples(photos, source, settings, self._photos.folder, self._turn)
        self._turn += 1
        return [data_url(picture) for picture in drawn], _caption(settings)

    def _show(self, urls: list[str], caption: str) -> None:
        for image, url in zip(self._images, urls, strict=True):
            put(image, url=url)
        self._note.set(caption, "info")
        self._are_shown = True


def _caption(settings: TrainSettings) -> str:
    height, width = settings.model.crop_size
    return (
        f"Crops of {height} × {width} pixels as a run with these settings sees them; coloured: the labels, grey: not "
        "counted. Another click draws others."
    )
