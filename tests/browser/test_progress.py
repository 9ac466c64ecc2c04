"""Curves and previews of a running training: they keep up, whatever happens to a chart, a window or the run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import requests

from sandbox.demo.processes import app, free_port
from sandbox.testing import running_sandbox
from train.run.state import Failed, PhaseChanged, Preview, Progressed, Started, Timed, Validated, encode

ROOT = Path(__file__).resolve().parents[2]
CHARTS = 8
# The last iteration that each chart has drawn, by the place of its last point.
DRAWN = """
() => [...document.querySelectorAll('.chart')].map((element) => {
  const { w } = element.__vue__.chart || {};
  const series = w ? w.globals.seriesX : [];
  return series.length ? Math.max(...series[0]) : 0;
})
"""
VUE = "(number) => document.querySelectorAll('.chart')[number].__vue__"


class Run:
    """A run that the page is told of.

    Args:
        page: a `Visit` of conftest.
    """

    def __init__(self, page):
        self.page, self.iteration = page, 0

    def tell(self, *changes):
        for change in changes:
            requests.post(f"{self.page.address}/change", data=encode(change), timeout=60).raise_for_status()

    def begin(self):
        requests.post(f"{self.page.address}/begin", timeout=60).raise_for_status()

    def go_on(self, to):
        """Iterations up to `to`, each tenth measured."""
        for iteration in range(self.iteration + 5, to + 1, 5):
            scalars = {"loss/source": 1 / iteration, "lr": 1e-4, "pseudo_label/confident_share": 0.5}
            scalars |= {"pseudo_label/share/1": 0.02}
            self.tell(Progressed(iteration, scalars, 60.0, 0.5))
            if iteration % 10 == 0:
                picture = Preview("validation", "a.jpg", {"photo": f"/run/previews/{iteration:06d}/photo.jpg"})
                scores = {"teacher/mIoU": 0.5, "teacher/iou/crack": 0.4, "teacher/mclDice": 0.3}
                scores |= {"teacher/mBestIoU": 0.4}
                self.tell(Validated(iteration, scores, (picture,)))
        self.iteration = to

    def wait_until_drawn(self, iteration=None, charts=range(CHARTS)):
        """Scroll to each chart and wait until it shows the run's last iteration."""
        for number in charts:
            self.page.page.locator(".chart").nth(number).scroll_into_view_if_needed()
            self.page.page.wait_for_function(
                f"([number, wanted]) => ({DRAWN})()[number] === wanted", arg=[number, iteration or self.iteration]
            )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress")
    (folder / "run").mkdir()
    with running_sandbox(folder / "instance") as sandbox:
        env = sandbox.env(
            ENV="development",
            TASK_ID=sandbox.create_task("progress")["id"],
            APP_NAME="Progress",
            RUN=folder / "run",
            SLY_APP_DATA_DIR=folder / "data",
            PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
        )
        with app("progress:app", free_port(), env, folder / "progress.log") as running:
            yield running.address


@pytest.fixture(scope="module")
def run(visit, address):
    made = Run(visit(address))
    made.begin()
    made.tell(Started(0, 600), PhaseChanged("training"))
    made.go_on(10)
    return made


def test_first_iterations_say_what_the_rest_takes(run):
    run.tell(Timed(10, 295.0, 0.5))
    run.page.page.get_by_text("Training: iteration 10 of 600, 0.5 s an iteration, 4:55 left").wait_for()


def test_charts_keep_up_in_a_window_that_is_made_narrow_and_wide_again(run):
    run.wait_until_drawn()
    for width in (700, 320, 60, 1100, 1440):
        run.page.page.set_viewport_size({"width": width, "height": 900})
        run.go_on(run.iteration + 10)
        if width > 300:
            run.wait_until_drawn()
    run.page.screen("charts-1440")


def test_chart_that_cannot_be_drawn_stops_no_other_and_is_drawn_again(run):
    run.page.page.evaluate(f"() => {{ ({VUE})(0).chart.updateOptions = () => {{ throw new Error('no room'); }}; }}")
    # As ApexCharts itself leaves an update that has failed.
    run.page.page.evaluate(f"() => {{ ({VUE})(1).chart.updateOptions = () => new Promise(() => {{}}); }}")
    run.go_on(run.iteration + 10)
    run.wait_until_drawn(charts=range(2, CHARTS))
    run.go_on(run.iteration + 10)
    run.wait_until_drawn(charts=range(2, CHARTS))
    run.go_on(run.iteration + 10)
    run.wait_until_drawn()
    assert set(run.page.problems) == {"console: A chart was not drawn: Error: no room"}
    run.page.problems.clear()


@pytest.fixture
def late_requests(run):
    """Whatever the page tells the app arrives a moment late, as on a busy machine."""

    def later(route):
        time.sleep(0.3)
        route.continue_()

    run.page.page.route("**/value_changed", later)
    yield
    run.page.page.unroute("**/value_changed", later)


@pytest.mark.usefixtures("late_requests")
def test_continued_run_goes_on_with_its_curves_and_validations(run):
    before = run.iteration
    run.tell(Failed("The training process was ended by the system (signal 9)."))
    run.begin()
    run.tell(PhaseChanged("preparing"))
    run.wait_until_drawn(before)
    run.page.page.get_by_text(f"Validation {before // 10} of {before // 10}").wait_for()
    run.tell(Started(before - 10, 600), PhaseChanged("training"))
    run.wait_until_drawn(before - 10)
    run.iteration = before - 10
    run.go_on(before + 10)
    run.wait_until_drawn()
    run.page.page.get_by_text(f"Validation {run.iteration // 10} of {run.iteration // 10}").wait_for()
    run.page.check()
