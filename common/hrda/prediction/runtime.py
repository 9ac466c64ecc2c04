"""What windows run on: PyTorch in three precisions, and ONNX Runtime with its providers."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.hrda.checkpoints import load_checkpoint
from common.hrda.checks import SettingsError, closest
from common.hrda.files import replacing, sum_of
from common.hrda.network.heads import HRDAHead
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.prediction.exported import (
    ATTENTION,
    DETAIL,
    EXPORT_FORMAT,
    IMAGES,
    LOGITS,
    METADATA_KEY,
    no_export,
    read_export,
)
from common.hrda.prediction.folded import WindowModule
from common.hrda.prediction.probes import probe_window, record
from common.hrda.settings import PRECISIONS
from common.hrda.windows import BOX_GRID

ONNX_OPSET = 18
_SMALLEST_WINDOW = 64
_WHOLE_CELLS = 32
"""The coarsest stride of an encoder, in pixels."""
_SILENT = 4
_log = logging.getLogger(__name__)
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}


class RuntimeUnavailableError(RuntimeError):
    """A runtime that is not installed here. The message says what to install."""


class TorchNetwork:
    """A segmentor rearranged for prediction (`common.hrda.prediction.folded`), in PyTorch.

    Args:
        model: in eval mode; its encoder is shared where nothing has to change.
        device: where to compute.
        precision: 'float32', 'bfloat16' or 'float16'; logits are float32 in every case.
        compiled: through torch.compile; the first windows of each shape then take long.

    Raises:
        SettingsError: the device cannot compute in that precision.
    """

    def __init__(
        self, model: HRDASegmentor, device: str | torch.device, precision: str = "float32", *, compiled: bool = False
    ) -> None:
        device = torch.device(device)
        check_precision(precision, device)
        self.crop_size, self.num_classes = model.crop_size, model.num_classes
        self._dtype = getattr(torch, precision)
        module = WindowModule(model)
        if precision != "float32":
            module = copy.deepcopy(module)
        module = module.to(device, self._dtype, memory_format=torch.channels_last)
        parts = module.backbone, module.decoder, module.attention
        self._encode, self._decode, self._attend = map(torch.compile, parts) if compiled else parts
        # The maps of one window fit the processor's caches, and are small enough for memory that was used before: that
        # of all windows of a batch comes from the system and goes back to it at every layer.
        self._one_by_one = device.type == "cpu"

    context_images = staticmethod(HRDASegmentor.context_images)
    fuse = staticmethod(HRDAHead.fuse)

    @torch.inference_mode()
    def features(self, images: Tensor) -> list[Tensor]:
        """The encoder's features at strides 4, 8, 16 and 32 of images B×3×h×w float32, in the network's precision."""
        return self._encode(self._images(images))

    @torch.inference_mode()
    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 float32 of high-resolution windows B×3×h×w float32; B×C×h/2×w/2 with a fine branch."""
        images = self._images(images)
        return self._apply(self._decode, self._encode(images), images)

    @torch.inference_mode()
    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention, float32, of crops at half the resolution, B×3×h×w float32."""
        features = self._encode(self._images(images))
        return self._apply(self._decode, features), self._apply(self._attend, features)

    def _images(self, images: Tensor) -> Tensor:
        return images.to(self._dtype, memory_format=torch.channels_last)

    def _apply(self, part: Callable[..., Tensor], features: Sequence[Tensor], *images: Tensor) -> Tensor:
        """The answer of a part to features, and to the images where it takes them."""
        if not self._one_by_one:
            return part(features, *images).float()
        windows = zip(*(feature.split(1) for feature in features), strict=True)
        given = zip(windows, *(each.split(1) for each in images), strict=True)
        return torch.cat([part(*each) for each in given]).float()


class OnnxNetwork:
    """An exported network in ONNX Runtime.

    Args:
        path: a file of `export_onnx`.
        provider: 'cpu', 'cuda' or 'tensorrt' (TensorRT through ONNX Runtime: the engine is built at the first
            windows of each shape and kept beside the file).

    Raises:
        RuntimeUnavailableError: ONNX Runtime or the provider is not installed.
        CheckpointError: not a file of `export_onnx`, or its network does not compute what it says.
    """

    def __init__(self, path: str | Path, provider: str = "cpu") -> None:
        path = Path(path)
        require_provider(provider)
        metadata = read_export(path)
        self.metadata, self.crop_size, self.num_classes = metadata, metadata.model.crop_size, len(metadata.classes)
        self._outputs = [LOGITS, ATTENTION, *([DETAIL] if metadata.model.fine_branch else [])]
        wanted = PROVIDERS[provider]
        options: list[Any] = list(wanted)
        if provider == "tensorrt":
            cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(path.parent)}
            options[0] = (wanted[0], cache)
        runtime = import_onnxruntime()
        quiet = runtime.SessionOptions()
        quiet.log_severity_level = _SILENT
        try:
            self._session = runtime.InferenceSession(str(path), quiet, providers=options)
            # TensorRT would build an engine for each of the two shapes, which takes minutes.
            is_quick = provider != "tensorrt"
            trial = (
                self._session if is_quick else runtime.InferenceSession(str(path), quiet, providers=PROVIDERS["cpu"])
            )
            self._try(trial)
        except Exception as error:
            # ONNX Runtime has no common class for what is wrong with a file.
            raise no_export(path) from error

    def _try(self, session: Any) -> None:
        """Predict two small batches: shapes and numbers must be those of such a network."""
        for count, height, width in ((1, _SMALLEST_WINDOW, _SMALLEST_WINDOW), (2, _SMALLEST_WINDOW, 96)):
            images = np.zeros((count, 3, height, width), np.float32)
            logits, attention, *details = answers = session.run(self._outputs, {IMAGES: images})
            rest = (height // 4, width // 4)
            fits = logits.shape == (count, self.num_classes, *rest)
            fits = fits and attention.shape in {(count, channels, *rest) for channels in (1, self.num_classes)}
            fine = (count, self.num_classes, height // 2, width // 2)
            fits = fits and all(detail.shape == fine for detail in details)
            if not fits or not all(np.isfinite(answer).all() for answer in answers):
                raise ValueError("another network than it says")

    context_images = staticmethod(HRDASegmentor.context_images)
    fuse = staticmethod(HRDAHead.fuse)

    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 float32 of high-resolution windows B×3×h×w float32; B×C×h/2×w/2 with a fine branch."""
        [logits] = self._run([DETAIL if DETAIL in self._outputs else LOGITS], images)
        return logits

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention, float32, of crops at half the resolution, B×3×h×w float32."""
        logits, attention = self._run([LOGITS, ATTENTION], images)
        return logits, attention

    def _run(self, outputs: list[str], images: Tensor) -> list[Tensor]:
        answers = self._session.run(outputs, {IMAGES: images.cpu().numpy()})
        return [torch.from_numpy(answer).to(images.device) for answer in answers]


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot compute in.

    Raises:
        SettingsError: with what to choose instead.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"Unknown precision {precision!r}: {closest(str(precision), PRECISIONS)}")
    if precision == "float16" and device.type != "cuda":
        raise SettingsError("precision float16 needs a GPU. Choose bfloat16 or float32.")
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SettingsError("This GPU does not compute in bfloat16. Choose float16 or float32.")


def has_fast_bfloat16() -> bool:
    """Whether this processor computes bfloat16 in hardware; elsewhere it is slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def why_not_compiled(device_type: str) -> str | None:
    """Why torch.compile does not work on devices of a kind here, as a sentence; None if it does.

    It compiles an addition, which takes seconds; a network would take minutes to find out the same.
    """
    try:
        with torch.inference_mode():
            torch.compile(_add_one)(torch.zeros(64, device=device_type))
    except Exception:
        # Compilers, drivers and torch's own stages fail in classes of their own; each is a reason to go on without.
        _log.debug("torch.compile does not work here", exc_info=True)
        needed = "a C++ compiler (g++)" if device_type == "cpu" else "a C compiler (gcc), Python's headers and Triton"
        return f"compile is asked for and does not work here: it needs {needed}. Predicted without it."
    return None


