"""A checkpoint that turns images into results, without a server, a queue or HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.hrda import SettingsError
from common.hrda.prediction.predictor import Segmentation
from common.plain_yaml import read_field
from serve.batch.annotations import annotation
from serve.model.areas import check_wanted, find_areas
from serve.model.deployment import PYTORCH, Deployment, runnable_file
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
        return [found.labels for found in self._segment(images)]

    def annotations(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Annotations of images in Supervisely's format, as plain data.

        Raises:
            RequestError: as `labels`.
        """
        classes, background = self.deployment.classes, self.settings.background
        annotations = []
        for found in self._segment(images):
            areas = find_areas(
                found.labels, classes, confidences=found.confidences, background=background, wanted=self._wanted
            )
            annotations.append(annotation(found.labels.shape, areas, classes))
        return annotations

    def _segment(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        return self.deployment.predict(images, self.settings)
