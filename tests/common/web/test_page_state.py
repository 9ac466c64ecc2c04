"""What a request may leave in the state of the page."""

import pytest

from common.web.page_state import without_foreign_keys
from common.web.routes import SERVE, TRAIN, matching, routes_of

WIDGETS = {"start_button": {}, "experiment_name": {}}


def of(app: str, path: str, content: dict) -> dict:
    [route, *_] = matching(routes_of(app), path)
    return without_foreign_keys(content, route, lambda: WIDGETS)


@pytest.mark.parametrize(
    ("app", "path"),
    [(TRAIN, "/train_from_api"), (TRAIN, "/train_status"), (SERVE, "/inference_image_id"), (SERVE, "/deploy_from_api")],
)
def test_what_programs_send_is_no_state_of_the_page(app: str, path: str):
    content = {"state": {"app_state": {"classes": []}}, "context": {"apiToken": "t"}}
    told = of(app, path, content)
    assert told["state"] == content["state"], "the route reads it"
    assert told["context"] == {"apiToken": "t", "outside_request": True}, "by this the SDK knows"
    assert of(app, path, {})["context"] == {"outside_request": True}


@pytest.mark.parametrize("path", ["/start_button/button_clicked_cb", "/sly/state"])
@pytest.mark.parametrize("app", [TRAIN, SERVE])
def test_of_what_the_page_sends_the_widgets_own_keys_are_kept(app: str, path: str):
    sent = {"state": {"experiment_name": {"value": "x"}, "foreign": 1}, "context": {}}
    assert of(app, path, sent) == {"state": {"experiment_name": {"value": "x"}}, "context": {}}
    assert of(app, path, {}) == {}
