"""The steps as a stream over processes and machines: read on processors, predict on workers, write on processors.

Ray Data moves photos from step to step and holds a step back while the next one has enough to do. So no more photos are
in memory than the steps need, however many there are.

What is unpickled here was pickled by another process of the same command and came through Ray, which pickles all that
it moves. Nothing of a file or of a user is.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.hrda.files import sum_of
from serve.batch import rays, steps
from serve.batch.manifest import Record
from serve.batch.plan import Task
from serve.batch.steps import Assignment, Step
from serve.errors import CLIENT_ERRORS, RequestError

if TYPE_CHECKING:
    from serve.batch.worker import Worker

TOGETHER = 8
"""Photos that are handed on together."""
_AT_THE_END = 2
_MOST_PIECES = 20_000
_PIECE_BYTES = 32 * 2**20
"""Of what is handed on together; a photo that is larger goes alone."""
_RETRIES = 3
"""How often a photo is tried again whose process was killed."""
_KILLED = f"The process that worked on it ended {_RETRIES + 1} times. The memory may not suffice for it."

Rows = dict[str, Any]


@dataclass(frozen=True)
class Machines:
    """What a run may use."""

    workers: int
    """Processes that predict."""
    threads: int
    """Of each worker, on processors."""
    gpu: bool
    """Whether each worker has a graphics card."""


def stream(assignment: Assignment, tasks: Sequence[Task], machines: Machines) -> Iterator[Record]:
    """Work on `tasks`; what became of each photo, in the order in which they are done.

    Raises:
        RequestError: something ends the whole run, such as a full disk; what is done is done.
    """
    import ray

    _configure(ray)
    rows = [{"tasks": pickle.dumps(piece)} for piece in _pieces(tasks, machines.workers)]
    on_processor = {"num_cpus": 1, "max_retries": _RETRIES}
    each = {"CPU": 1.0, "GPU": 1.0} if machines.gpu else {"CPU": float(machines.threads)}
    workers = min(machines.workers, len(rows))
    rays.wait_for_room(workers, each)
    results = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(partial(_read, assignment), batch_size=None, **on_processor)
        .map_batches(
            Predicting,
            # A worker needs no instance, whose code takes seconds to import.
            fn_constructor_args=(replace(assignment, photos=None, uploader=None), machines.threads),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=None,
            max_task_retries=_RETRIES,
            num_cpus=each["CPU"],
            num_gpus=each.get("GPU"),
        )
        .map_batches(partial(_write, assignment), batch_size=None, **on_processor)
    )
    missing = {task.item.name: task for task in tasks}
    try:
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            for content in batch["records"]:
                record, halt = pickle.loads(content)
                if halt:
                    raise RequestError(record.reason)
                missing.pop(record.photo, None)
                yield record
    except ray.exceptions.RayError as error:
        raise RequestError(
            f"Ray has ended early: {str(error).strip().partition(chr(10))[0][:300]} The same command goes on."
        ) from error
    for task in missing.values():
        yield steps.failed(assignment, task, _KILLED)


class Predicting:
    """The step on a worker, which reads the model once.

    Args:
        assignment: of the run.
        threads: to compute with.
    """

    def __init__(self, assignment: Assignment, threads: int) -> None:
        # Only here: processes that read and write wait for no torch.
        import torch

        from serve.batch.worker import Worker

        torch.set_num_threads(threads)
        self._assignment, self._trouble = assignment, ""
        self._worker: Worker | None = None
        try:
            require_same(assignment.model, assignment.wanted.model)
            self._worker = Worker.from_file(
                assignment.model, assignment.device, assignment.runtime, assignment.settings
            )
        except CLIENT_ERRORS as error:
            self._trouble = str(error)

    def __call__(self, batch: Rows) -> Iterator[Rows]:
        """Rows with what was read become rows with what was predicted."""
        found = [pickle.loads(content) for content in batch["steps"]]
        if self._worker is None:
            for step in found:
                yield _row(Step(step.task, reason=self._trouble, halt=True))
            return
        for step in steps.predict(self._assignment, self._worker, found):
            yield _row(step)


def require_same(path: Path, expected: str) -> None:
    """Refuse a model that is another one than the command was started with.

    Raises:
        RequestError: it is, or it is not there.
    """
    try:
        same = sum_of(path) == expected
    except OSError as error:
        raise RequestError(
            f"A machine of the cluster cannot read the model {path}: {error.strerror}. All need it at the same path."
        ) from error
    if not same:
        raise RequestError(f"The model {path} is another one on a machine of the cluster, or was replaced meanwhile.")


def _read(assignment: Assignment, batch: Rows) -> Iterator[Rows]:
    for content in batch["tasks"]:
        for task in pickle.loads(content):
            yield _row(steps.read(assignment, task))


def _write(assignment: Assignment, batch: Rows) -> Rows:
    return {"records": [pickle.dumps(steps.write(assignment, pickle.loads(content))) for content in batch["steps"]]}


def _row(step: Step) -> Rows:
    return {"steps": [pickle.dumps(step, protocol=5)]}


def _pieces(tasks: Sequence[Task], workers: int) -> list[list[Task]]:
    """Tasks that are handed on together; those that may end a process each alone, and last. Before the end the pieces
    become small, so that all workers have something to do until then."""
    usual = [task for task in tasks if not task.alone]
    together = max(TOGETHER, -(-len(usual) // _MOST_PIECES))
    last = max(len(usual) - workers * TOGETHER, 0) // together * together
    pieces = [usual[first : first + together] for first in range(0, last, together)]
    pieces += [usual[first : first + _AT_THE_END] for first in range(last, len(usual), _AT_THE_END)]
    return pieces + [[task] for task in tasks if task.alone]


def _configure(ray: Any) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _PIECE_BYTES
    context.downstream_capacity_backpressure_ratio = 1.0
    # A photo that ends its process four times is noted, and the rest goes on.
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
