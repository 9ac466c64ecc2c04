"""Updates of the page: what they cost, and what becomes of long curves."""

import copy
import json
import math
import threading
import time

from fastapi import HTTPException
from supervisely.app import DataJson
from supervisely.app.widgets import LineChart

from train.page.live import BackgroundButton, Curve, Frozen, send

SECONDS_FOR_AN_UPDATE = 0.2


def test_frozen_values_are_a_list_for_the_browser_and_not_copied():
    frozen = Frozen({"x": 1, "y": 2.5} for _ in range(3))
    assert json.loads(json.dumps(frozen)) == [{"x": 1, "y": 2.5}] * 3
    assert copy.deepcopy({"data": frozen})["data"] is frozen


def test_replacing_long_curves_does_not_stop_the_page():
    """With lists the SDK needs a second for this, in which no click is answered."""
    chart = LineChart("losses", series=[])
    for run in range(2):
        series = Frozen(
            {"name": f"{number}", "data": Frozen({"x": x, "y": run + x / 7} for x in range(200))}
            for number in range(17)
        )
        chart.set_series(series, send_changes=False)
        before = time.perf_counter()
        send()
        assert time.perf_counter() - before < SECONDS_FOR_AN_UPDATE
    assert DataJson()[chart.widget_id]["series"][16]["data"][199]["x"] == 199


def test_long_curve_is_thinned_out_evenly_and_keeps_its_ends():
    curve = Curve(limit=50)
    for x in range(1001):
        curve.add(x, x * 2.0)
    points = curve.points()
    steps = {after[0] - before[0] for before, after in zip(points[:-2], points[1:-1], strict=True)}
    assert len(points) <= 51
    assert (points[0], points[-1], len(steps)) == ((0, 0.0), (1000, 2000.0), 1)


def test_what_is_no_number_is_no_point():
    """It would make the whole page's data unreadable: JSON has no NaN."""
    curve = Curve()
    for value in (math.nan, 1.0, math.inf):
        curve.add(1, value)
    assert curve.points() == [(1, 1.0)]
    assert Curve().points() == []


def test_click_is_answered_before_its_work_is_done():
    button = BackgroundButton("Work", widget_id="work_button")
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()
        raise HTTPException(409, "refused: said on the page, no traceback")

    click = button.click(work)
    click()
    assert begun.wait(10)
    assert not ended.is_set()
    may_end.set()
    assert ended.wait(10)
