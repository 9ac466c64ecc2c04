"""A checkpoint made ready to predict on one device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch

from common.hrda import Predictor, load_checkpoint
from common.hrda.checks import CheckpointError, SettingsError, received
from common.hrda.metadata import NetworkMetadata
from common.hrda.out_of_memory import is_out_of_memory
from common.hrda.prediction.exported import no_export
from common.hrda.prediction.predictor import Segmentation, Work
from common.hrda.prediction.probes import BOUND, RECORDED, difference, outputs_of
from common.hrda.prediction.runtime import (
    OnnxNetwork,
    RuntimeUnavailableError,
    TorchNetwork,
    require_provider,
    why_not_compiled,
)
from common.hrda.settings import InferenceSettings
from common.hrda.sliding import Asked, WindowNetwork, WindowTally
from serve.errors import OutOfMemory, RequestError
from serve.model.settings import ServeSettings

PYTORCH, ONNXRUNTIME, TENSORRT = RUNTIMES = ("PyTorch", "ONNXRuntime", "TensorRT")
"""The SDK's names of what a network runs on."""
T = TypeVar("T")
EXPORTED = ".onnx"
"""How files of exported networks end."""
_log = logging.getLogger(__name__)


class Deployment:
    """One model as it serves. Another model or device is another deployment.

    Requests that hold a deployment finish on it, whatever is deployed meanwhile.

    Args:
        name: file name of the checkpoint.
        metadata: its classes, colours and settings.
        device: where it computes.
        build: makes the network for (precision, compiled); called once for each that requests ask for.
        runtime: the SDK's name of what it runs on.
        best_thresholds: probability by class name at which the class was found best in training, where it was measured.
        self_check: how what it runs on compares with plain PyTorch.
    """

    def __init__(
        self,
        name: str,
        metadata: NetworkMetadata,
        device: torch.device,
        build: Callable[[str, bool], WindowNetwork],
        runtime: str = PYTORCH,
        best_thresholds: Mapping[str, float] = MappingProxyType({}),
        self_check: str = "PyTorch itself",
    ) -> None:
        self.self_check = self_check
        """How what it runs on compares with plain PyTorch, as a sentence."""
        self.name, self.classes, self.palette = name, metadata.classes, metadata.palette
        self.device, self.runtime, self.best_thresholds = device, runtime, dict(best_thresholds)
        self.encoder, self.crop_size = metadata.model.encoder, metadata.model.crop_size
        self.input_scale = metadata.input_scale
        self.weights_origin = metadata.weights_origin
        self._build = build
        self.networks: dict[tuple[str, bool], WindowNetwork] = {}
        """The networks in use, by precision and whether they are compiled."""
        self.tally = WindowTally()
        """Windows that were computed, and left out, for all requests so far."""
        self._turn = threading.Lock()
        self._told = False
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
            CheckpointError: not a checkpoint or an exported network, or one that does not fit.
            RequestError: there is no such device, the runtime is not installed, or it does not run such files.
        """
        target, path = resolve_device(device), Path(path)
        require_runtime(runtime, device)
        if runtime != PYTORCH:
            network = OnnxNetwork(path, _provider(runtime, target))
            found, check = network.metadata, compared_with_export(network, path, target)
            return cls(path.name, found, target, _only(network), runtime, found.best_thresholds, check)
        if path.suffix.lower() == EXPORTED:
            raise RequestError(f"{path.name} is an exported network: deploy it with the runtime {ONNXRUNTIME}.")
        bundle = load_checkpoint(path)
        model = bundle.model.to(target).eval()

        def build(precision: str, compiled: bool) -> WindowNetwork:
            return TorchNetwork(model, target, precision, compiled=compiled)

        return cls(path.name, bundle.metadata, target, build, runtime, bundle.best_thresholds)

    def predict(
        self,
        images: Sequence[np.ndarray],
        settings: ServeSettings,
        before_batch: Asked = lambda: None,
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> list[Segmentation]:
        """Class indices of images, and their confidences where asked for; one call at a time.

        Requests wait for their turn here: side by side they would share the same cores or the same GPU
        and only add up their memory.

        Args:
            images: H×W×3 uint8 RGB, sizes may differ; they share batches of windows.
            settings: of the request.
            before_batch: called before each batch of windows; what it raises ends the prediction.
            confidence: whether to give confidences, also where the settings do not ask for them.
            probabilities: whether to give all classes' probabilities.

        Raises:
            RequestError: an array is not an RGB image.
            SettingsError: the windows or the precision do not fit, or a threshold names no class.
            OutOfMemory: not even one window at a time fits.
        """
        require_rgb(images)
        rule = settings.rule(self.classes, self.best_thresholds)
        confidence = confidence or settings.confidence
        return self._in_turn(
            settings,
            lambda predictor: predictor.segment(images, rule, confidence=confidence, probabilities=probabilities),
            before_batch,
        )

    def stream(
        self, work: Callable[[Predictor], None], settings: ServeSettings, before_batch: Asked = lambda: None
    ) -> None:
        """Have a predictor do `work`, which begins anew with fewer windows at once where the memory does not suffice.

        Raises:
            As `predict`, and what `work` raises.
        """
        self._in_turn(settings, work, before_batch)

    def work(self, size: tuple[int, int], settings: ServeSettings) -> Work:
        """What the prediction of an image of `size` (H, W) takes."""
        return self._predictor(self._network("float32", False), settings, settings).work(size)

    def _predictor(
        self,
        network: WindowNetwork,
        settings: ServeSettings,
        windows: InferenceSettings,
        before_batch: Asked = lambda: None,
    ) -> Predictor:
        return Predictor(
            network,
            windows,
            device=self.device,
            input_scale=self.input_scale if settings.input_scale == "trained" else None,
            long_side=settings.long_side,
            before_batch=before_batch,
            tally=self.tally,
        )

    def _in_turn(self, settings: ServeSettings, work: Callable[[Predictor], T], before_batch: Asked) -> T:
        windows = settings.complete(self.crop_size)
        with self._turn:
            # Others may have taken all the time that there was.
            before_batch()
            network = self._network(settings.precision, settings.compile)
            while True:
                predictor = self._predictor(network, settings, windows, before_batch)
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
        if compiled and self.runtime == PYTORCH and (reason := why_not_compiled(self.device.type)) is not None:
            if not self._told:
                _log.warning("%s", reason)
                self._told = True
            compiled = False
        key = (precision, compiled)
        if key not in self.networks:
            network = self._build(precision, compiled)
            self.networks[key] = self._compared(network, self._network(precision, False)) if compiled else network
        return self.networks[key]

    def _compared(self, compiled: WindowNetwork, plain: WindowNetwork) -> WindowNetwork:
        """The compiled network, or the plain one where what was compiled computes something else."""
        size = tuple(max(edge // 2, RECORDED[0]) for edge in self.crop_size)
        share = difference(*(outputs_of(each, self.device, size) for each in (compiled, plain)))
        self.self_check = f"compiled: {_told(share)}"
        if share <= BOUND:
            return compiled
        _log.warning("compile is left out: the compiled network %s.", _told(share))
        return plain


def compared_with_export(network: OnnxNetwork, path: Path, device: torch.device) -> str:
    """How an exported network compares with what PyTorch computed when it was exported, as a sentence.

    Raises:
        CheckpointError: it computes something else.
    """
    recorded = network.metadata.probe
    if not recorded:
        return "not compared with PyTorch: the file is of an older version. Export it again to have it compared."
    try:
        share = difference(outputs_of(network, device), recorded)
    except ValueError as error:
        raise no_export(path) from error
    if share > BOUND:
        raise CheckpointError(
            f"{path.name} does not compute what PyTorch did when it was exported: its result {_told(share)}, where "
            f"rounding explains {BOUND:.0%}. Export it from its checkpoint again, or deploy the checkpoint itself."
        )
    return _told(share)


def _told(share: float) -> str:
    return f"differs from PyTorch by {share:.2g} of the largest value"


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


def offered_runtimes() -> tuple[str, ...]:
    """The SDK's names of what a network can run on here, on the processor or on a GPU."""
    devices = {torch.device("cpu"), resolve_device(default_device())}
    return tuple(runtime for runtime in RUNTIMES if any(_missing(runtime, device) is None for device in devices))


def require_runtime(runtime: str, device: str) -> None:
    """Refuse a runtime that this machine does not have on a device.

    Raises:
        RequestError: with what is missing.
    """
    if runtime not in RUNTIMES:
        raise RequestError(f"The runtime must be one of {', '.join(RUNTIMES)}. Received: {received(runtime)}.")
    missing = None if runtime == PYTORCH else _missing(runtime, resolve_device(device))
    if missing is not None:
        raise RequestError(f"The runtime {runtime} is not here: {missing}")


def _missing(runtime: str, device: torch.device) -> str | None:
    """Why a runtime cannot be used; None if it can."""
    if runtime == PYTORCH:
        return None
    try:
        require_provider(_provider(runtime, device))
    except RuntimeUnavailableError as error:
        return str(error)
    return None


def _provider(runtime: str, device: torch.device) -> str:
    return "tensorrt" if runtime == TENSORRT else device.type


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
