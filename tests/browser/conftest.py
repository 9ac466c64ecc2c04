"""A headless Chromium that never leaves this machine, and pages that report everything that goes wrong on them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from sandbox import page_assets
from tests.weights import NOWHERE

sync_api = None
with contextlib.suppress(ImportError):
    from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REQUIRED = os.environ.get("REQUIRE_BROWSER") == "1"
SCREENS = os.environ.get("SCREENS")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SIZE = {"width": 1280, "height": 900}
PICTURE_BYTES = 120_000
# Tags that nobody took for a component stay in the document under their own name.
UNKNOWN_TAGS = (
    "[...new Set([...document.querySelectorAll('*')].map((e) => e.localName).filter((n) => n.includes('-')))]"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def _missing() -> str | None:
    if sync_api is None:
        return "the package playwright is not installed: pip install -r requirements-dev.txt"
    if CHROMIUM is None:
        return "there is no Chromium: apt-get install chromium"
    if not page_assets.installed():
        return "the page's npm packages are not installed: run `make page`, which needs Node"
    return None


class Visit:
    """An open page of an app, and what went wrong on it.

    Args:
        page: of Playwright, still empty.
        address: of the app.
    """

    def __init__(self, page: sync_api.Page, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        # A machine that runs other tests beside this one is slow, and no wait is longer for it where all is well.
        page.set_default_timeout(120_000)
        page.route("**/*", self._only_here)
        page.on("console", lambda m: m.type in ("error", "warning") and self.problems.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("response", lambda r: r.status >= 400 and self.problems.append(f"{r.status}: {r.url}"))
        page.on("requestfailed", self._failed)

    def _only_here(self, route: sync_api.Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"left this machine: {route.request.url}")
            route.abort()

    def _failed(self, request: sync_api.Request) -> None:
        # The page itself gives up a picture that is replaced while it loads.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"failed: {request.url}: {request.failure}")

    def load(self) -> None:
        """Open the page and wait until the client shows it."""
        self.page.goto(self.address)
        self.page.locator(".app-header").wait_for()

    def data(self) -> dict:
        """The app's data, as any client reads it."""
        return requests.post(f"{self.address}/sly/data", timeout=10).json()

    def state(self) -> dict:
        """The app's state, as any client reads it."""
        return requests.post(f"{self.address}/sly/state", timeout=10).json()

    def screen(self, name: str, locator: sync_api.Locator | None = None, photos: bool = False) -> None:
        """Write a picture for the documentation where the variable SCREENS names a folder; with `photos` as JPEG."""
        if SCREENS is None:
            return
        folder = Path(SCREENS)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Transitions end, and charts are drawn.
        self.page.wait_for_timeout(2500)
        picture = Image.open(io.BytesIO((locator or self.page).screenshot())).convert("RGB")
        if not photos:
            picture.quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
            return
        for quality in range(90, 30, -5):
            packed = io.BytesIO()
            picture.save(packed, "JPEG", quality=quality, subsampling=0, optimize=True)
            if packed.tell() <= PICTURE_BYTES:
                break
        (folder / f"{name}.jpg").write_bytes(packed.getvalue())

    def check(self) -> None:
        """Nothing failed, nothing left this machine, every component is known."""
        assert self.page.evaluate(UNKNOWN_TAGS) == []
        assert self.problems == []


@pytest.fixture(scope="module", autouse=True)
def no_downloads() -> Iterator[None]:
    """The apps find nobody who has pretrained weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
        yield


@pytest.fixture(scope="module")
def visit() -> Iterator[Callable[[str], Visit]]:
    """Open pages of apps; skipped with the reason where this machine has no browser, failed where one is required."""
    missing = _missing()
    if missing and REQUIRED:
        pytest.fail(f"REQUIRE_BROWSER=1, but {missing}")
    if missing:
        pytest.skip(missing)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))

        def open_page(address: str) -> Visit:
            visited = Visit(browser.new_page(viewport=SIZE), address)
            visited.load()
            return visited

        yield open_page
        browser.close()
