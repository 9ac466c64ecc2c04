"""The end of a training on the page: table, worst photos, and the comparison from the button to the verdict."""

from __future__ import annotations

import json
import re

import pytest
from supervisely.nn.experiments import get_experiment_infos

from common.metrics.photos import LEAST_PHOTOS
from tests.browser.pages import TrainPage
from tests.train import apps
from tests.train.apps import HYPERPARAMETERS, running_instance, started

PHOTOS = LEAST_PHOTOS + 1
TRAINING_MS = 180_000


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apps, "IMAGES", PHOTOS)
        with running_instance(tmp_path_factory.mktemp("instance")) as made:
            yield made


def test_comparison_from_the_button_to_the_verdict(visit, instance):
    settings = HYPERPARAMETERS.replace("max_images: 1", f"max_images: {PHOTOS}")
    options = {"model_benchmark": {"enable": False}}
    state = instance.state(hyperparameters=settings, options=options, device="cpu", experiment_name="compared")
    with started(instance, "development", **{"modal.state.guiState": json.dumps(state)}) as app:
        page = TrainPage(visit(app.url))
        page.card(page.START).get_by_role("button", name="Start").click()
        card = page.card(page.RESULT)
        compare = card.get_by_role("button", name="Compare without target photos")
        compare.wait_for(timeout=TRAINING_MS)
        card.get_by_text(re.compile(rf"mIoU [\d.]+ \([\d.]+ to [\d.]+\), {PHOTOS} validation photos")).wait_for()
        assert card.locator("tr", has_text="crack").locator("td").count() == 6
        card.get_by_text("best.pth, 2 iterations").wait_for()
        look_at_errors(page, card)
        page.look("result", page.RESULT)
        compare.click()
        card.get_by_text(re.compile("Target photos (brought|cost)|No difference can be told")).wait_for(
            timeout=TRAINING_MS
        )
        assert card.locator("tr", has_text="without target photos").locator("td").count() == 6
        end = card.get_by_role("button", name="End the app")
        end.wait_for()
        page.look("result-compared", page.RESULT)
        page.visit.check()
        # Waiting for the process alone would hold up the page's own request.
        with page.page.expect_response(re.compile("/end_app/")):
            end.click()
        assert app.process.wait(60) == 0, app.tail()
    [experiment] = get_experiment_infos(instance.api, instance.sandbox.team_id, "HRDA")
    text = instance.read(experiment, "README.md").read_text(encoding="utf-8")
    assert re.search("Target photos (brought|cost)|No difference can be told", text)
    assert "project 'validation'" in text
    assert str(instance.folder) not in text, "folders of the agent mean nothing to whoever reads it"
    assert instance.read(experiment, "errors/1_errors.jpg").stat().st_size > 0


def look_at_errors(page, card):
    """Each of the worst photos is a picture, and a click opens it large."""
    pictures = card.locator("img[alt^='errors in']")
    assert 1 <= pictures.count() <= 6
    page.page.wait_for_function("(one) => one.complete && one.naturalWidth > 0", arg=pictures.first.element_handle())
    with page.page.context.expect_page() as opened:
        pictures.first.click()
    opened.value.wait_for_load_state()
    assert re.search(r"/errors/1_errors\.jpg", opened.value.url)
    assert opened.value.evaluate("document.images[0].naturalWidth") == 96
    opened.value.close()
