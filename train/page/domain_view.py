"""What the page shows of one domain: a few photos, its facts, and what is wrong with the choice."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import zip_longest

from supervisely import Api
from supervisely.app.widgets import Container, Flexbox, Image, Text, Widget

from train.domain_facts import DomainFacts
from train.domain_problems import Problem

_PHOTOS = 4
_PHOTO_HEIGHT = 110
_PROBLEMS = 5


class DomainView:
    """Widgets that show a domain: ids `<role>_facts`, `<role>_shares`, `<role>_photo_1` …, `<role>_problem_1` …"""

    def __init__(self, role: str, *, invitation: str, with_shares: bool = False) -> None:
        """Make the widgets.

        Args:
            role: source, target or validation.
            invitation: what is said while nothing is chosen.
            with_shares: whether the share of pixels of each class is shown.
        """
        self._invitation = invitation
        self._with_shares = with_shares
        self._facts = Text(invitation, "info", widget_id=f"{role}_facts")
        self._shares = Text("", widget_id=f"{role}_shares")
        self._photos = [Image(height=_PHOTO_HEIGHT, widget_id=f"{role}_photo_{i}") for i in range(1, _PHOTOS + 1)]
        self._problems = [Text("", "warning", widget_id=f"{role}_problem_{i}") for i in range(1, _PROBLEMS + 1)]

    @property
    def widgets(self) -> list[Widget]:
        """In the order of the page: the problems first, beside what was chosen."""
        return [
            Container(self._problems, gap=0),
            Flexbox(self._photos, gap=8),
            Container([self._facts, self._shares], gap=0),
        ]

    def show_reading(self) -> None:
        """Say that the domain is being looked at."""
        self._show_photos([])
        _set(self._facts, "Reading…", "info")
        _set(self._shares, "", "text")
        self.show_problems([])

    def show_nothing(self) -> None:
        """Show that nothing is chosen."""
        self._show_photos([])
        _set(self._facts, self._invitation, "info")
        _set(self._shares, "", "text")

    def show_failure(self) -> None:
        """Show no facts: the problems say why."""
        self._show_photos([])
        _set(self._facts, "", "text")
        _set(self._shares, "", "text")

    def show_facts(self, api: Api, facts: DomainFacts) -> None:
        """Show photos and numbers."""
        self._show_photos(
            [
                api.image.preview_url(info.full_storage_url, width=0, height=2 * _PHOTO_HEIGHT, method="fit")
                for info in facts.samples
            ]
        )
        _set(self._facts, numbers(facts), "text")
        _set(self._shares, shares(facts) if self._with_shares else "", "text")

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Show these, errors first."""
        ordered = sorted(problems, key=lambda problem: problem.kind != "error")
        shown, rest = ordered[:_PROBLEMS], ordered[_PROBLEMS:]
        for text, problem in zip_longest(self._problems, shown):
            if problem is None:
                _set(text, "", "warning")
            else:
                more = f" And {len(rest)} more." if rest and problem is shown[-1] else ""
                _set(text, escape(problem.text, quote=False) + more, problem.kind)

    def _show_photos(self, urls: Sequence[str]) -> None:
        for image, url in zip_longest(self._photos, urls[:_PHOTOS], fillvalue=""):
            if image.get_json_data()["url"] != url:
                image.set(url, height=_PHOTO_HEIGHT)


def numbers(facts: DomainFacts) -> str:
    """A line with the number of images, the labelled ones and their sizes."""
    parts = [f"{facts.images:,} image{'s' * (facts.images != 1)}", f"{facts.labelled_images:,} labelled"]
    if facts.smallest and facts.largest:
        sizes = " to ".join(f"{width} × {height}" for width, height in dict.fromkeys((facts.smallest, facts.largest)))
        of = f" (sizes of {facts.sized_images:,} of them)" if facts.sized_images < facts.images else ""
        parts.append(f"{sizes} pixels{of}")
    return ", ".join(parts) + "."


def shares(facts: DomainFacts) -> str:
    """A line with the share of pixels of each class; empty if nothing was counted."""
    counted = [(name, one) for name, one in facts.classes.items() if one.images and one.pixel_share is not None]
    if not counted:
        return ""
    named = [
        f"{escape(name, quote=False)} {percent(one.pixel_share)}{' (rare)' * one.is_rare}" for name, one in counted
    ]
    return f"Share of pixels: {', '.join(named)}. Counted on {facts.counted_images:,} of {facts.images:,} images."


def percent(share: float | None) -> str:
    """A share in percent with two digits that count; empty for None."""
    if share is None:
        return ""
    return "below 0.01 %" if 0 < share < 1e-4 else f"{float(f'{100 * share:.2g}'):g} %"


def _set(text: Text, sentence: str, status: str) -> None:
    if (text.text, text.status) != (sentence, status):
        text.set(sentence, status)
