"""Predictions that requests wait for, and jobs whose results are fetched later; bounded and forgotten in time.

The SDK's manager lets callers wait for ever, keeps each request with its results for an hour, derives the names of jobs
from the clock, sends its tracebacks to clients, and lets jobs that nobody listens to keep the workers from requests
that somebody waits for.
"""

from __future__ import annotations

import contextvars
import functools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

from supervisely import logger
from supervisely.nn.inference.inference_request import InferenceRequest, InferenceRequestsManager

from common.hrda.checks import received
from serve.answers import forget_frames, status_and_message
from serve.errors import NotFound, RequestError, Stopped, TimedOut
from serve.gate.admission import CURRENT
from serve.gate.monitoring import Metrics
from serve.limits import Limits

FINISHED_JOBS = 1000
"""Jobs whose results are kept at most; the oldest are forgotten first."""
MOST_ERRORS = 100
"""Images that could not be read which a job names; the rest is counted."""
UNREADABLE = "unreadable"
"""In the data of a result: the error of an image that could not be read."""
_PAUSE_S = 0.1


class Job(InferenceRequest):
    """One prediction on its way: progress, results, and the wish to stop."""

    PAUSE_SLEEP_MAX_WAIT = 600
    """Seconds that a job of many results waits for some of them to be fetched, before it gives up."""

    is_waited_for = False
    """Whether one request waits for all of the results. If not, the client fetches them while they come in."""

    details: Iterator[Mapping[str, Any]] | None = None
    """What the results, in their order, say besides their annotations, e.g. which image they belong to."""

    note = ""
    """What its client should know besides the results."""

    failed = 0
    """Images that could not be read."""

    predicted = 0
    """Results that there were, fetched or not."""

    first_error: Exception | None = None
    """Why the first of the images that could not be read could not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.errors: list[dict[str, Any]] = []
        """Which images could not be read, and why; the first `MOST_ERRORS`."""

    def add_results(self, results: list[dict[str, Any]]) -> None:
        """Results that are ready to be fetched."""
        ready = []
        for result in results:
            detail = dict(next(self.details)) if self.details is not None else {}
            size = detail.pop("size", (1, 1))
            error = _error_of(result)
            result = result | detail
            if error is None:
                self.predicted += 1
            else:
                sentence = self.note_error(result, error)
                if not self.is_waited_for:
                    # Whoever fetches results by id must not take it for an image without objects.
                    continue
                # Whoever waits counts on a result for each image, in their order.
                result |= {"annotation": _no_objects(size), "data": {}, "slides_data": {}, "error": sentence}
            ready.append(result | {"message": self.note} if self.note else result)
        super().add_results(ready)

    def note_error(self, result: Mapping[str, Any], error: Exception) -> str:
        """Note that an image could not be read; why, in a sentence."""
        sentence = status_and_message(error)[1]
        which = {name: result[name] for name in ("image_id", "name", "frame_index") if result.get(name) is not None}
        which = {"index": self.predicted + self.failed, **which, "message": sentence}
        place = {f"image_{name.removeprefix('image_')}": value for name, value in which.items() if name != "message"}
        logger.warning(f"An image cannot be read: {sentence}", extra={"job": self.uuid} | place)
        self.failed += 1
        self.first_error = self.first_error or error
        forget_frames(error)
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(which)
        return sentence

    def require_some(self) -> None:
        """Refuse to end well where not one image could be read.

        Raises:
            Exception: why the first could not.
        """
        if self.first_error is not None and not self.predicted:
            raise self.first_error

    def to_json(self) -> dict[str, Any]:
        """How far it is, and which images could not be read."""
        return super().to_json() | {"failed": self.failed, "errors": list(self.errors)}

    def goes_on(self) -> bool:
        """Whether its work is still wanted. While too many results wait to be fetched, so does the caller.

        Raises:
            RequestError: nobody has fetched any for `PAUSE_SLEEP_MAX_WAIT` seconds.
        """
        while self.is_paused() and not self.is_waited_for and not self.is_stopped():
            if self.paused_for() > self.PAUSE_SLEEP_MAX_WAIT:
                raise RequestError(
                    f"The job has ended early: {self.pending_num()} results wait, and none has been fetched for "
                    f"{self.PAUSE_SLEEP_MAX_WAIT} seconds. Fetch them while the job runs, with pop_inference_results."
                )
            time.sleep(_PAUSE_S)
        return not self.is_stopped()

    def exception_json(self) -> dict[str, str] | None:
        """What clients are told about the job's error: no traceback."""
        if self.exception is None:
            return None
        return {"type": type(self.exception).__name__, "message": status_and_message(self.exception)[1]}

    @property
    def exception(self) -> Exception | None:
        """The error that ended the job."""
        return super().exception

    @exception.setter
    def exception(self, error: Exception) -> None:
        InferenceRequest.exception.fset(self, error)
        forget_frames(error)


PRESENT: ContextVar[Job | None] = ContextVar("the prediction that is being worked on", default=None)
"""Known in the thread that predicts, whatever of the SDK lies between."""


