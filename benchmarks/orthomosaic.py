"""How much memory the prediction of an orthomosaic takes, and how long: a generated GeoTIFF, predicted in this process.

    python -m benchmarks.orthomosaic --width 30000 --height 40000                  a stub in place of the network
    python -m benchmarks.orthomosaic --width 8000 --height 8000 --model best.pth   a real one

Memory is what the process holds at most beyond what it holds with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import Tensor

from common.hrda import ModelSettings
from common.hrda.metadata import NetworkMetadata
from serve.batch.local import settings_of_words
from serve.batch.orthomosaic import predict_orthomosaic
from serve.batch.worker import Worker
from serve.model.deployment import Deployment

_BLOCK = 512
_PALETTE = ((0, 0, 0), (220, 20, 60))


class StubNetwork:
    """Calls dark pixels a crack, in place of a network whose time and memory do not count.

    Args:
        crop_size: of the windows.
    """

    num_classes = 2

    def __init__(self, crop_size: tuple[int, int]) -> None:
        self.crop_size = crop_size

    def detail_logits(self, images: Tensor) -> Tensor:
        """Brightness and darkness, B×2×h/4×w/4."""
        grey = F.avg_pool2d(images.mean(1, keepdim=True), 4)
        return torch.cat([grey + 1, -grey], dim=1)

    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the context, and an even attention."""
        logits = self.detail_logits(images)
        return logits, torch.full_like(logits[:, :1], 0.5)

    def context_images(self, images: Tensor) -> Tensor:
        """At half the resolution."""
        return F.avg_pool2d(images, 2)

    def fuse(self, context: Tensor, attention: Tensor, detail: Tensor) -> Tensor:
        """The mean of both."""
        size = detail.shape[-2:]
        return torch.lerp(F.interpolate(context, size), detail, F.interpolate(attention, size))


def stub_worker(crop: int, **settings: object) -> Worker:
    """A worker with a `StubNetwork`."""
    model = ModelSettings(encoder="mit_b0", num_classes=2, crop_size=(crop, crop))
    metadata = NetworkMetadata(("__bg__", "crack"), _PALETTE, {"model": model.to_dict()})
    network = StubNetwork((crop, crop))
    return Worker(Deployment("stub", metadata, torch.device("cpu"), lambda *_: network), settings)


def write_mosaic(path: Path, width: int, height: int, every: int = 1, seed: int = 0) -> None:
    """Write a tiled GeoTIFF of noise with dark lines, block by block. Only one of `every` squares is not empty."""
    rng = np.random.default_rng(seed)
    side = 4 * _BLOCK
    tile = cv2.resize(rng.integers(90, 220, (side // 8, side // 8, 3), np.uint8), (side, side))
    for _ in range(20):
        cv2.line(tile, *(tuple(map(int, point)) for point in rng.integers(0, side, (2, 2))), (20, 20, 20), 3)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_000_000, 0.005, 0.005),
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        photometric="RGB",
        bigtiff="if_safer",
        nodata=0,
        sparse_ok=True,
    ) as file:
        for top in range(0, height, side):
            for left in range(top // side % every * side, width, every * side):
                h, w = min(side, height - top), min(side, width - left)
                file.write(np.moveaxis(tile[:h, :w], 2, 0), window=Window(left, top, w, h))


def held_bytes(name: str) -> int:
    """What the process holds now (VmRSS) or has held at most (VmHWM)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def measured(worker: Worker, source: Path, output: Path) -> dict[str, float]:
    """Predict a mosaic: seconds, processor seconds and bytes held beyond those at the beginning."""
    # What was held at most is counted anew from here.
    Path("/proc/self/clear_refs").write_text("5")
    before, begun, cpu = held_bytes("VmRSS"), time.perf_counter(), time.process_time()
    predict_orthomosaic(worker, source, output)
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
        "gigabytes": round((held_bytes("VmHWM") - before) / 1e9, 3),
        "gigabytes_before": round(before / 1e9, 3),
    }


def main() -> None:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orthomosaic", description=__doc__)
    parser.add_argument("--width", type=int, default=30_000)
    parser.add_argument("--height", type=int, default=40_000)
    parser.add_argument("--crop", type=int, default=1024, help="of the stub's windows (%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="of the squares only one of so many is not empty")
    parser.add_argument("--settings", nargs="*", default=[], help="KEY=VALUE pairs, as of serve predict")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of the stub")
    given = parser.parse_args()
    settings = {"input_scale": "original"} | settings_of_words(given.settings)
    if given.model:
        worker = Worker.from_file(given.model, "cpu", settings=settings)
    else:
        worker = stub_worker(given.crop, **settings)
    with TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        source = Path(place) / "mosaic.tif"
        write_mosaic(source, given.width, given.height, given.every)
        print(f"{source.stat().st_size / 1e9:.2f} GB on disk", flush=True)
        found = measured(worker, source, Path(place))
    print(json.dumps({"megapixels": round(given.width * given.height / 1e6), **found}))


if __name__ == "__main__":
    main()