def _add_one(values: Tensor) -> Tensor:
    return values + 1


def import_onnxruntime() -> Any:
    """ONNX Runtime.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError("ONNX Runtime is not installed here. Run: pip install onnxruntime") from error
    return onnxruntime


def require_provider(provider: str) -> None:
    """Make sure that ONNX Runtime can compute through `provider` ('cpu', 'cuda' or 'tensorrt') here.

    Raises:
        RuntimeUnavailableError: it cannot. The message says what to install.
    """
    wanted, available = PROVIDERS[provider][0], import_onnxruntime().get_available_providers()
    has_tensorrt = provider != "tensorrt" or importlib.util.find_spec("tensorrt") is not None
    if wanted not in available or not has_tensorrt:
        missing = f"has no {wanted}" if wanted not in available else "finds no TensorRT"
        raise RuntimeUnavailableError(
            f"ONNX Runtime {missing} here (it has {', '.join(available)}). Install onnxruntime-gpu"
            f"{' and TensorRT' if provider == 'tensorrt' else ''}, choose another device or the runtime PyTorch."
        )


def require_exporter() -> ModuleType:
    """The package onnx.

    Raises:
        RuntimeUnavailableError: a package that `export_onnx` needs is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it and says so only in a traceback
    except ImportError as error:
        raise RuntimeUnavailableError("Exporting needs two packages. Run: pip install onnx onnxscript") from error
    return onnx


