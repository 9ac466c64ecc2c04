"""The main job by hand: three projects, a training watched and stopped, its experiment served.

With SCREENS=docs/screens it trains long enough for something to be seen, about ten minutes on two cores, and writes
the pictures of the documentation, and into `widths` those of all cards in two widths:
`SCREENS=docs/screens .venv/bin/python -m pytest tests/browser/test_chain.py -o timeout=1800`.
"""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path

import pytest
import supervisely as sly
import yaml
from supervisely.nn.experiments import get_experiment_infos

from sandbox.demo import demonstration as demo
from sandbox.demo import domains
from sandbox.synthetic.projects import write_project
from sandbox.testing import running_sandbox
from tests.browser.pages import WATCH_CLICKS, WIDTHS, ServePage, TrainPage

SETTINGS = {
    "iterations": 3000,
    "batch_size": 1,
    "log_interval": 2,
    "self_training_start": 0.0,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 16, "attention_channels": 8},
    "optimizer": {"warmup_iterations": 1},
    "inference": {"stride": [64, 64]},
    "data": {"scale": {"long_edge": None, "short_edge": None}, "workers": 0},
    "validation": {"interval": 10, "max_images": 3},
    "checkpoint": {"interval": 10},
}
PHOTOS, SIZE, VALIDATIONS = 6, (128, 160), 4
CLICKS = 20
# The bar is 200 ms on two quiet cores, and the figure is printed (docs/benchmarks.md). Ten times that is no busy
# machine but a page that the training holds up.
HELD_UP_MS = 2000
TRAINING_MS = 120_000
if "SCREENS" in os.environ:
    PHOTOS, SIZE, VALIDATIONS, TRAINING_MS = 120, (256, 256), 5, 900_000
    SETTINGS = yaml.safe_load(demo.SETTINGS.read_text()) | {
        "iterations": 1500,
        "log_interval": 5,
        "validation": {"interval": 100, "max_images": 3},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def sandbox(folder):
    with running_sandbox(folder / "instance") as running:
        yield running


@pytest.fixture(scope="module")
def api(sandbox):
    return sly.Api(sandbox.address, sandbox.token)


@pytest.fixture(scope="module")
def projects(folder, sandbox, api):
    for role, (domain, _, seed, labelled) in domains.GENERATED.items():
        write_project(folder / "projects" / role, domain, PHOTOS, seed=seed, size=SIZE, labelled=labelled)
    specs = {role: str(folder / "projects" / role) for role in domains.GENERATED}
    return domains.upload(api, sandbox.workspace_id, specs, lambda _: None)


@pytest.fixture(scope="module")
def train_task(sandbox):
    return demo.new_task(sandbox, "config.json")


def test_train_page_from_three_projects_to_an_experiment(visit, folder, sandbox, api, projects, train_task):
    with demo.train_app(sandbox, train_task, projects, folder) as app:
        opened = visit(app.address)
        page = TrainPage(opened)
        choose_photos(page)
        choose_model_and_classes(page)
        change_settings(page)
        start(page)
        watch(page)
        opened.check()
        # The app ends after the upload, so that the page has nobody left to talk to.
        stop(page)
    [experiment] = get_experiment_infos(api, sandbox.team_id, "HRDA")
    assert experiment.task_id == train_task
    assert experiment.experiment_name == "by hand"
    files = {Path(file["path"]).name for file in api.file.list(sandbox.team_id, experiment.artifacts_dir)}
    assert {"best.pth", "last.pth", "app_state.json", "experiment_info.json"} <= files


def choose_photos(page):
    page.domain("Target", "target")
    page.domain("Validation", "val")
    source = page.field(page.PHOTOS, "Source")
    source.get_by_text(f"{PHOTOS} images, {PHOTOS} labelled").wait_for()
    source.get_by_text("Share of pixels: crack").wait_for()
    page.visit.screen("train-1-photos", page.card(page.PHOTOS), photos=True)
    page.look("photos", page.PHOTOS)
    page.select(page.PHOTOS)
    page.unlocked(page.MODEL)


def choose_model_and_classes(page):
    page.model("mit_b0")
    page.card(page.MODEL).get_by_text("Random weights. The published weights of mit_b0 are non-commercial").wait_for()
    page.visit.screen("train-2-model", page.card(page.MODEL))
    page.select(page.MODEL)
    page.card(page.MODEL).get_by_text("from random weights. The published weights of mit_b0").wait_for()
    page.unlocked(page.CLASSES)
    row = page.card(page.CLASSES).locator(".classes-table tbody tr", has_text="crack")
    row.locator(".el-checkbox__input.is-checked").wait_for()
    page.visit.screen("train-3-classes", page.card(page.CLASSES))
    page.look("classes", page.CLASSES)
    page.select(page.CLASSES)
    page.unlocked(page.SETTINGS)


def change_settings(page):
    page.choose(page.field(page.SETTINGS, "Preset").locator(".el-select"), "Quick look")
    page.wait_for_yaml("iterations: 400")
    page.wait_for_number("Iterations", "400")
    page.number("Iterations", "777")
    page.wait_for_yaml("iterations: 777")
    page.visit.screen("train-4-settings", page.card(page.SETTINGS))
    page.look("settings", page.SETTINGS)
    page.type_yaml(yaml.safe_dump(SETTINGS))
    page.wait_for_number("Batch size", str(SETTINGS["batch_size"]))
    assert yaml.safe_load(page.yaml) == SETTINGS
    page.select(page.SETTINGS)
    page.unlocked(page.START)


def start(page):
    page.field(page.START, "Experiment name").locator("input").fill("by hand")
    page.visit.screen("train-5-start", page.card(page.START))
    page.look("start", page.START)
    page.card(page.START).get_by_role("button", name="Start").click()
    page.unlocked(page.PROGRESS)


def watch(page):
    progress = page.card(page.PROGRESS)
    progress.get_by_text(f"Validation {VALIDATIONS} of").wait_for(timeout=TRAINING_MS)
    assert page.points() > 10
    progress.locator("h3").first.scroll_into_view_if_needed()
    progress.locator(".apexcharts-line-series path").first.wait_for(state="attached")
    page.visit.screen("train-6-curves")
    measure_answers(page)
    pictures = progress.locator("img:visible")
    # Three pictures of each: validation photos as many as are measured, target photos as many as there are rows.
    assert pictures.count() == 3 * (SETTINGS["validation"]["max_images"] + 4)
    page.page.wait_for_function(
        "(all) => all.every((one) => one.complete && one.naturalWidth > 0)", arg=pictures.element_handles()
    )
    progress.get_by_text("Target photos").scroll_into_view_if_needed()
    page.visit.screen("train-7-previews", photos=True)
    page.look("progress", page.PROGRESS)
    page.look("start-running", page.START)


def measure_answers(page):
    """A click is answered by the app while it trains, within what a person takes for at once."""
    slider = page.card(page.PROGRESS).locator(".el-slider__runway")
    slider.scroll_into_view_if_needed()
    slider.click(position={"x": 2, "y": 2})
    caption = page.card(page.PROGRESS).get_by_text("Validation 1 of")
    caption.wait_for()
    caption.evaluate("(element) => element.id = 'watched-caption'")
    page.page.evaluate(WATCH_CLICKS, "#watched-caption")
    width = slider.bounding_box()["width"]
    for count in range(1, CLICKS + 1):
        slider.click(position={"x": 2 if count % 2 == 0 else width - 2, "y": 2})
        page.page.wait_for_function("(count) => window.answers.length >= count", arg=count)
    answers = sorted(page.page.evaluate("window.answers"))
    p95 = answers[round(0.95 * len(answers)) - 1]
    print(f"\nanswers to {len(answers)} clicks: median {statistics.median(answers):.0f} ms, p95 {p95:.0f} ms")
    assert statistics.median(answers) < HELD_UP_MS
    slider.click(position={"x": width - 2, "y": 2})


def stop(page):
    page.card(page.START).get_by_role("button", name="Stop and save").click()
    page.unlocked(page.RESULT)
    page.card(page.RESULT).get_by_text("The training is done").wait_for(timeout=TRAINING_MS)
    page.visit.screen("train-8-result", page.card(page.RESULT))


def test_serve_page_deploys_the_experiment_and_predicts(visit, folder, sandbox, api, projects, train_task):
    task = demo.new_task(sandbox, "serve/config.json")
    with demo.serve_app(sandbox, task, folder) as app:
        opened = visit(app.address)
        page = ServePage(opened)
        row = page.experiment(train_task)
        row.get_by_text("by hand", exact=True).wait_for()
        row.get_by_text(re.compile(r"^\d+\.\d%$")).wait_for()
        opened.screen("serve-1-experiment")
        page.card(page.SERVE).get_by_role("button", name="SERVE").click()
        page.card(page.SERVE).get_by_text("Model has been successfully loaded").wait_for(timeout=TRAINING_MS)
        opened.screen("serve-2-deployed")
        try_photo(page, app.address, task, folder)
        opened.check()
        image = projects["target"].images(api)[0]
        [prediction] = api.nn.connect(task).predict(image_id=image.id, show_progress=False)
        assert tuple(prediction.annotation.img_size) == (image.height, image.width)


def try_photo(page, address, task, folder):
    """A photo of one's own, with a threshold to move; and the lines that ask the same of this very service."""
    frame = page.card(page.TRY).frame_locator("iframe")
    frame.locator("input[type=file]").set_input_files(next((folder / "projects" / "target").rglob("img/*")))
    frame.get_by_text(re.compile(rf"{SIZE[1]} × {SIZE[0]} pixels in \d+ ms")).wait_for()
    slider = frame.get_by_label("threshold of crack")
    shares = []
    for threshold in ("0.01", "0.99"):
        slider.fill(threshold)
        said = frame.get_by_text(re.compile(rf"{threshold}: [\d.]+ % of the photo"))
        said.wait_for()
        shares.append(float(said.inner_text().split()[1]))
    assert shares[0] > shares[1], "the higher the threshold, the less is found"
    assert frame.locator("#curl").inner_text().startswith(f"curl -F files=@photo.jpg {address}/inference_image")
    assert f"api.nn.connect({task})" in frame.locator("#sdk").inner_text()
    slider.fill("0.30")
    for width in WIDTHS:
        page.page.set_viewport_size({"width": width, "height": 900})
        page.visit.screen(f"widths/serve-try-{width}", page.card(page.TRY), photos=True)
    page.page.set_viewport_size({"width": 1280, "height": 900})