def require_wanted() -> None:
    """Asked by what predicts before each batch of windows.

    Raises:
        Stopped: nobody waits for the result any more.
    """
    if (job := PRESENT.get()) is not None and job.is_stopped():
        raise Stopped


class Jobs(InferenceRequestsManager):
    """Runs predictions on two pools of threads: one for requests whose clients wait, one for jobs.

    Args:
        limits: of the service.
        metrics: where errors of jobs are counted.
        around: makes a context in which each prediction runs, in its thread.
    """

    def __init__(
        self, limits: Limits, metrics: Metrics, around: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        super().__init__(ThreadPoolExecutor(limits.jobs, thread_name_prefix="job"))
        self._limits, self._metrics, self._around = limits, metrics, around
        self._waited_for = ThreadPoolExecutor(limits.workers, thread_name_prefix="request")
        self._jobs: dict[str, Job] = {}

    def create(self, inference_request_uuid: str | None = None) -> Job:
        """A new job by whose uuid a client finds it again."""
        job = self._new(inference_request_uuid)
        for old in [each for each in list(self._jobs.values()) if each.is_finished()][:-FINISHED_JOBS]:
            self.remove(old.uuid)
        self._jobs[job.uuid] = job
        self.add(job)
        return job

    def get(self, inference_request_uuid: str) -> Job:
        """The job of that uuid.

        Raises:
            NotFound: there is none, or none any more.
        """
        job = self._jobs.get(inference_request_uuid) if isinstance(inference_request_uuid, str) else None
        if job is None:
            raise NotFound(
                "There is no such job: it was cleared, or its results were not fetched for "
                f"{self._limits.job_ttl_s} seconds. "
                f"Received: inference_request_uuid {received(inference_request_uuid)}."
            )
        return job

    def remove(self, inference_request_uuid: str) -> None:
        """Stop a job and forget it with its results."""
        super().remove(inference_request_uuid)
        self._jobs.pop(inference_request_uuid, None)

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Predict and wait for the results.

        Raises:
            TimedOut: it takes longer than the service lets a client wait. What has begun ends at its next batch of
                windows.
        """
        job = self._new()
        job.is_waited_for = True
        # The gate writes a line about the request; half a dozen about its stages would hide it.
        job.progress.need_info_log = False
        future = self._submit(job, func, args, kwargs)
        try:
            future.result(self._limits.request_timeout_s)
        except NotInTime as error:
            job.stop()
            future.cancel()
            raise TimedOut(
                f"The answer takes longer than {self._limits.request_timeout_s:g} seconds. Send smaller or fewer "
                "images, or use the asynchronous address."
            ) from error
        return job.pop_pending_results()

    def schedule_task(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Job, Future]:
        """Start a job and return at once."""
        call, started = CURRENT.get(), time.perf_counter()
        context = contextvars.copy_context()

        @functools.wraps(func)
        def work(*args: Any, **kwargs: Any) -> Any:
            return context.run(self._work, func, *args, **kwargs)

        def ended(_: Future) -> None:
            if call and call.place:
                call.place.leave()
            if job.exception is not None:
                self._metrics.errors.labels(type(job.exception).__name__).inc()
            facts = {"request_id": call.id if call else None, "job": job.uuid, "stage": job.stage}
            facts |= {"error": job.exception_json(), "seconds": round(time.perf_counter() - started, 3)}
            logger.info("job", extra=facts)

        if call and call.place:
            call.place.share()
        job, future = super().schedule_task(work, *args, **kwargs)
        future.add_done_callback(ended)
        return job, future

    def stop_all(self) -> None:
        """Let every job end at its next batch of windows."""
        for job in list(self._jobs.values()):
            job.stop()

    def close(self) -> None:
        """Start nothing any more, and end without waiting."""
        self.stop_all()
        self._waited_for.shutdown(wait=False, cancel_futures=True)

    def _work(self, func: Callable[..., Any], *args: Any, inference_request: Job, **kwargs: Any) -> Any:
        PRESENT.set(inference_request)
        # A job that was stopped has not failed, and a client that has had its time was told so.
        with suppress(Stopped), self._around():
            require_wanted()
            returned = func(*args, inference_request=inference_request, **kwargs)
            inference_request.require_some()
            return returned

    def _new(self, name: str | None = None) -> Job:
        job, call = Job(uuid_=name or uuid.uuid4().hex, ttl=self._limits.job_ttl_s, manager=self), CURRENT.get()
        job.note = call.note if call else ""
        return job

    def _submit(self, job: Job, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Future:
        call = CURRENT.get()
        if call and call.place:
            call.place.share()
        context = contextvars.copy_context()
        future = self._waited_for.submit(context.run, self._work, func, *args, inference_request=job, **kwargs)

        def ended(_: Future) -> None:
            job.on_inference_end()
            self.global_progress.inference_finished(job.global_progress_current, job.global_progress_total)
            if call and call.place:
                call.place.leave()

        future.add_done_callback(ended)
        return future


def _error_of(result: Mapping[str, Any]) -> Exception | None:
    data = result.get("data")
    return data.get(UNREADABLE) if isinstance(data, dict) else None


def _no_objects(size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    return {"description": "", "size": {"height": height, "width": width}, "tags": [], "objects": []}
