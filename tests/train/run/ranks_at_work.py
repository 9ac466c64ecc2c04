"""What the processes of test_distributed.py do: run as a file, as the packages of others may be called `tests` too."""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data import datasets
from common.data.images import ImageError
from common.hrda.network.drop_path import DropPath
from common.hrda.network.encoders import build_encoder
from common.hrda.training.whole_batch import see_whole_batch
from train.run import engine
from train.run.launched import Launched
from train.run.learner import Learner
from train.run.preparation import Domains
from train.run.processes import joined
from train.run.request import RunRequest
from train.run.state import CheckpointWritten, Progressed, TrainingState, Validated
from train.settings.training import TrainSettings

RUN_NAME = "at_work"


class Witness(Learner):
    """A learner that tests can look at, and that may fail or ask for the end after some iterations."""

    made: Witness
    fails_after: int | None = None
    stops_after: tuple[int, threading.Event] | None = None
    loses_after: int | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        type(self).made = self
        self.sources: list[float] = []

    def learn(self, batch: Any, done: int) -> dict[str, Tensor]:
        """As the learner does."""
        if done == self.fails_after:
            raise MemoryError
        if self.stops_after is not None and done == self.stops_after[0]:
            self.stops_after[1].set()
        if done == self.loses_after:
            datasets.read_labelled_photo = _lost
        self.sources.append(float(batch.source_images.sum()))
        return super().learn(batch, done)


def train(
    launched: Launched,
    settings: TrainSettings,
    domains: Domains,
    out: Path,
    *,
    resume: bool = False,
    fails: int | None = None,
    stops: int | None = None,
    loses: int | None = None,
) -> dict[str, Any]:
    """Run and tell what came of it.

    Args:
        launched: this process's place.
        settings, domains, out, resume: of the run.
        fails: the last process fails after so many iterations.
        stops: the last process is asked to stop after so many iterations.
        loses: the last process cannot read any photo after so many iterations.
    """
    state, stop = TrainingState(), threading.Event()
    changes: list[Any] = []
    state.subscribe(lambda _, change: changes.append(change))
    engine.Learner = Witness
    if launched.rank == launched.count - 1:
        Witness.fails_after, Witness.loses_after = fails, loses
        Witness.stops_after = None if stops is None else (stops, stop)
    with joined(launched, "cpu", timeout_minutes=3) as ranks:
        result = engine.run(
            RunRequest(settings, domains, out, device="cpu", resume=resume), state=state, stop=stop, ranks=ranks
        )
    learner = Witness.made
    return {
        "scalars": {change.iteration: dict(change.scalars) for change in changes if isinstance(change, Progressed)},
        "written": sum(isinstance(change, CheckpointWritten) for change in changes),
        "validated": sum(isinstance(change, Validated) for change in changes),
        "iteration": result.iteration,
        "sources": learner.sources,
        "student": _plain(learner.student),
        "teacher": _plain(learner.teacher),
    }


def _lost(path: Path, _mask: Path) -> np.ndarray:
    raise ImageError(f"Cannot read the image {path}: gone.")


def exchange(launched: Launched) -> dict[str, Any]:
    """Use each way of exchanging something once."""
    with joined(launched, "cpu", timeout_minutes=3) as ranks:
        parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 5)]
        for number, parameter in enumerate(parameters[:2]):
            parameter.grad = torch.full((len(parameter),), float(number + ranks.index))
        ranks.average_gradients(parameters)
        layer = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(layer.weight, ranks.index)
        return {
            "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
            "scalars": {n: float(v) for n, v in ranks.mean_of_each({"a": torch.tensor(ranks.index)}).items()},
            "any": [ranks.any(False), ranks.any(ranks.index == 1)],
            "first": ranks.from_first(lambda: f"from {ranks.index}"),
            "copied": ranks.copy_from_first(layer).weight.tolist(),
        }


def normalise(launched: Launched, images: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Batch norm, dropout and stochastic depth of this process's part, with gradient."""
    with joined(launched, "cpu", timeout_minutes=3) as ranks:
        network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout2d(0.5), DropPath(0.5))
        see_whole_batch(network, ranks, torch.device("cpu"))
        torch.manual_seed(7)
        mine = ranks.part(torch.from_numpy(images)).clone().requires_grad_()
        out = network(mine)
        (out * ranks.part(torch.from_numpy(weights))).sum().backward()
        ranks.average_gradients(network.parameters())
        norm = network[0]
        gradients = norm.weight.grad * ranks.count, norm.bias.grad * ranks.count
        tensors = out.detach(), mine.grad, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked
        return [tensor.numpy() for tensor in tensors]


def encode(launched: Launched, name: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """An encoder's maps of this process's part, gradients of a sum that depends on each place, and statistics."""
    with joined(launched, "cpu", timeout_minutes=3) as ranks:
        torch.manual_seed(7)
        network = see_whole_batch(build_encoder(name).double().train(), ranks, torch.device("cpu"))
        maps = network(ranks.part(torch.from_numpy(images)))
        sum(feature.square().mul(torch.arange(feature.shape[-1])).mean() for feature in maps).backward()
        ranks.average_gradients(network.parameters())
        found = {f"map {place}": feature.detach() for place, feature in enumerate(maps)}
        found |= {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
        found |= {name: buffer for name, buffer in network.named_buffers() if "running" in name}
        return {name: tensor.numpy() for name, tensor in found.items()}


def _plain(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def answer(end: Any, launched: Launched, port: int, name: str, arguments: list[Any], options: dict[str, Any]) -> None:
    """Join as torchrun has processes join, and send what the function of that name returns or raises."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": launched.rank, "WORLD_SIZE": launched.count}
    os.environ.update({variable: str(value) for variable, value in environment.items()})
    torch.set_num_threads(1)
    try:
        end.send(globals()[name](launched, *arguments, **options))
    except Exception as error:
        traceback.print_exc()
        end.send(error)


if __name__ == RUN_NAME:
    answer(*task)  # noqa: F821
