"""Every widget that the pages use works with the stand-ins: from the click to Python and back."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import supervisely as sly

from sandbox.demo.processes import app, free_port
from sandbox.synthetic.projects import write_project
from sandbox.testing import running_sandbox

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    write_project(folder / "photos", "source", 2, seed=0, size=(96, 80), labelled=True)
    with running_sandbox(folder / "instance") as sandbox:
        api = sly.Api(sandbox.address, sandbox.token)
        project_id, _ = sly.upload_project(str(folder / "photos"), api, sandbox.workspace_id, log_progress=False)
        env = sandbox.env(
            ENV="development",
            TASK_ID=sandbox.create_task("gallery")["id"],
            PROJECT_ID=project_id,
            APP_NAME="Gallery",
            SLY_APP_DATA_DIR=folder / "data",
            PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
        )
        with app("gallery:app", free_port(), env, folder / "gallery.log") as running:
            yield running.address


@pytest.fixture(scope="module")
def gallery(visit, address):
    return visit(address)


@pytest.fixture(autouse=True)
def nothing_went_wrong(gallery):
    gallery.problems.clear()
    yield
    gallery.check()


def _card(gallery, title):
    return gallery.page.locator(".card").filter(has=gallery.page.get_by_role("heading", name=title, exact=True)).last


def _field(gallery, title, nth=0):
    return gallery.page.locator(".input-label").filter(has_text=title).nth(nth)


def _heard(gallery, text):
    gallery.page.get_by_text(text, exact=True).wait_for()


def _select(gallery):
    _field(gallery, "A select").locator("input").click()
    gallery.page.locator(".el-select-dropdown__item:visible", has_text="Option 3").click()


def _type(gallery):
    _field(gallery, "An input").locator("input").fill("hello")


def _number(gallery):
    _field(gallery, "A number").locator(".el-input-number__increase").click()


def _slide(gallery):
    _field(gallery, "A slider").locator(".el-slider__runway").click(position={"x": 1, "y": 2})


def _tree(gallery):
    field = _field(gallery, "Several of it")
    field.locator(".tree-select-head").click()
    field.locator(".tree-row", has_text="july").click()


def _one_of_tree(gallery):
    field = _field(gallery, "One of it")
    field.locator(".tree-select-head").click()
    field.locator(".tree-row", has_text="green").click()


def _filter(gallery):
    gallery.page.get_by_role("button", name="Framework").first.click()
    gallery.page.locator(".filter-list li", has_text="Other").click()


def _cell(gallery):
    gallery.page.locator(".plain-table td", has_text="spalling").click()


CLICKS = {
    "press": lambda g: g.page.get_by_role("button", name="Press").click(),
    "tick True": lambda g: g.page.get_by_text("Tick me").click(),
    "switch False": lambda g: g.page.locator(".el-switch").first.click(),
    "select value 3": _select,
    "input hello": _type,
    "number 1": _number,
    "slider 1": _slide,
    "tree [3]": _tree,
    "one 2": _one_of_tree,
    "filter ['other']": _filter,
    "cell class spalling": _cell,
    "collapse ['more']": lambda g: g.page.get_by_text("More settings").click(),
    "tab Ours": lambda g: g.page.get_by_text("Trained here").click(),
}


@pytest.mark.parametrize("heard", CLICKS)
def test_control_reaches_python_and_its_answer_the_page(gallery, heard):
    CLICKS[heard](gallery)
    _heard(gallery, heard)


def test_text_that_python_sets_is_in_the_editor_and_typed_text_in_python(gallery):
    code = gallery.page.locator(".editor .CodeMirror-code").first
    gallery.page.get_by_role("button", name="Add to the YAML").click()
    code.get_by_text("seed").wait_for()
    code.get_by_text("seed").click()
    gallery.page.keyboard.press("Control+End")
    gallery.page.keyboard.type("more: 2\n")
    gallery.page.get_by_role("button", name="Add to the YAML").click()
    _heard(gallery, "editor has 7 lines")
    assert gallery.state()["yaml"]["text"].endswith("seed: 1\nmore: 2\nseed: 1\n")


def test_chart_draws_points_as_they_come(gallery):
    markers = _card(gallery, "What is shown").locator(".apexcharts-marker:visible")
    before = markers.count()
    gallery.page.get_by_role("button", name="Add a point").click()
    _heard(gallery, "point")
    gallery.page.wait_for_function(f"document.querySelectorAll('.apexcharts-marker').length > {before}")


def test_progress_advances(gallery):
    gallery.page.get_by_role("button", name="Advance").click()
    gallery.page.locator(".el-progress", has_text="100%").wait_for()


def test_experiments_are_listed_and_one_is_chosen(gallery):
    gallery.page.get_by_text("Trained here").click()
    rows = _card(gallery, "Models").locator(".fast-table tbody tr")
    assert rows.count() == 2
    rows.nth(1).locator(".el-radio__input").click()
    gallery.page.wait_for_function("document.querySelectorAll('.fast-table .el-radio__input.is-checked').length === 1")
    rows.nth(1).locator(".el-select input").click()
    gallery.page.locator(".el-select-dropdown__item:visible", has_text="last.pth").click()


def test_locked_card_says_what_to_do_and_cannot_be_clicked(gallery):
    assert _card(gallery, "Locked").locator(".card-lock").inner_text().strip() == "Do the first step"


def test_closed_card_opens(gallery):
    inside = gallery.page.get_by_text("inside the closed card")
    assert not inside.is_visible()
    _card(gallery, "Closed").locator(".card-header").click()
    inside.wait_for()


def test_waiting_is_shown(gallery):
    gallery.page.get_by_role("button", name="Wait").click()
    mask = _card(gallery, "Waiting").locator(".el-loading-mask")
    mask.wait_for()
    gallery.page.get_by_role("button", name="Wait").click()
    mask.wait_for(state="hidden")


def test_dialog_of_python_opens_and_closes(gallery):
    gallery.page.get_by_role("button", name="Show a dialog").click()
    dialog = gallery.page.locator(".el-dialog", has_text="A question")
    dialog.get_by_text("With a sentence").wait_for()
    dialog.get_by_role("button", name="Ok").click()
    dialog.wait_for(state="hidden")


def test_failing_handler_is_said(gallery):
    gallery.page.get_by_role("button", name="Fail").click()
    box = gallery.page.locator(".el-message-box", has_text="Something went wrong")
    box.get_by_role("button", name="Ok").click()
    box.wait_for(state="hidden")
    assert all("500" in problem for problem in gallery.problems)
    gallery.problems.clear()


def test_page_comes_back_after_its_connection_is_lost(gallery):
    """What changed meanwhile is there: the client reads everything anew."""
    gallery.page.evaluate("slyApp.app.$children[0].socket.close()")
    gallery.page.get_by_text("The app does not answer").wait_for()
    gallery.page.get_by_text("The app does not answer").wait_for(state="hidden")
    gallery.page.get_by_role("button", name="Press").click()
    _heard(gallery, "press")


def test_page_works_behind_a_prefix(gallery):
    addresses = gallery.page.evaluate(
        f"""async () => {{
          const {{ address }} = await import({_client(gallery)!r});
          return [address('/sly/state', 'http://h/net/token/').href, address('/a/b', 'http://h:1/?x=1#y').href];
        }}"""
    )
    assert addresses == ["http://h/net/token/sly/state", "http://h:1/a/b"]


def test_patches_of_every_kind_are_applied(gallery):
    document = gallery.page.evaluate(
        f"""async () => {{
          const {{ applyPatch }} = await import({_client(gallery)!r});
          const document = {{ a: [1, 2, 3], b: {{ 'x/y': 1 }} }};
          applyPatch(document, [
            {{ op: 'add', path: '/a/1', value: 9 }}, {{ op: 'add', path: '/a/-', value: 4 }},
            {{ op: 'remove', path: '/a/0' }}, {{ op: 'replace', path: '/a/0', value: 8 }},
            {{ op: 'replace', path: '/b/x~1y', value: 2 }}, {{ op: 'add', path: '/c', value: {{}} }},
          ]);
          return document;
        }}"""
    )
    assert document == {"a": [8, 2, 3, 4], "b": {"x/y": 2}, "c": {}}


def _client(gallery):
    """Address of the client's module; a second copy of it must not start, so the page's own is asked for."""
    return re.search(r"http\S+SlyApp\.js", gallery.page.content()).group()
