"""Slow work of which only the latest order counts."""

import threading

from train.page.latest import LatestOnly

LIMIT_S = 10


def test_new_order_ends_the_old_work_and_is_done():
    started, seen = threading.Event(), []

    def work(is_stale):
        seen.append(is_stale())
        if len(seen) == 1:
            started.set()
            while not is_stale():
                pass

    latest = LatestOnly(work, "test")
    latest.order()
    assert started.wait(LIMIT_S)
    assert not latest.wait(0.05)
    latest.order()
    assert latest.wait(LIMIT_S)
    assert seen == [False, False]


def test_orders_that_come_while_none_can_be_begun_are_done_once():
    begin, count = threading.Event(), []

    def work(_):
        begin.wait(LIMIT_S)
        count.append(1)

    latest = LatestOnly(work, "test")
    for _ in range(5):
        latest.order()
    begin.set()
    assert latest.wait(LIMIT_S)
    assert len(count) <= 2


def test_work_that_fails_is_tried_again_and_the_thread_goes_on():
    failures, done = [1, 2, 3, 4], []

    def work(_):
        if failures:
            raise ValueError(failures.pop())
        done.append(1)

    latest = LatestOnly(work, "test")
    latest.order()
    assert latest.wait(LIMIT_S)
    assert (len(failures), done) == (1, []), "not for ever"
    latest.order()
    assert latest.wait(LIMIT_S)
    assert (failures, done) == ([], [1])


def test_nothing_ordered_is_nothing_to_wait_for():
    assert LatestOnly(print, "test").wait(0)
