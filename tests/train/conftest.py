"""What tests of several files of the training share."""

import multiprocessing

import pytest
import torch

# One server forks the processes of all tests, as quickly as they are imported here once. It is threadless, unlike
# pytest; torch._dynamo is what the first optimiser imports.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["train.run.engine", "train.sdk.app", "torch._dynamo", "torch.utils.tensorboard"]
)


@pytest.fixture(scope="module")
def one_thread():
    """Networks of a few channels: more threads would wait for one another, and results differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
