"""What the page shows of one domain: a few photos, its facts, and what is wrong with the choice."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import zip_longest

from supervisely.app.widgets import Container, Flexbox, Image, Text, Widget

from train.instance.facts import DomainFacts
from train.instance.problems import Problem
from train.page.live import put

_PHOTOS = 4
_PHOTO_HEIGHT = 110
PICTURE_HEIGHT = 2 * _PHOTO_HEIGHT
"""Pixels of a photo's picture: sharp on screens with two of them for each."""
_PROBLEMS = {"error": 3, "warning": 5}


class DomainView:
    """Widgets that show a domain. What is shown is put in place, and seen once `live.send` is called.

    Their ids: `<role>_note` (what to do, or that the domain is being read), `<role>_facts`, `<role>_shares`,
    `<role>_photo_1` …, `<role>_error_1` …, `<role>_warning_1` …
    """

    def __init__(self, role: str, *, invitation: str, with_shares: bool = False) -> None:
        """Make the widgets.

        Args:
            role: one of `train.instance.domains.ROLES`.
            invitation: what is said while nothing is chosen.
            with_shares: whether the share of pixels of each class is shown.
        """
        self._invitation = invitation
        self._with_shares = with_shares
        self._note = Text(invitation, "info", widget_id=f"{role}_note")
        self._facts = Text("", widget_id=f"{role}_facts")
        self._shares = Text("", widget_id=f"{role}_shares")
        self._photos = [Image(height=_PHOTO_HEIGHT, widget_id=f"{role}_photo_{i}") for i in range(1, _PHOTOS + 1)]
        self._problems = {
            kind: [Text("", kind, widget_id=f"{role}_{kind}_{i}") for i in range(1, count + 1)]
            for kind, count in _PROBLEMS.items()
        }

    @property
    def widgets(self) -> list[Widget]:
        """In the order of the page: the problems first, beside what was chosen."""
        problems = [text for texts in self._problems.values() for text in texts]
        return [
            Container([self._note, *problems], gap=0),
            Flexbox(self._photos, gap=8),
            Container([self._facts, self._shares], gap=0),
        ]

    def show_nothing(self) -> None:
        """Show that nothing is chosen."""
        self._show(note=self._invitation)

    def show_reading(self) -> None:
        """Say that the domain is being looked at."""
        self._show(note="Reading…")

    def show_failure(self) -> None:
        """Show no facts: the problems say why."""
        self._show()

    def show_facts(self, facts: DomainFacts, urls: Sequence[str]) -> None:
        """Show numbers, and the photos at these addresses."""
        self._show(facts=numbers(facts), shares=shares(facts) if self._with_shares else "", urls=urls)

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Show these, errors first."""
        for kind, texts in self._problems.items():
            sentences = [escape(problem.text, quote=False) for problem in problems if problem.kind == kind]
            if len(sentences) > len(texts):
                sentences[len(texts) - 1] += f" And {len(sentences) - len(texts)} more."
            for text, sentence in zip_longest(texts, sentences[: len(texts)], fillvalue=""):
                put(text, text=sentence)

    def _show(self, *, note: str = "", facts: str = "", shares: str = "", urls: Sequence[str] = ()) -> None:
        put(self._note, text=note)
        put(self._facts, text=facts)
        put(self._shares, text=shares)
        for image, url in zip_longest(self._photos, urls[:_PHOTOS], fillvalue=""):
            put(image, url=url)


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
