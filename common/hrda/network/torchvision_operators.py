"""Lets timm be imported where torchvision cannot load its compiled operators.

timm imports torchvision, whose package index serves builds for CUDA. Beside a CPU build of torch these find none of
their operators and their import fails. timm's encoders need none of them: a definition without a kernel is enough.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch

_DEFINITIONS = ("nms", "qnms")


@cache
def ensure_importable() -> None:
    """Define the operators that torchvision looks up while it is imported, unless its own can be loaded."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _loads(Path(found.origin).parent):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # noqa: TOR901, lives as long as the process
    for name in _DEFINITIONS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[torch.library.Library] = []


def _loads(package: Path) -> bool:
    """Whether torchvision's own operators can be loaded; if so, they are."""
    try:
        for file in package.glob("_C*.so"):
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
