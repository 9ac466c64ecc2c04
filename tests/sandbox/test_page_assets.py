"""The stand-ins for the CDN's files."""

import json
import re
import shutil
import subprocess

import pytest
import requests

from sandbox import page_assets
from sandbox.testing import running_sandbox

needs_packages = pytest.mark.skipif(
    not page_assets.installed(), reason="the page's npm packages are not installed: run `make page`, which needs Node"
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    with running_sandbox(tmp_path_factory.mktemp("state")) as sandbox:
        yield f"{sandbox.address}/assets"


def test_lock_file_records_no_address_of_a_registry():
    lock = json.loads((page_assets.PAGE / "package-lock.json").read_text())
    assert lock["packages"]
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name


def test_every_package_is_pinned_and_locked():
    lock = json.loads((page_assets.PAGE / "package-lock.json").read_text())["packages"]
    for name, version in json.loads((page_assets.PAGE / "package.json").read_text())["dependencies"].items():
        assert re.fullmatch(r"[0-9.]+", version), name
        assert lock[f"node_modules/{name}"]["version"] == version


def test_without_packages_the_answer_says_what_to_do(assets, monkeypatch, tmp_path):
    monkeypatch.setattr(page_assets, "_MODULES", tmp_path)
    answer = requests.get(f"{assets}/sly-app-bundle/1/sly-app-widgets-1.bundle.js")
    assert answer.status_code == 404
    assert "make page" in answer.json()["error"]


@needs_packages
@pytest.mark.parametrize("version", ["2.2.8", "9.9.9"])
def test_bundle_of_any_version_holds_packages_and_components(assets, version):
    script = requests.get(f"{assets}/sly-app-bundle/{version}/sly-app-widgets-{version}.bundle.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["access-control-allow-origin"] == "*"
    for text in ("Vue.js v2.7.16", "ApexCharts v3.54.1", "Vue.component('sly-card'", "Vue.component('sly-apexchart'"):
        assert text in script.text


@needs_packages
def test_fonts_that_the_bundle_names_are_served(assets):
    url = f"{assets}/sly-app-bundle/1/sly-app-widgets-1.bundle.css"
    style = requests.get(url).text
    fonts = set(re.findall(r"""url\(['"]?([^'")]+\.(?:woff2?|ttf))""", style))
    assert len(fonts) >= 3
    for font in fonts:
        assert requests.get(requests.compat.urljoin(url, font)).ok, font


@needs_packages
def test_packages_are_served_in_their_pinned_version_only(assets):
    assert requests.get(f"{assets}/npm/socket.io-client@2.0.4/dist/socket.io.js").ok
    wrong = requests.get(f"{assets}/npm/socket.io-client@9.9.9/dist/socket.io.js")
    assert wrong.status_code == 404
    assert "socket.io-client@2.0.4" in wrong.json()["error"]


@pytest.mark.parametrize("path", ["npm/vue@2.7.16/../../client.js", "npm/vue@2.7.16/%2e%2e/%2e%2e/client.js"])
def test_files_outside_the_packages_are_not_served(assets, path):
    session = requests.Session()
    request = requests.Request("GET", assets).prepare()
    request.url = f"{assets}/{path}"
    assert session.send(request).status_code == 404


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_scripts_of_our_own_are_valid():
    for script in [page_assets.PAGE / "client.js", *(page_assets.PAGE / "components").glob("*.js")]:
        checked = subprocess.run(
            ["node", "--check", "--input-type=module"], input=script.read_bytes(), capture_output=True
        )
        assert checked.returncode == 0, (script.name, checked.stderr.decode())


def test_every_component_is_in_the_bundle():
    assert {path.name for path in (page_assets.PAGE / "components").iterdir()} == set(page_assets._COMPONENTS)
