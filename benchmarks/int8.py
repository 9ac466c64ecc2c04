"""ONNX Runtime in int8 on the processor, against float32 there and in PyTorch: `python -m benchmarks.int8`.

    python -m benchmarks.int8 --checkpoint best.pth --target DIR[:DATASET] --labelled DIR[:DATASET]

Static quantisation of convolutions and matrix products, one scale a channel of the weights, calibrated on windows of
target photos. The ways take turns photo by photo, with one thread, and what counts is the processor's time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.presets import EXACT, Way, labelled_photos, table
from common.data.images import read_image
from common.data.project import open_project
from common.hrda import InferenceSettings, Predictor, load_checkpoint
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.pixels import normalise, resize_image, scaled_size
from common.hrda.prediction.exported import IMAGES
from common.hrda.prediction.runtime import OnnxNetwork, TorchNetwork, export_checkpoint
from common.hrda.windows import window_boxes

OPERATORS = ("Conv", "MatMul", "Gemm")


class Windows(CalibrationDataReader):
    """Windows of photos as the network sees them, of both resolutions.

    Args:
        images: H×W×3 uint8 RGB, at the size at which the network sees photos.
        crop_size: of the network.
    """

    def __init__(self, images: Sequence[np.ndarray], crop_size: tuple[int, int]) -> None:
        self._windows = self._of(images, crop_size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next window, as ONNX Runtime asks for it."""
        return next(self._windows, None)

    @staticmethod
    def _of(images: Sequence[np.ndarray], crop_size: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
        detail = (crop_size[0] // 2, crop_size[1] // 2)
        for number, image in enumerate(images):
            pixels = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
            boxes = window_boxes(image.shape[:2], crop_size, crop_size)
            crop = boxes[number % len(boxes)].crop(pixels)
            for window in (HRDASegmentor.context_images(crop), crop[..., : detail[0], : detail[1]]):
                yield {IMAGES: window.numpy()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantise, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--target", metavar="DIR[:DATASET]", required=True, help="photos to calibrate on")
    parser.add_argument("--labelled", metavar="DIR[:DATASET]", required=True)
    parser.add_argument("--calibrate", type=int, default=40, help="photos to calibrate on (default: 40)")
    parser.add_argument("--photos", type=int, help="labelled photos, at even distances (default: all)")
    given = parser.parse_args(arguments)
    bundle = load_checkpoint(given.checkpoint)
    records = open_project(given.target)
    records = [records[number] for number in range(min(len(records), given.calibrate))]
    images = [read_image(record.image_path) for record in records]
    images = [resize_image(image, scaled_size(image.shape[:2], bundle.input_scale)) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        plain, reduced = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        export_checkpoint(given.checkpoint, plain)
        quantise(plain, reduced, Windows(images, bundle.model.crop_size))
        networks = {
            EXACT: TorchNetwork(bundle.model.eval(), "cpu"),
            "ONNX Runtime, float32": OnnxNetwork(plain),
            "ONNX Runtime, int8": OnnxNetwork(reduced),
        }
        ways = {
            name: Way(Predictor(network, InferenceSettings(), input_scale=bundle.input_scale))
            for name, network in networks.items()
        }
        for photo in labelled_photos(given.labelled, bundle.classes, given.photos, Path(folder) / "masks"):
            for way in ways.values():
                way.predict(photo, 1)
    print(table(ways))
    return 0


def quantise(plain: Path, reduced: Path, windows: CalibrationDataReader) -> None:
    """Write the network of `plain` in int8 to `reduced`, both files of ONNX."""
    prepared = reduced.with_suffix(".prepared.onnx")
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(reduced),
        windows,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