def export_onnx(
    model: HRDASegmentor,
    path: str | Path,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    best_thresholds: Mapping[str, float],
    source: str = "",
) -> None:
    """Write the network that one window goes through as ONNX (opset 18), with all that serving it needs.

    Input `images` B×3×h×w float32, normalised, with B, h and w free; outputs `logits` B×C×h/4×w/4 and `attention`
    B×(C or 1)×h/4×w/4, float32, and of a network with a fine branch `detail` B×C×h/2×w/2.

    Args:
        model: in eval mode, on the CPU.
        path: file to write, in one step.
        classes: names by index.
        palette: RGB of each class.
        settings: plain settings of the checkpoint.
        best_thresholds: probability of each class at which it was found best in training.
        source: SHA-256 sum of the checkpoint; empty if it is not known.

    Raises:
        RuntimeUnavailableError: the exporter's packages are not installed.
        WriteError: the disk is full or not writable; what was there before is untouched.
    """
    onnx = require_exporter()
    # Two images, and more than one cell at the coarsest stride: the exporter takes a size of 1 for a constant. And no
    # whole cells: where an encoder fills its images up to whole ones, it would take "nothing to fill" for a constant.
    side = [max(edge // 2, _SMALLEST_WINDOW) // _WHOLE_CELLS * _WHOLE_CELLS + BOX_GRID for edge in model.crop_size]
    example = torch.from_numpy(np.zeros((2, 3, *side), np.float32))
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    module = WindowModule(model)
    with torch.inference_mode():
        probe = record(module(probe_window()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[IMAGES],
            output_names=[LOGITS, ATTENTION, *([DETAIL] if model.decode_head.head.fine is not None else [])],
            dynamic_shapes={"images": free},
            opset_version=ONNX_OPSET,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    metadata = {
        "format": EXPORT_FORMAT,
        "classes": list(classes),
        "palette": [list(colour) for colour in palette],
        "settings": dict(settings),
        "best_thresholds": dict(best_thresholds),
        "source": source,
        "probe": probe,
    }
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(metadata)})
    with replacing(Path(path)) as file:
        onnx.save_model(proto, file)


def export_checkpoint(checkpoint: Path, path: Path) -> None:
    """Write the network of a checkpoint as ONNX; see `export_onnx`.

    Raises:
        CheckpointError: not a checkpoint.
        RuntimeUnavailableError, WriteError: as `export_onnx`.
    """
    bundle = load_checkpoint(checkpoint)
    export_onnx(
        bundle.model.eval(),
        path,
        classes=bundle.classes,
        palette=bundle.palette,
        settings=bundle.settings,
        best_thresholds=bundle.best_thresholds,
        source=sum_of(checkpoint),
    )
