"""What tests of several files of the training share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Networks of a few channels: more threads would wait for one another, and results differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
