"""From an image of any size to class indices or probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.pixels import Scale, fit_scale, normalise, resize_image, scaled_size
from common.hrda.prediction.labelling import (
    LabelRows,
    LabelRule,
    ProbabilityRows,
    mean_confidences,
    remove_small_components,
)
from common.hrda.prediction.runtime import TorchNetwork
from common.hrda.prediction.scales import average, scaled_sizes
from common.hrda.settings import InferenceSettings
from common.hrda.sliding import (
    Asked,
    Pixels,
    RowSink,
    WindowNetwork,
    WindowTally,
    count_windows,
    finished_rows,
    pad_to,
    sliding_logits,
    sweep,
)
from common.hrda.windows import Box


class PhotoPixels:
    """A photo whose windows are normalised one by one.

    Args:
        image: H×W×3 uint8 RGB.
        device: where windows go.
    """

    def __init__(self, image: np.ndarray, device: torch.device) -> None:
        self._image, self._device = image, device
        self.size = image.shape[:2]

    def crop(self, box: Box) -> Tensor:
        """The normalised pixels 3×h×w of `box`, the mean colour where it leaves the photo."""
        pixels = np.ascontiguousarray(self._image[box.top : box.bottom, box.left : box.right])
        tensor = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1)
        return pad_to(normalise(tensor[None])[0], box)

    def is_empty(self, box: Box) -> bool:
        """Nothing of a photo is left out."""
        return False


@dataclass(frozen=True)
class Segmentation:
    """What is known of a photo, at its own size."""

    labels: np.ndarray
    """H×W uint8 class indices."""
    confidences: list[float | None] | None
    """Mean probability of each class over its pixels, None for a class without any; None if not asked for."""
    confidence: np.ndarray | None = None
    """H×W float probability of each pixel's class; None if not asked for."""
    probabilities: np.ndarray | None = None
    """C×H×W float16 probabilities of all classes; None if not asked for."""


@dataclass(frozen=True)
class Work:
    """What a prediction takes."""

    windows: int
    """That go through the network, of both resolutions and all scales."""
    pixels: int
    """Of the photo at its largest scale."""


