"""Memory that has run out, told from other errors."""

import cv2
import numpy as np
import pytest
import torch

from common.hrda.checks import SettingsError
from common.hrda.out_of_memory import is_out_of_memory

TOO_MUCH = 2**60


def test_libraries_errors_of_too_little_memory_are_known():
    for allocate in (
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.empty(TOO_MUCH, dtype=np.uint8),
        lambda: bytearray(2**62),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        cv2.error("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 12 bytes"),
    ],
)
def test_words_of_devices_and_libraries_are_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not match"), SettingsError("long_side: out of memory"), OSError("Cannot allocate memory")],
)
def test_other_errors_are_other_errors(error):
    assert not is_out_of_memory(error)
