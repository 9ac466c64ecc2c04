"""The pages of docs/ in the apps."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from common.web.answers import answer_all_errors, answer_error
from common.web.guide import DOCS, LINK, add_guide, as_html


@pytest.fixture(scope="module")
def client() -> TestClient:
    server = FastAPI()
    add_guide(server)
    answer_all_errors(server, answer_error)
    return TestClient(server)


def test_guide_and_the_pages_that_it_leads_to_are_answered(client):
    [address] = re.findall(r'href="\./([^"]+)"', LINK)
    page = client.get(f"/{address}")
    assert page.status_code == 200 and "<table>" in page.text
    assert 'id="glossary"' in page.text and 'href="#glossary"' in page.text
    leads_to = set(re.findall(r'href="([^"#:]+)', page.text))
    assert "troubleshooting.md" in leads_to
    for name in leads_to:
        assert client.get(f"/guide/{name}").status_code == 200, name


@pytest.mark.parametrize("name", ["nowhere.md", "comparison.jpg", "..%2FREADME.md", "%2Fetc%2Fpasswd"])
def test_nothing_else_is_answered(name, client):
    assert client.get(f"/guide/{name}").status_code == 404


def test_page_leads_nowhere_where_nothing_is_answered():
    for path in Path(DOCS).glob("*.md"):
        html = as_html(path.read_text(encoding="utf-8"))
        assert 'href="../' not in html and "<img" not in html, path