class Predictor:
    """Predicts images of any size with a trained model.

    Args:
        model: a segmentor, put into eval mode and moved to `device`, or another `WindowNetwork` that runs there. A
            segmentor is rearranged for prediction as it is now (`TorchNetwork`): its encoder is shared, changes of its
            decoder later on are not seen.
        settings: windows; the defaults are the model's own crop and half of it.
        device: where to compute.
        input_scale: to which images are scaled first, keeping their aspect ratio, as in training: (short_edge,
            long_edge) in pixels, a factor of their own resolution, or None for that.
        long_side: images whose longest side would still be larger are scaled down to it; None: never.
        before_batch: called before each batch of windows; what it raises ends the prediction.
        tally: counts the windows; None: one of its own.

    Example:
        >>> predictor = Predictor(model, InferenceSettings(window=(512, 512)), device="cuda")
        >>> [mask] = predictor.predict([image])
    """

    def __init__(
        self,
        model: WindowNetwork,
        settings: InferenceSettings | None = None,
        device: str | torch.device = "cpu",
        input_scale: Scale = None,
        long_side: int | None = None,
        before_batch: Asked = lambda: None,
        tally: WindowTally | None = None,
    ) -> None:
        self.device = torch.device(device)
        if isinstance(model, nn.Module):
            model = model.to(self.device).eval()
        self.model = TorchNetwork(model, self.device) if isinstance(model, HRDASegmentor) else model
        self.settings = settings or InferenceSettings()
        self.input_scale = input_scale
        self.long_side = long_side
        self.tally = WindowTally() if tally is None else tally
        """Windows that were computed, and left out."""
        self._before_batch = before_batch
        self._network = MirroredNetwork(self.model) if self.settings.flip else self.model

    def logits(self, images: Tensor) -> Tensor:
        """Logits B×C×H×W float32 of normalised images B×3×H×W, on the predictor's device."""
        return sliding_logits(self._network, images.to(self.device), self.settings)

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class indices of RGB images.

        Args:
            images: H×W×3 uint8 arrays; sizes may differ.

        Returns:
            One H×W uint8 array an image.

        Raises:
            ValueError: an image has another shape or dtype.
        """
        return [segmentation.labels for segmentation in self.segment(images)]

    def segment(
        self,
        images: Sequence[np.ndarray],
        rule: LabelRule | None = None,
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> list[Segmentation]:
        """Class indices of RGB images by a rule, and where asked how sure the model is, from one pass of the network.

        Args:
            images: H×W×3 uint8 arrays; sizes may differ.
            rule: thresholds and smallest areas; None: the most probable class.
            confidence: whether to give the probability of each pixel's class, and each class's mean.
            probabilities: whether to give those of all classes.

        Raises:
            ValueError: an image has another shape or dtype.
        """
        rule = rule or LabelRule()
        scaled = self._scaled(images)
        sinks = [LabelRows(image.shape[:2], rule, confidence=confidence) for image in scaled]
        if not probabilities:
            self._run(scaled, sinks)
            return [
                finish(sink, image.shape[:2], rule, self.model.num_classes)
                for sink, image in zip(sinks, images, strict=True)
            ]
        rows = [self._probability_rows(image, own) for image, own in zip(images, scaled, strict=True)]
        self._run(scaled, [_both(*pair) for pair in zip(sinks, rows, strict=True)])
        return [
            replace(
                finish(sink, image.shape[:2], rule, self.model.num_classes),
                probabilities=_at_size(each.probabilities, image.shape[:2], np.float16),
            )
            for sink, each, image in zip(sinks, rows, images, strict=True)
        ]

    def predict_with_probabilities(self, image: np.ndarray) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Class indices and class probabilities of an RGB image, from one pass of the network.

        Args:
            image: H×W×3 uint8.

        Returns:
            H×W uint8 as of `predict`; and as of `probabilities` an H×W float32 map for each class, one by one, so that
            of many classes not all need to be held at the photo's own size.

        Raises:
            ValueError: the image has another shape or dtype.
        """
        [scaled] = self._scaled([image])
        rule, size = LabelRule(), image.shape[:2]
        labels = LabelRows(scaled.shape[:2], rule, confidence=False)
        rows = ProbabilityRows(self.model.num_classes, scaled.shape[:2])
        self._run([scaled], [_both(labels, rows)])
        prediction = finish(labels, size, rule, self.model.num_classes).labels
        return prediction, (resize_map(plane, size) for plane in rows.probabilities)

    def probabilities(self, images: Sequence[np.ndarray], dtype: type[np.floating] = np.float32) -> list[np.ndarray]:
        """Class probabilities of RGB images: one C×H×W array of `dtype` an image.

        Raises:
            ValueError: an image has another shape or dtype than H×W×3 uint8.
        """
        maps = []
        for image, scaled in zip(images, self._scaled(images), strict=True):
            sink = self._probability_rows(image, scaled, dtype)
            self._run([scaled], [sink])
            maps.append(_at_size(sink.probabilities, image.shape[:2], dtype))
        return maps

    def _probability_rows(
        self, image: np.ndarray, scaled: np.ndarray, dtype: type[np.floating] = np.float16
    ) -> ProbabilityRows:
        is_own = scaled.shape == image.shape
        # Of a photo at its own size each row is rounded as it comes, and no larger map is ever held.
        return ProbabilityRows(self.model.num_classes, scaled.shape[:2], dtype if is_own else np.float32)

    def work(self, size: tuple[int, int]) -> Work:
        """What the prediction of an image of `size` (H, W) takes."""
        sizes = scaled_sizes(self._scaled_size(size), self.settings.scales)
        windows = sum(count_windows(each, self.model.crop_size, self.settings) for each in sizes)
        return Work(windows, max(height * width for height, width in sizes))

    def sweep(self, pixels: Pixels, sink: RowSink) -> None:
        """Predict an image that gives its windows one by one, at its own size and in one scale; nothing is held of it
        but a row of crops.

        Raises:
            ValueError: the settings average several scales.
        """
        if self.settings.scales != (1.0,):
            raise ValueError("Several scales are averaged of images in memory alone.")
        sweep(self._network, [(pixels, sink)], self.settings, self._before_batch, self.tally)

    def _run(self, images: Sequence[np.ndarray], sinks: Sequence[RowSink]) -> None:
        """Predict images at the input scale; every sink gets the rows of its image, averaged over the scales."""
        if self.settings.scales == (1.0,):
            photos = (PhotoPixels(image, self.device) for image in images)
            sweep(self._network, zip(photos, sinks, strict=True), self.settings, self._before_batch, self.tally)
            return
        for image, sink in zip(images, sinks, strict=True):
            passes = [
                (own, weight, self._rows(resize_image(image, own)))
                for own, weight in scaled_sizes(image.shape[:2], self.settings.scales).items()
            ]
            average(image.shape[:2], passes, sink)

    def _rows(self, image: np.ndarray) -> Iterator[Tensor]:
        pixels = PhotoPixels(image, self.device)
        return finished_rows(self._network, pixels, self.settings, self._before_batch, self.tally)

    def _scaled(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """RGB images at the input scale."""
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(
                    f"An image must be a non-empty H×W×3 uint8 RGB array. Received: shape {image.shape}, {image.dtype}."
                )
        return [resize_image(image, self._scaled_size(image.shape[:2])) for image in images]

    def _scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        size = scaled_size(size, self.input_scale)
        if self.long_side is not None and max(size) > self.long_side:
            size = fit_scale(size, self.long_side, self.long_side)
        return size


class MirroredNetwork:
    """A network that sees every window also mirrored left to right, and averages the logits.

    Args:
        network: the network itself.
    """

    def __init__(self, network: WindowNetwork) -> None:
        self._network = network
        self.crop_size, self.num_classes = network.crop_size, network.num_classes
        self.context_images, self.fuse = network.context_images, network.fuse

    def detail_logits(self, images: Tensor) -> Tensor:
        """As of the network."""
        return (self._network.detail_logits(images) + self._network.detail_logits(images.flip(-1)).flip(-1)) / 2

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As of the network."""
        straight, mirrored = self._network.context_logits(images), self._network.context_logits(images.flip(-1))
        return tuple((one + other.flip(-1)) / 2 for one, other in zip(straight, mirrored, strict=True))


def finish(sink: LabelRows, size: tuple[int, int], rule: LabelRule, num_classes: int) -> Segmentation:
    """Labels at the image's `size`, small areas removed, with their confidences."""
    labels, confidence = sink.labels, sink.confidence
    if labels.shape != size:
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        confidence = None if confidence is None else resize_map(confidence.astype(np.float32), size)
    if rule.min_component > 1:
        remove_small_components(labels, rule.min_component, num_classes)
    means = None if confidence is None else mean_confidences(labels, confidence, num_classes)
    return Segmentation(labels, means, confidence)


def _both(first: RowSink, second: RowSink) -> RowSink:
    """A sink that hands its rows to two others."""

    def take(top: int, logits: Tensor) -> None:
        first(top, logits)
        second(top, logits)

    return take


def _at_size(planes: np.ndarray, size: tuple[int, int], dtype: type[np.floating]) -> np.ndarray:
    """Maps C×h×w at the image's `size` (H, W), as `dtype`."""
    if planes.shape[1:] == tuple(size):
        return planes.astype(dtype, copy=False)
    return np.stack([resize_map(plane, size).astype(dtype, copy=False) for plane in planes])


def resize_map(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of an H×W float32 map to `size` (H, W)."""
    return plane if plane.shape == tuple(size) else cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
