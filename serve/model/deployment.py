"""A checkpoint made ready to predict on one device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from common.hrda import CheckpointBundle, Predictor, load_checkpoint
from common.hrda.checkpoints import CheckpointError, read_input_scale
from common.hrda.checks import SettingsError, received
from common.hrda.out_of_memory import is_out_of_memory
from common.hrda.prediction.predictor import Segmentation
from common.hrda.prediction.runtime import OnnxNetwork, RuntimeUnavailableError, TorchNetwork, export_onnx
from common.hrda.sliding import WindowNetwork
from serve.errors import OutOfMemory, RequestError
from serve.model.settings import ServeSettings

PYTORCH, TENSORRT = "PyTorch", "TensorRT"
"""Two of the SDK's names of what a network runs on; the third is "ONNXRuntime"."""


class Deployment:
    """One model as it serves. Another model or device is another deployment.

    Requests that hold a deployment finish on it, whatever is deployed meanwhile.

    Args:
        name: file name of the checkpoint.
        classes: names by index of the masks, the background first.
        palette: RGB colour of each class.
        settings: plain settings of the checkpoint.
        device: where it computes.
        build: makes the network for (precision, compiled); called once for each that requests ask for.
        runtime: the SDK's name of what it runs on.
        best_thresholds: probability by class name at which the class was found best in training, where it was measured.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        settings: Mapping[str, Any],
        device: torch.device,
        build: Callable[[str, bool], WindowNetwork],
        runtime: str = PYTORCH,
        best_thresholds: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.name, self.classes, self.palette = name, tuple(classes), tuple(palette)
        self.device, self.runtime, self.best_thresholds = device, runtime, dict(best_thresholds)
        self.encoder = str(settings["model"]["encoder"])
        self.crop_size: tuple[int, int] = tuple(settings["model"]["crop_size"])
        self.input_scale = read_input_scale(settings)
        self._build = build
        self.networks: dict[tuple[str, bool], WindowNetwork] = {}
        """The networks in use, by precision and whether they are compiled."""
        self._turn = threading.Lock()
        # A file that does not fit is found now and not by the first request.
        self._network("float32", False)

    @classmethod
    def from_file(cls, path: str | Path, device: str, runtime: str = PYTORCH) -> Deployment:
        """Read a checkpoint, of this app or of the former one, or an exported network. Nothing in it is executed.

        Args:
            path: a `.pth` file, or for the runtimes ONNXRuntime and TensorRT a `.onnx` file of `export`.
            device: 'cpu' or 'cuda:N'.
            runtime: 'PyTorch', 'ONNXRuntime' or 'TensorRT'.

        Raises:
            CheckpointError: not a checkpoint, or one that does not fit.
            RequestError: there is no such device, or the runtime is not installed.
            SettingsError: not an exported network.
        """
        target, path = resolve_device(device), Path(path)
        if runtime != PYTORCH:
            provider = "tensorrt" if runtime == TENSORRT else target.type
            try:
                network = OnnxNetwork(path, provider)
            except RuntimeUnavailableError as error:
                raise RequestError(str(error)) from error
            content = network.metadata
            palette = [tuple(colour) for colour in content["palette"]]
            classes, settings, best = content["classes"], content["settings"], content.get("best_thresholds", {})
            return cls(path.name, classes, palette, settings, target, _only(network), runtime, best)
        bundle = read_checkpoint(path)
        model = bundle.model.to(target).eval()
        settings = settings_with_crop(bundle)

        def build(precision: str, compiled: bool) -> WindowNetwork:
            return TorchNetwork(model, target, precision, compiled=compiled)

        best = bundle.best_thresholds
        return cls(path.name, bundle.classes, bundle.palette, settings, target, build, runtime, best)

    def predict(self, images: Sequence[np.ndarray], settings: ServeSettings) -> list[Segmentation]:
        """Class indices of images, and their confidences where asked for; one call at a time.

        Requests wait for their turn here: side by side they would share the same cores or the same GPU
        and only add up their memory.

        Args:
            images: H×W×3 uint8 RGB, sizes may differ; they share batches of windows.
            settings: of the request.

        Raises:
            RequestError: an array is not an RGB image.
            SettingsError: the windows or the precision do not fit, or a threshold names no class.
            OutOfMemory: not even one window at a time fits.
        """
        require_rgb(images)
        rule = settings.rule(self.classes)
        return self._in_turn(
            settings, lambda predictor: predictor.segment(images, rule, confidence=settings.confidence)
        )

    def probabilities(self, images: Sequence[np.ndarray], settings: ServeSettings) -> list[np.ndarray]:
        """Class probabilities of images, each C×H×W float16.

        Raises:
            As `predict`.
        """
        require_rgb(images)
        return self._in_turn(settings, lambda predictor: predictor.probabilities(images, np.float16))

    def _in_turn(self, settings: ServeSettings, work: Callable[[Predictor], list[Any]]) -> list[Any]:
        windows = settings.complete(self.crop_size)
        with self._turn:
            network = self._network(settings.precision, settings.compile)
            while True:
                predictor = Predictor(
                    network,
                    windows,
                    device=self.device,
                    input_scale=self.input_scale if settings.input_scale == "trained" else None,
                    long_side=settings.long_side,
                )
                try:
                    return work(predictor)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if windows.batch_size == 1:
                        raise OutOfMemory(_remedy(self.device, windows.window)) from error
                # Outside of the except block, which would keep the failed attempt's tensors alive.
                windows = replace(windows, batch_size=windows.batch_size // 2)
                torch.cuda.empty_cache()

    def _network(self, precision: str, compiled: bool) -> WindowNetwork:
        key = (precision, compiled)
        if key not in self.networks:
            self.networks[key] = self._build(precision, compiled)
        return self.networks[key]


def read_checkpoint(path: Path) -> CheckpointBundle:
    """A checkpoint of this app or the former one that tells its classes apart.

    Raises:
        CheckpointError: it cannot be read, or names a class twice.
    """
    try:
        bundle = load_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download or upload it again.") from error
    if len(set(bundle.classes)) < len(bundle.classes):
        raise CheckpointError(f"{path} names a class twice: {', '.join(bundle.classes)}.")
    return bundle


def settings_with_crop(bundle: CheckpointBundle) -> dict[str, Any]:
    """The settings of a checkpoint with the crop that its model really has; those of the former app may lack it."""
    return bundle.settings | {"model": bundle.settings["model"] | {"crop_size": list(bundle.model.crop_size)}}


def export(checkpoint: Path, path: Path) -> None:
    """Write the network of a checkpoint as ONNX, which the runtimes ONNXRuntime and TensorRT serve.

    Raises:
        CheckpointError: not a checkpoint.
        RequestError: the exporter's packages are not installed.
    """
    bundle = read_checkpoint(checkpoint)
    model = bundle.model.eval()
    settings = settings_with_crop(bundle)
    try:
        export_onnx(
            model,
            path,
            classes=bundle.classes,
            palette=bundle.palette,
            settings=settings,
            best_thresholds=bundle.best_thresholds,
        )
    except RuntimeUnavailableError as error:
        raise RequestError(str(error)) from error


def export_beside(checkpoint: Path) -> Path:
    """Export a checkpoint to a file beside it; its path.

    Raises:
        CheckpointError, RequestError: as `export`.
    """
    exported = checkpoint.with_suffix(".onnx")
    export(checkpoint, exported)
    return exported


def require_rgb(images: Sequence[np.ndarray]) -> None:
    """Refuse what is no 8-bit RGB image.

    Raises:
        RequestError: with what was received.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise RequestError(
                f"Only 8-bit RGB images can be predicted. Received: {image.dtype} of shape {image.shape}."
            )


def _remedy(device: torch.device, window: tuple[int, int] | None) -> str:
    other = "send smaller images or fewer at once, or set long_side" if device.type == "cpu" else "or deploy on the CPU"
    return (
        f"The memory of {device} does not suffice for one window of {window} pixels. "
        f"Close what else runs there, choose a smaller window, {other}."
    )


def _only(network: WindowNetwork) -> Callable[[str, bool], WindowNetwork]:
    def build(precision: str, compiled: bool) -> WindowNetwork:
        if precision != "float32" or compiled:
            raise SettingsError("An exported network computes in float32. Leave precision and compile out.")
        return network

    return build


def resolve_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        RequestError: not a name of a device, or a GPU that torch does not see.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RequestError(f"The device must be 'cpu' or 'cuda:N'. Received: {received(device)}.") from error
    if target.type not in ("cpu", "cuda"):
        raise RequestError(f"The device must be 'cpu' or 'cuda:N'. Received: {received(device)}.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"The device {device!r} is not here: torch sees {torch.cuda.device_count()} GPUs. "
            "Deploy on 'cpu', or on a machine with such a GPU."
        )
    return target


def default_device() -> str:
    """The first GPU, or the CPU where there is none."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"
