"""Pages of the service's own: they need nothing from elsewhere, and say what it really answers."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import requests
from fastapi.openapi.models import OpenAPI
from PIL import Image

from common.web.routes import JSON, SERVE, Access, routes_of
from tests.serve.requests_of_clients import encoded


class References(HTMLParser):
    """Addresses that a page names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in ("src", "href", "action") and value]


@pytest.fixture(scope="module")
def described(running):
    return requests.get(f"{running.url}/openapi.json", timeout=10).json()


@pytest.mark.parametrize("name", ["", "docs", "try"])
def test_page_is_there_and_leads_nowhere_else(running, name):
    answer = requests.get(f"{running.url}/{name}", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    references = References(answer.text).found
    assert references or name == "try"
    for address in references:
        assert re.fullmatch(r"[\w.]+", address), "relative, below whatever path of the instance"
        assert requests.get(f"{running.url}/{address}", timeout=10).status_code == 200


def test_root_names_the_model_that_is_deployed(running):
    assert "model.pth (mit_b0) on cpu" in requests.get(running.url, timeout=10).text


def test_description_is_openapi_of_the_reviewed_routes(running, described):
    OpenAPI.model_validate(described)
    docs = requests.get(f"{running.url}/docs", timeout=10).text
    own = [
        route
        for route in routes_of(SERVE)
        if route.access is not Access.CLOSED and route.needed_by != "the page's script" and route.method != "WEBSOCKET"
    ]
    assert {(path, method) for path, methods in described["paths"].items() for method in methods} == {
        (route.path, route.method.lower()) for route in own
    }
    assert all(f"{route.method} {route.path}<" in docs for route in own)
    assert f"curl -F files=@photo.jpg {running.url}/inference_image" in docs
    assert docs.index("POST /inference_image<") < docs.index("POST /get_status<") < docs.index("GET /healthz<")


def test_description_says_what_a_request_needs(running, described):
    content = described["paths"]["/inference_image_url"]["post"]["requestBody"]["content"]
    assert content[JSON]["schema"]["properties"]["state"]["required"] == ["image_url"]
    refused = requests.post(f"{running.url}/inference_image_url", json={"state": {}}, timeout=10)
    assert "image_url" in refused.json()["message"]


def test_tried_photo_has_the_probabilities_that_scripts_get(running, image):
    files = {"files": ("photo.png", encoded(image))}
    answer = requests.post(f"{running.url}/try_photo", files=files, timeout=60).json()
    packed = requests.post(f"{running.url}/predict_probabilities", files=files, timeout=60).content
    expected = np.load(io.BytesIO(packed))["probabilities"]
    assert (answer["width"], answer["height"]) == (140, 90)
    assert answer["milliseconds"] > 0
    assert [one["name"] for one in answer["classes"]] == ["crack", "stain"], "without the background"
    assert [one["colour"] for one in answer["classes"]] == [[220, 20, 60], [30, 60, 200]]
    assert all(one["threshold"] == 0.5 for one in answer["classes"]), "this model's training measured none"
    for one, plane in zip(answer["classes"], expected[1:], strict=True):
        levels = np.array(Image.open(io.BytesIO(base64.b64decode(one["probabilities"].partition(",")[2]))))
        np.testing.assert_allclose(levels / 255, plane, atol=1 / 255)
    photo = Image.open(io.BytesIO(base64.b64decode(answer["photo"].partition(",")[2])))
    assert photo.size == (140, 90)


def test_what_is_no_photo_is_refused_with_the_reason(running):
    answer = requests.post(f"{running.url}/try_photo", files={"files": ("a.jpg", b"no photo")}, timeout=60)
    assert answer.status_code == 400
    assert "a.jpg" in answer.json()["message"]
