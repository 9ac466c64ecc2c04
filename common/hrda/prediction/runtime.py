"""What windows run on: PyTorch in three precisions, and ONNX Runtime with its providers."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.hrda.checks import SettingsError, closest
from common.hrda.metadata import ExportMetadata
from common.hrda.network.heads import HRDAHead
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.prediction.folded import WindowModule
from common.hrda.settings import PRECISIONS

ONNX_OPSET = 18
METADATA_KEY = "hrda"
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
    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 float32 of high-resolution windows B×3×h×w float32."""
        return self._apply(self._decode, self._features(images))

    @torch.inference_mode()
    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention, float32, of crops at half the resolution, B×3×h×w float32."""
        features = self._features(images)
        return self._apply(self._decode, features), self._apply(self._attend, features)

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        return self._encode(images.to(self._dtype, memory_format=torch.channels_last))

    def _apply(self, part: Callable[[Sequence[Tensor]], Tensor], features: Sequence[Tensor]) -> Tensor:
        if not self._one_by_one:
            return part(features).float()
        windows = zip(*(feature.split(1) for feature in features), strict=True)
        return torch.cat([part(window) for window in windows]).float()


class OnnxNetwork:
    """An exported network in ONNX Runtime.

    Args:
        path: a file of `export_onnx`.
        provider: 'cpu', 'cuda' or 'tensorrt' (TensorRT through ONNX Runtime: the engine is built at the first
            windows of each shape and kept beside the file).

    Raises:
        RuntimeUnavailableError: ONNX Runtime or the provider is not installed.
        SettingsError: not a file of `export_onnx`.
    """

    def __init__(self, path: str | Path, provider: str = "cpu") -> None:
        runtime = import_onnxruntime()
        wanted, available = PROVIDERS[provider], runtime.get_available_providers()
        if wanted[0] not in available:
            raise RuntimeUnavailableError(
                f"ONNX Runtime has no {wanted[0]} here (it has {', '.join(available)}). Install onnxruntime-gpu"
                f"{' and TensorRT' if provider == 'tensorrt' else ''}, or deploy with the runtime PyTorch."
            )
        options: list[Any] = list(wanted)
        if provider == "tensorrt":
            cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(Path(path).parent)}
            options[0] = (wanted[0], cache)
        try:
            self._session = runtime.InferenceSession(str(path), providers=options)
            metadata = ExportMetadata.from_dict(
                json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            )
            self.metadata = metadata.to_dict()
            self.crop_size, self.num_classes = metadata.model.crop_size, len(metadata.classes)
        except RuntimeUnavailableError:
            raise
        except Exception as error:
            # ONNX Runtime has no common class for what is wrong with a file.
            raise SettingsError(
                f"{Path(path).name} is not a network exported by this app: {' '.join(str(error).split())[:200]}. "
                "Export it from a checkpoint again."
            ) from error

    context_images = staticmethod(HRDASegmentor.context_images)
    fuse = staticmethod(HRDAHead.fuse)

    def detail_logits(self, images: Tensor) -> Tensor:
        """Logits B×C×h/4×w/4 float32 of high-resolution windows B×3×h×w float32."""
        return self.context_logits(images)[0]

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention, float32, of crops at half the resolution, B×3×h×w float32."""
        logits, attention = self._session.run(["logits", "attention"], {"images": images.cpu().numpy()})
        return torch.from_numpy(logits).to(images.device), torch.from_numpy(attention).to(images.device)


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


def export_onnx(
    model: HRDASegmentor,
    path: str | Path,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    best_thresholds: Mapping[str, float],
) -> None:
    """Write the network that one window goes through as ONNX (opset 18), with all that serving it needs.

    Input `images` B×3×h×w float32, normalised, with B, h and w free; outputs `logits` B×C×h/4×w/4 and `attention`
    B×(C or 1)×h/4×w/4, float32.

    Args:
        model: in eval mode, on the CPU.
        path: file to write.
        classes: names by index.
        palette: RGB of each class.
        settings: plain settings of the checkpoint.
        best_thresholds: probability of each class at which it was found best in training.

    Raises:
        RuntimeUnavailableError: the exporter's packages are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it and says so only in a traceback
    except ImportError as error:
        raise RuntimeUnavailableError("Exporting needs two packages. Run: pip install onnx onnxscript") from error
    side = [edge // 2 for edge in model.crop_size]
    # Two images, so that the exporter does not take the batch for the constant 1.
    example = torch.from_numpy(np.zeros((2, 3, *side), np.float32))
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            WindowModule(model),
            (example,),
            input_names=["images"],
            output_names=["logits", "attention"],
            dynamic_shapes={"images": free},
            opset_version=ONNX_OPSET,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    metadata = {
        "classes": list(classes),
        "palette": [list(colour) for colour in palette],
        "settings": dict(settings),
        "best_thresholds": dict(best_thresholds),
    }
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(metadata)})
    onnx.save_model(proto, str(path))
