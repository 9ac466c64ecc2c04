"""Whether an error says that memory has run out, whichever library raised it."""

from __future__ import annotations

import re

import torch

# Of CUDA, its libraries, torch's allocator on the CPU, ONNX Runtime and OpenCV only the first has a class of its own.
_WORDS = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate memory|insufficient memory|bad[_ ]alloc"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_LIBRARIES = ("cv2", "onnxruntime")
"""Packages whose errors are no kind of RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, raised by a library, says that the device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    is_technical = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] in _LIBRARIES
    return is_technical and _WORDS.search(str(error)) is not None
