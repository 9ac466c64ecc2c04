"""What a person does on the pages of the two apps."""

from __future__ import annotations

import re
from typing import Any

# From the click to the next frame after the text has changed, in the browser's own clock.
WATCH_CLICKS = """
(selector) => {
  window.answers = [];
  let clicked = null;
  document.addEventListener('click', (event) => { clicked = event.timeStamp; }, true);
  new MutationObserver(() => {
    if (clicked === null) return;
    const start = clicked;
    clicked = null;
    requestAnimationFrame(() => window.answers.push(performance.now() - start));
  }).observe(document.querySelector(selector), { childList: true, characterData: true, subtree: true });
}
"""
WIDTHS = (1440, 1100)
# Texts that end in "…" because their box is too narrow, and texts that reach beyond the window. Editors scroll.
CUT = """
() => [...document.querySelectorAll('.card *')]
  .filter((e) => e.offsetParent && !e.children.length && e.innerText?.trim() && !e.closest('.CodeMirror'))
  // A chart's menu is there before it is opened, and unseen.
  .filter((e) => !e.closest('.apexcharts-menu'))
  .filter((e) => {
    const style = getComputedStyle(e);
    const hides = style.overflowX === 'hidden' && e.scrollWidth > e.clientWidth + 1;
    return hides || e.getBoundingClientRect().right > window.innerWidth + 1;
  }).map((e) => e.innerText.trim())
"""


class AppPage:
    """A page of cards.

    Args:
        visit: the open page, a `Visit` of conftest.
    """

    def __init__(self, visit: Any) -> None:
        self.visit, self.page = visit, visit.page

    def card(self, title: str) -> Any:
        """A card by its title."""
        heading = self.page.get_by_role("heading", name=title, exact=True)
        return self.page.locator(".card").filter(has=heading).first

    def field(self, card: str, title: str) -> Any:
        """A field of a card by its title, the innermost one."""
        named = self.page.locator(f".field-title:text-is('{title}')")
        return self.card(card).locator(".input-label").filter(has=named).last

    def choose(self, select: Any, option: str) -> None:
        """Choose in a list of element-ui."""
        select.locator("input").first.click()
        options = self.page.locator(".el-select-dropdown__item:visible")
        options.get_by_text(option, exact=True).first.click()

    def look(self, name: str, card: str) -> None:
        """A picture of a card for whoever looks, in both widths, in which no text is cut."""
        before = self.page.viewport_size
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": before["height"]})
            self.visit.screen(f"widths/{name}-{width}", self.card(card), photos=True)
            assert self.page.evaluate(CUT) == []
        self.page.set_viewport_size(before)

    def unlocked(self, title: str) -> None:
        """Wait until a card can be used."""
        self.card(title).locator("> .card-lock").wait_for(state="hidden")

    def select(self, title: str) -> None:
        """Finish a step."""
        self.card(title).get_by_role("button", name="Select", exact=True).click()


class TrainPage(AppPage):
    """The page of Train HRDA."""

    PHOTOS, MODEL, CLASSES = "Photos", "Select Model", "Classes Selector"
    SETTINGS, START, PROGRESS, RESULT = "Hyperparameters", "Training", "Progress", "Result"

    def domain(self, title: str, project: str) -> None:
        """Choose the project of a domain and wait for what is said of it."""
        field = self.field(self.PHOTOS, title)
        self.choose(field.locator(".el-select"), project)
        field.get_by_text(re.compile(r"^\d+ images")).wait_for()

    def model(self, name: str) -> None:
        """Choose a network."""
        self.card(self.MODEL).locator("tr", has_text=name).locator(".el-radio__input").click()

    def number(self, title: str, value: str) -> None:
        """Type a number into the form of settings."""
        entry = self.field(self.SETTINGS, title).locator("input")
        entry.fill(value)
        entry.press("Tab")

    def wait_for_number(self, title: str, value: str) -> None:
        """Wait until the form of settings shows a number. It may do so later than the editor."""
        entry = self.field(self.SETTINGS, title).locator("input")
        self.page.wait_for_function("([entry, value]) => entry.value === value", arg=[entry.element_handle(), value])

    @property
    def yaml(self) -> str:
        """What the editor shows, from its own document: a long text is not all in the page."""
        return self.card(self.SETTINGS).locator(".CodeMirror").evaluate("(element) => element.CodeMirror.getValue()")

    def wait_for_yaml(self, line: str) -> None:
        """Wait until the editor shows a line."""
        in_editor = "(line) => document.querySelector('.CodeMirror').CodeMirror.getValue().includes(line)"
        self.page.wait_for_function(in_editor, arg=line)

    def type_yaml(self, text: str) -> None:
        """Replace the YAML as a person does: by the clipboard's text into the editor."""
        self.card(self.SETTINGS).locator(".CodeMirror-lines").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)

    def points(self) -> int:
        """Points of all curves, by the app's own data."""
        charts = [value for value in self.visit.data().values() if isinstance(value, dict) and "series" in value]
        return sum(len(series["data"]) for chart in charts for series in chart["series"])


class ServePage(AppPage):
    """The page of Serve HRDA."""

    MODEL, SERVE, THRESHOLDS, TRY = "Select Model", "Serve Model", "Thresholds", "Try a photo"

    def experiment(self, task_id: int) -> Any:
        """Choose an experiment by the task that made it; its row."""
        row = self.card(self.MODEL).locator(".fast-table tbody tr", has_text=str(task_id))
        row.locator(".el-radio__input").first.click()
        return row
