"""Mistakes of a person and a crash of the training: said where they are made, gone once they are mended."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import supervisely as sly
import yaml

from sandbox.demo import demonstration as demo
from sandbox.demo import domains
from sandbox.synthetic.projects import write_project
from sandbox.testing import running_sandbox
from tests.browser.pages import TrainPage

SETTINGS = {
    "iterations": 3000,
    "batch_size": 1,
    "log_interval": 2,
    "self_training_start": 0.0,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 16, "attention_channels": 8},
    "optimizer": {"warmup_iterations": 1},
    "inference": {"stride": [64, 64]},
    "data": {"scale": {"long_edge": None, "short_edge": None}, "workers": 0},
    "validation": {"interval": 20, "max_images": 1},
    "checkpoint": {"interval": 20},
}
PHOTOS, SIZE = 4, (64, 96)
TRAINING_MS = 180_000
# The SDK marks an error by an icon of this kind.
RED = """
(card) => [...card.querySelectorAll('i.zmdi-alert-circle')]
  .filter((e) => e.offsetParent).map((e) => e.parentElement.innerText.trim()).filter((text) => text)
"""


@pytest.fixture(scope="module")
def page(visit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    with running_sandbox(folder / "instance") as sandbox:
        api = sly.Api(sandbox.address, sandbox.token)
        for role, (domain, _, seed, labelled) in domains.GENERATED.items():
            write_project(
                folder / "projects" / role, domain, PHOTOS, seed=seed, size=SIZE, labelled=labelled, workers=1
            )
        specs = {role: str(folder / "projects" / role) for role in domains.GENERATED}
        projects = domains.upload(api, sandbox.workspace_id, specs, lambda _: None)
        task = demo.new_task(sandbox, "config.json")
        with demo.train_app(sandbox, task, projects, folder) as app:
            opened = TrainPage(visit(app.address))
            opened.process = app.process.pid
            yield opened


def red(page, card):
    """What a card shows as an error, line by line."""
    return page.card(card).evaluate(f"({RED})")


def wait_for_red(page, card, text):
    """Wait until a card says this as an error."""
    handle = page.card(card).element_handle()
    page.page.wait_for_function(
        f"([card, text]) => ({RED})(card).some((line) => line.includes(text))", arg=[handle, text]
    )


def wait_for_no_red(page, card, text=""):
    """Wait until a card has no error with this text any more."""
    handle = page.card(card).element_handle()
    page.page.wait_for_function(
        f"([card, text]) => !({RED})(card).some((line) => line.includes(text))", arg=[handle, text]
    )


def test_photos_that_are_missing_are_said_and_forgotten_once_chosen(page):
    page.select(page.PHOTOS)
    wait_for_red(page, page.PHOTOS, "Choose a validation project")
    page.look("mistake-photos", page.PHOTOS)
    page.domain("Validation", "val")
    # What the target lacks is said in red as soon as it is known.
    wait_for_no_red(page, page.PHOTOS, "Choose a validation project")
    page.select(page.PHOTOS)
    page.unlocked(page.MODEL)
    page.field(page.PHOTOS, "Target").get_by_text("Mode 'uda' needs target photos").wait_for()
    page.look("no-target-photos", page.PHOTOS)


def test_model_and_classes_that_are_missing_are_said_and_forgotten_once_chosen(page):
    model = page.card(page.MODEL)
    model.get_by_text("Custom models").first.click()
    page.select(page.MODEL)
    wait_for_red(page, page.MODEL, "Choose an experiment")
    model.get_by_text("Pretrained models").first.click()
    wait_for_no_red(page, page.MODEL)
    page.model("mit_b0")
    page.look("model", page.MODEL)
    page.select(page.MODEL)
    page.unlocked(page.CLASSES)
    tick = page.card(page.CLASSES).locator(".classes-table tbody tr", has_text="crack").locator(".el-checkbox__input")
    tick.click()
    page.select(page.CLASSES)
    wait_for_red(page, page.CLASSES, "Choose at least one class")
    tick.click()
    wait_for_no_red(page, page.CLASSES)
    page.select(page.CLASSES)
    page.unlocked(page.SETTINGS)


def test_number_is_checked_while_it_is_typed(page):
    field = page.field(page.SETTINGS, "Iterations")
    entry = field.locator("input")
    for typed, said in (("2.5", "Iterations must be a whole number of 1 or more"), ("99999999", "from 1 to 10000000")):
        # The field is not left: what is said comes with the keys.
        entry.fill(typed)
        field.get_by_text(said).wait_for()
    entry.fill("20000")
    field.get_by_text("must be").wait_for(state="hidden")
    assert "iterations: 20000" in page.yaml


@pytest.mark.parametrize("typed", ["2.5", "", "0", "-1", "abc"])
def test_number_that_cannot_be_is_said_at_its_field_and_gone_when_mended(page, typed):
    page.number("Iterations", typed)
    field = page.field(page.SETTINGS, "Iterations")
    field.get_by_text("Iterations must be a whole number of 1 or more").wait_for()
    field.get_by_text("The YAML keeps 20000").wait_for()
    page.select(page.SETTINGS)
    page.page.wait_for_function(
        "(card) => card.innerText.split('Iterations must be a whole number').length === 3",
        arg=page.card(page.SETTINGS).element_handle(),
    )
    if typed == "abc":
        page.look("mistake-settings", page.SETTINGS)
    page.number("Iterations", "20000")
    field.get_by_text("Iterations must be").wait_for(state="hidden")
    wait_for_no_red(page, page.SETTINGS, "Iterations")


def test_adaptation_without_target_is_said_before_the_start(page):
    wait_for_red(page, page.SETTINGS, "Mode 'uda' needs target photos")
    page.select(page.SETTINGS)
    page.page.wait_for_function(
        "(card) => card.innerText.split('needs target photos').length === 3",
        arg=page.card(page.SETTINGS).element_handle(),
    )
    page.look("no-target-settings", page.SETTINGS)
    missing = page.field(page.PHOTOS, "Target").get_by_text("Mode 'uda' needs target photos")
    missing.wait_for()
    page.field(page.SETTINGS, "Adaptation").locator(".el-switch").click()
    wait_for_no_red(page, page.SETTINGS)
    missing.wait_for(state="hidden")
    page.wait_for_yaml("mode: source-only")
    # Once the target is there, adaptation can be chosen again.
    page.card(page.PHOTOS).get_by_role("button", name="Reselect").click()
    page.domain("Target", "target")
    for card in (page.PHOTOS, page.MODEL, page.CLASSES):
        page.select(card)
        page.unlocked({page.PHOTOS: page.MODEL, page.MODEL: page.CLASSES, page.CLASSES: page.SETTINGS}[card])
    page.type_yaml(yaml.safe_dump(SETTINGS))
    page.wait_for_number("Batch size", "1")
    page.select(page.SETTINGS)
    page.unlocked(page.START)
    assert red(page, page.SETTINGS) == []


def test_estimate_says_what_an_iteration_takes_here(page):
    """With the settings and the network that are chosen, measured by the button on the model card."""
    model = page.card(page.MODEL)
    table = model.locator(".beautiful-table").first
    titles = table.locator("th").all_inner_texts()
    model.get_by_role("button", name="Estimate").click()
    model.get_by_text(
        re.compile(r"mit_b0 takes about [\d.]+ s an iteration here with these settings: 3000 iterations take about \d")
    ).wait_for(timeout=TRAINING_MS)
    row = table.locator("tr", has_text="mit_b0")
    cells = dict(zip(titles, row.locator("td").all_inner_texts(), strict=True))
    assert re.search(r"[\d.]+ s$", cells["An iteration"].strip()), cells
    assert re.match(r"[\d.]+ GiB", cells["Memory"].strip()), cells
    page.look("estimate", page.MODEL)


def test_name_that_cannot_be_is_said_at_the_start_and_forgotten_once_changed(page):
    name = page.field(page.START, "Experiment name").locator("input")
    name.fill("a/b")
    page.card(page.START).get_by_role("button", name="Start").click()
    wait_for_red(page, page.START, "without slashes")
    name.fill("mended")
    wait_for_no_red(page, page.START)


def test_crash_is_said_once_and_what_continues_keeps_curves_and_validations(page):
    start, progress = page.card(page.START), page.card(page.PROGRESS)
    start.get_by_role("button", name="Start").click()
    page.unlocked(page.PROGRESS)
    # Measured on this machine by the first iterations.
    start.get_by_text(re.compile(r"[\d.]+ s an iteration, [\d:]+ left")).wait_for(timeout=TRAINING_MS)
    progress.get_by_text("Validation 2 of 2").wait_for(timeout=TRAINING_MS)
    before = page.points()
    os.kill(trainer(page.process), signal.SIGKILL)
    wait_for_red(page, page.START, "was ended by the system")
    progress.get_by_text("step Training says why").wait_for()
    assert page.points() >= before
    page.look("crash", page.START)
    page.visit.load()
    wait_for_red(page, page.START, "was ended by the system")
    assert page.page.locator(".el-dialog:visible, .el-message-box:visible").count() == 0
    start.get_by_text("Continue the interrupted run").wait_for()
    start.get_by_role("button", name="Start").click()
    page.unlocked(page.PROGRESS)
    progress.get_by_text(re.compile(r"Validation 3 of 3")).wait_for(timeout=TRAINING_MS)
    assert red(page, page.START) == []
    assert iterations(page, "Losses")[:2] == [2, 4], "from the beginning of the run"
    assert iterations(page, "Validation mIoU")[:3] == [20, 40, 60]
    page.visit.check()


def iterations(page, title):
    """Where the first curve of a chart has points, by the app's own data."""
    charts = [value for value in page.visit.data().values() if isinstance(value, dict) and "series" in value]
    [chart] = [chart for chart in charts if chart["options"]["title"]["text"].startswith(title)]
    return [point["x"] for point in chart["series"][0]["data"]]


def trainer(app):
    """Number of the process in which an app trains."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == app and b"--changes" in command:
            return int(status.parent.name)
    raise AssertionError("no training runs")
