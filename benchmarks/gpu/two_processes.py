"""Two processes that train one network on one device, exchanging by gloo: as one process with the whole batch?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from benchmarks.gpu.records import Record
from benchmarks.gpu.sizes import Sizes
from benchmarks.train import case_settings, make_batch, make_learner
from common.hrda.training.ranks import ALONE, Ranks

COUNT, ITERATIONS, BOUND = 2, 3, 1e-3


def check(sizes: Sizes, device: torch.device) -> Iterator[Record]:
    """Losses of the two against those of one; a library that cannot exchange the device's tensors says so here."""
    case = sizes.training[0]
    wanted = _losses(case, device, ALONE)
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_work, (case, str(device), folder), nprocs=COUNT)
        found = [np.load(Path(folder) / f"{rank}.npy") for rank in range(COUNT)]
    off = max(float((np.abs(one - wanted) / np.abs(wanted)).max()) for one in found)
    yield Record(
        "Two processes on one device", case, "float32, gloo", {"losses off by": off}, off <= BOUND, f"at most {BOUND:g}"
    )


def _work(rank: int, case: str, device: str, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=COUNT, timeout=timedelta(minutes=2))
    try:
        np.save(Path(folder) / f"{rank}.npy", _losses(case, torch.device(device), Ranks(rank, COUNT, COUNT)))
    finally:
        dist.destroy_process_group()


def _losses(case: str, device: torch.device, ranks: Ranks) -> np.ndarray:
    settings = case_settings(case, "ours")
    learner = make_learner(settings, device, ranks)
    losses = []
    for index in range(ITERATIONS):
        batch = make_batch(settings, device, index)
        part = batch._replace(**{name: ranks.part(getattr(batch, name)) for name in _IMAGES})
        scalars = learner.learn(part, index)
        losses.append([float(scalars["loss/source"]), float(scalars["loss/mixed"])])
    return np.array(losses)


_IMAGES = ("source_images", "source_labels", "target_images", "target_valid")
