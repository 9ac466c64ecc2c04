"""A checkpoint made ready to predict on one device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.hrda import HRDASegmentor, Predictor, load_checkpoint
from common.hrda.checkpoints import CheckpointError
from serve.errors import RequestError
from serve.settings import ServeSettings


@dataclass(frozen=True)
class Deployment:
    """One model as it serves. Never changed: another model or device is another deployment.

    Requests that hold a deployment finish on it, whatever is deployed meanwhile.
    """

    name: str
    """File name of the checkpoint."""
    encoder: str
    """Name of the encoder, e.g. 'mit_b5'."""
    classes: tuple[str, ...]
    """Class names by index of the masks."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    model: HRDASegmentor
    """In eval mode on `device`."""
    device: torch.device
    """Where the model is."""
    input_scale: tuple[int, int] | None
    """(short_edge, long_edge) that training scaled images to; None: their own resolution."""
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str) -> Deployment:
        """Read a checkpoint, of this app or of the former one, without executing anything in it.

        Raises:
            CheckpointError: not a checkpoint, or one that does not fit.
            RequestError: there is no such device.
        """
        target = resolve_device(device)
        try:
            bundle = load_checkpoint(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Download or upload it again.") from error
        if len(set(bundle.classes)) < len(bundle.classes):
            raise CheckpointError(f"{path} names a class twice: {', '.join(bundle.classes)}.")
        return cls(
            name=Path(path).name,
            encoder=str(bundle.settings["model"]["encoder"]),
            classes=bundle.classes,
            palette=bundle.palette,
            model=bundle.model.to(target).eval(),
            device=target,
            input_scale=bundle.input_scale,
        )

    def predict(self, images: Sequence[np.ndarray], settings: ServeSettings) -> list[np.ndarray]:
        """Class indices of images, one forward pass of the model at a time.

        Requests wait for their turn here: side by side they would share the same cores or the same GPU
        and only add up their memory.

        Args:
            images: H×W×3 uint8 RGB, sizes may differ.
            settings: windows and input scale.

        Returns:
            One H×W uint8 array an image, indices into `classes`.

        Raises:
            RequestError: an array is not an RGB image.
            SettingsError: the windows do not fit the model.
        """
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
                raise RequestError(
                    f"Only 8-bit RGB images can be predicted. Received: {image.dtype} of shape {image.shape}."
                )
        predictor = Predictor(
            self.model,
            settings.windows(self.model.crop_size),
            device=self.device,
            input_scale=self.input_scale if settings.input_scale == "trained" else None,
        )
        with self._turn:
            return predictor.predict(images)


def resolve_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        RequestError: not a name of a device, or a GPU that torch does not see.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RequestError(f"The device must be 'cpu' or 'cuda:N'. Received: {device!r}.") from error
    if target.type not in ("cpu", "cuda"):
        raise RequestError(f"The device must be 'cpu' or 'cuda:N'. Received: {device!r}.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"The device {device!r} is not here: torch sees {torch.cuda.device_count()} GPUs. "
            "Deploy on 'cpu', or on a machine with such a GPU."
        )
    return target


def default_device() -> str:
    """The first GPU, or the CPU where there is none."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"
