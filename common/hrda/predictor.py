"""From an image of any size to class indices or probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from common.hrda.heads import resize
from common.hrda.segmentor import HRDASegmentor
from common.hrda.settings import InferenceSettings
from common.hrda.sliding import sliding_logits

# ImageNet's statistics of RGB values in 0..255, as MiT was trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalise(images: Tensor) -> Tensor:
    """RGB values 0..255 (B×3×H×W, any dtype) → ImageNet-normalised float32."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device)[:, None, None]
    return (images.float() - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`: float32 RGB in 0..255, not rounded."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device)[:, None, None]
    return images * std + mean


def fit_scale(size: tuple[int, int], short_edge: int, long_edge: int) -> tuple[int, int]:
    """Size (H, W) that keeps the aspect ratio and fits `short_edge` and `long_edge`, as in training."""
    scale = min(long_edge / max(size), short_edge / min(size))
    return (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))


class Predictor:
    """Predicts images of any size with a trained model.

    Args:
        model: put into eval mode and moved to `device`.
        settings: windows; the defaults are the model's own crop and half of it.
        device: where to compute.
        input_scale: (short_edge, long_edge) to which images are scaled first, keeping their aspect ratio,
            as in training; None: the image's own resolution.

    Example:
        >>> predictor = Predictor(model, InferenceSettings(window=(512, 512)), device="cuda")
        >>> [mask] = predictor.predict([image])
    """

    def __init__(
        self,
        model: HRDASegmentor,
        settings: InferenceSettings | None = None,
        device: str | torch.device = "cpu",
        input_scale: tuple[int, int] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.settings = settings or InferenceSettings()
        self.input_scale = input_scale

    def logits(self, images: Tensor) -> Tensor:
        """Logits B×C×H×W float32 of normalised images B×3×H×W, on the predictor's device."""
        return sliding_logits(self.model, images.to(self.device), self.settings)

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class indices of RGB images.

        Args:
            images: H×W×3 uint8 arrays; sizes may differ.

        Returns:
            One H×W uint8 array an image.

        Raises:
            ValueError: an image has another shape or dtype.
        """
        labels = []
        for image in images:
            indices = self._image_logits(image).argmax(1)[0].to(torch.uint8).cpu().numpy()
            if indices.shape != image.shape[:2]:
                indices = cv2.resize(indices, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            labels.append(indices)
        return labels

    def probabilities(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class probabilities of RGB images: one C×H×W float32 array an image.

        Raises:
            ValueError: an image has another shape or dtype than H×W×3 uint8.
        """
        return [resize(self._image_logits(image).softmax(1), image.shape[:2])[0].cpu().numpy() for image in images]

    def _image_logits(self, image: np.ndarray) -> Tensor:
        """Logits 1×C×h×w of one RGB image at the input scale."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(
                f"An image must be a non-empty H×W×3 uint8 RGB array. Received: shape {image.shape}, {image.dtype}."
            )
        if self.input_scale is not None:
            image = resize_image(image, fit_scale(image.shape[:2], *self.input_scale))
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return self.logits(normalise(tensor.to(self.device)))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of H×W×3 uint8 to `size` (H, W), the same in training and serving."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
