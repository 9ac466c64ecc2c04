"""A checkpoint that turns images into results, without a server, a queue or HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.hrda.checks import SettingsError
from common.hrda.prediction.predictor import Segmentation
from common.hrda.sliding import Asked
from common.plain_yaml import read_field
from serve.batch.outputs.format import CONFIDENCES, IMAGE, PROBABILITIES, OutputOptions
from serve.batch.result import Legend, Photo, Result
from serve.model.areas import check_wanted
from serve.model.deployment import PYTORCH, Deployment
from serve.model.exports import runnable_file
from serve.model.settings import BEST, SDK_SETTINGS, read_settings, with_thresholds

WANTED = "classes"
"""The setting that names the classes to answer with; the only one of the SDK's that a worker knows."""


class Worker:
    """Predicts images with one model and one choice of settings.

    Args:
        deployment: the model.
        settings: as in inference_settings.yaml, and `classes`, a list of names; what is left out has its default.

    Raises:
        SettingsError: unknown setting or class, or bad value.

    Example:
        >>> worker = Worker.from_file("model.pth", "cuda:0", settings={"stride": 256})
        >>> [labels] = worker.labels([rgb_uint8_HxWx3])
    """

    def __init__(self, deployment: Deployment, settings: Mapping[str, Any] | None = None) -> None:
        given = with_thresholds(settings or {})
        wanted = given.pop(WANTED, None)
        if isinstance(wanted, str) and wanted != "all":
            wanted = read_field(WANTED, wanted)
        for name in given:
            if name in SDK_SETTINGS:
                raise SettingsError(f"The setting {name!r} is for requests to a server. Leave it out.")
        self.deployment = deployment
        self.settings = read_settings(given)
        self.settings.complete(deployment.crop_size)
        self.settings.rule(deployment.classes)
        check_wanted(wanted, deployment.classes)
        self._wanted = None if wanted == "all" else wanted

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Those of the model by class name, where they are what counts; else empty."""
        if self.settings.thresholds != BEST:
            return {}
        return self.settings.chosen_thresholds(self.deployment.classes, self.deployment.best_thresholds)

    @classmethod
    def from_file(
        cls, path: str | Path, device: str, runtime: str = PYTORCH, settings: Mapping[str, Any] | None = None
    ) -> Self:
        """Read a checkpoint; other runtimes than PyTorch get an export of it, which is written beside it.

        Args:
            path: a file of `Deployment.from_file`, or a checkpoint whatever the runtime.
            device: 'cpu' or 'cuda:N'.
            runtime: 'PyTorch', 'ONNXRuntime' or 'TensorRT'.
            settings: of the worker.

        Raises:
            CheckpointError, RequestError, SettingsError: as `Deployment.from_file` and the worker itself.
        """
        path = runnable_file(Path(path), device, runtime)
        return cls(Deployment.from_file(path, device, runtime), settings)

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class indices H×W uint8 of images H×W×3 uint8 RGB, whose sizes may differ; `classes` changes nothing here.

        Raises:
            RequestError: an array is not an RGB image, or the memory does not suffice.
        """
        return [found.labels for found in self.deployment.predict(images, self.settings)]

    @property
    def left_out(self) -> str:
        """Which share of the windows it left out so far, as a sentence; empty where it computed all."""
        share = self.deployment.tally.share_left_out
        return f"{share:.0%} of the windows were left out: the context was sure there (trust_context)." if share else ""

    @property
    def legend(self) -> Legend:
        """What the class indices of its results mean."""
        return Legend(tuple(self.deployment.classes), tuple(map(tuple, self.deployment.palette)))

    @property
    def labelled(self) -> tuple[str, ...]:
        """Names of the classes that annotations of its results may have labels of."""
        background = self.legend.classes[self.legend.background]
        found = [name for _, name in self.legend.found if self._wanted is None or name in self._wanted]
        return (*([background] if self.options().background else []), *found)

    def options(self, **given: Any) -> OutputOptions:
        """How its results are written down: as its settings say, and `given`, the other fields of `OutputOptions`.

        Raises:
            SettingsError: bad value.
        """
        wanted = self._wanted is None or self.legend.classes[self.legend.background] in self._wanted
        own = {"background": self.settings.background and wanted, "confidence": self.settings.confidence}
        return OutputOptions.from_dict(own | given)

    @property
    def unwanted(self) -> list[int]:
        """Indices of the classes that were not asked for: they count as background."""
        return [index for index, name in self.legend.found if self._wanted is not None and name not in self._wanted]

    def results(
        self, photos: Sequence[Photo], needs: Collection[str] = (), before_batch: Asked = lambda: None
    ) -> list[Result]:
        """What formats of outputs are made of.

        Args:
            photos: sizes may differ; they share batches of windows.
            needs: of the formats, see `needs_of`.
            before_batch: called before each batch of windows; what it raises ends the prediction.

        Raises:
            RequestError: as `labels`.
        """
        found = self.deployment.predict(
            [photo.image for photo in photos],
            self.settings,
            before_batch,
            confidence=CONFIDENCES in needs,
            probabilities=PROBABILITIES in needs,
        )
        return [self._result(photo, each, needs) for photo, each in zip(photos, found, strict=True)]

    def _result(self, photo: Photo, found: Segmentation, needs: Collection[str]) -> Result:
        labels, legend = found.labels, self.legend
        confidences = found.confidence.astype(np.float32) if CONFIDENCES in needs else None
        if self.unwanted:
            others = np.isin(labels, self.unwanted)
            labels = np.where(others, np.uint8(legend.background), labels)
            if confidences is not None:
                confidences[others] = np.nan
        if photo.valid is not None:
            labels = np.where(photo.valid, labels, np.uint8(legend.background))
        return Result(
            photo.path,
            photo.name,
            labels,
            legend,
            photo.image if IMAGE in needs else None,
            confidences,
            found.probabilities,
            photo.transform,
            photo.crs,
        )
