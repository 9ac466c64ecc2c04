"""Predictions that are waited for, and jobs: bounded in time, forgotten in time, silent about the house."""

import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from serve import jobs as module
from serve.errors import NotFound, Overloaded, RequestError, TimedOut, Unavailable
from serve.gate.admission import CURRENT, Admission, Call
from serve.gate.monitoring import Metrics
from serve.jobs import Jobs
from serve.limits import Limits
from tests.serve.requests_of_clients import wait_until


def make(**bounds) -> SimpleNamespace:
    limits = Limits(**bounds)
    metrics = Metrics(limits, lambda: 0, dict)
    return SimpleNamespace(jobs=Jobs(limits, metrics), admission=Admission(limits), metrics=metrics)


def results(n: int):
    return lambda inference_request: inference_request.add_results([{"n": n}])


def test_waiting_ends_in_time_and_the_place_is_kept_until_the_work_has_ended():
    service, go_on, stopped = make(request_timeout_s=0.1), threading.Event(), []

    def work(inference_request):
        assert go_on.wait(20)
        stopped.append(inference_request.is_stopped())

    place = service.admission.enter()
    token = CURRENT.set(Call("a", place=place))
    with pytest.raises(TimedOut, match="longer than 0.1 seconds"):
        service.jobs.run(work)
    CURRENT.reset(token)
    place.leave()
    assert service.admission.held == 1
    go_on.set()
    wait_until(lambda: service.admission.held == 0)
    assert stopped == [True]


def test_results_that_were_waited_for_are_not_kept():
    service = make()
    assert service.jobs.run(results(1)) == [{"n": 1}]
    assert service.jobs._inference_requests == {}, "the SDK keeps each for an hour"  # noqa: SLF001


def test_job_keeps_its_requests_place_until_it_ends():
    service, go_on = make(max_queue=1), threading.Event()
    place = service.admission.enter()
    token = CURRENT.set(Call("a", place=place))
    job, future = service.jobs.schedule_task(lambda inference_request: go_on.wait(20))
    CURRENT.reset(token)
    place.leave()
    with pytest.raises(Overloaded, match="queue is full"):
        service.admission.enter()
    go_on.set()
    future.result(20)
    wait_until(lambda: service.admission.held == 0)
    assert job.is_finished()


def test_jobs_do_not_keep_those_waiting_who_need_an_answer_now():
    service, go_on = make(jobs=1), threading.Event()
    for _ in range(3):
        service.jobs.schedule_task(lambda inference_request: go_on.wait(20))
    assert service.jobs.run(results(2)) == [{"n": 2}]
    go_on.set()


def test_clients_learn_of_an_error_without_its_traceback():
    service = make()

    def fail(message, kind, inference_request):
        raise kind(message)

    job, future = service.jobs.schedule_task(fail, "send a smaller image", RequestError)
    future.result(20)
    wait_until(job.is_finished)
    assert job.to_json()["exception"] == {"type": "RequestError", "message": "send a smaller image"}
    assert job.status()["stage"] == "Error"
    job, future = service.jobs.schedule_task(fail, "/secret/path", OSError)
    future.result(20)
    wait_until(job.is_finished)
    assert "secret" not in str(job.to_json())
    assert b'hrda_errors_total{kind="OSError"} 1.0' in service.metrics.text()


def test_error_does_not_keep_images_alive():
    service, seen = make(), []

    def fail(inference_request):
        image = np.zeros((8, 8, 3), np.uint8)
        seen.append(weakref.ref(image))
        raise RequestError("no")

    job, future = service.jobs.schedule_task(fail)
    future.result(20)
    wait_until(job.is_finished)
    gc.collect()
    assert job.exception is not None and seen[0]() is None


def test_finished_jobs_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "FINISHED_JOBS", 3)
    service, names = make(), []
    for n in range(6):
        job, future = service.jobs.schedule_task(results(n))
        future.result(20)
        wait_until(job.is_finished)
        names.append(job.uuid)
    assert len(set(names)) == 6
    with pytest.raises(NotFound, match=names[0]):
        service.jobs.get(names[0])
    assert service.jobs.get(names[-1]).pop_pending_results() == [{"n": 5}]


def test_service_that_shuts_down_waits_for_what_is_computed():
    service, go_on = make(), threading.Event()
    place = service.admission.enter()
    threading.Timer(0.1, place.leave).start()
    service.admission.close()
    assert service.admission.wait_until_empty(20)
    with pytest.raises(Unavailable, match="shutting down"):
        service.admission.enter()
    job, future = service.jobs.schedule_task(lambda inference_request: go_on.wait(20))
    service.jobs.close()
    assert job.is_stopped()
    go_on.set()
    future.result(20)


def test_job_of_many_results_waits_until_some_are_fetched(monkeypatch):
    monkeypatch.setattr(module.Job, "PENDING_RESULTS_MAX_SIZE", 2)
    service, done = make(), []

    def work(inference_request):
        for n in range(6):
            if not inference_request.goes_on():
                return
            inference_request.add_results([{"n": n}])
            done.append(n)

    job, future = service.jobs.schedule_task(work)
    wait_until(job.is_paused)
    assert done == [0, 1] and not future.done()
    fetched = []
    wait_until(lambda: fetched.extend(job.pop_pending_results()) or future.done())
    assert fetched + job.pop_pending_results() == [{"n": n} for n in range(6)]
    job, future = service.jobs.schedule_task(work)
    wait_until(job.is_paused)
    job.stop()
    future.result(20)
    assert len(job.pop_pending_results()) == 2
    assert len(service.jobs.run(work)) == 6, "nobody can fetch the results of a request that waits for all of them"


def test_job_whose_results_nobody_fetches_ends(monkeypatch):
    monkeypatch.setattr(module.Job, "PENDING_RESULTS_MAX_SIZE", 1)
    monkeypatch.setattr(module.Job, "PAUSE_SLEEP_MAX_WAIT", 0.1)
    service = make()

    def work(inference_request):
        while inference_request.goes_on():
            inference_request.add_results([{}])

    job, future = service.jobs.schedule_task(work)
    future.result(20)
    wait_until(job.is_finished)
    assert "none has been fetched for 0.1 seconds" in job.exception_json()["message"]
