"""Pictures of each validation: how photos are predicted, and what the teacher makes of target photos."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from supervisely.app.widgets import Container, Image, Slider, Text

from common.paths import is_file
from train.page.live import put, send
from train.run.state import Preview

PICTURES = {
    "validation": ("photo", "truth", "prediction"),
    "target": ("photo", "pseudo_label", "confidence"),
}
"""Which pictures of a photo stand side by side, by where the photo comes from."""
HEADINGS = {
    "validation": "Validation photos: photo, truth, prediction",
    "target": "Target photos: photo, pseudo-label, confidence (bright where the model is sure)",
}
PHOTOS = 4
"""Most photos of either kind on the page."""
ROUTE = "previews"
"""Where the app answers with the pictures, relative to the page."""
SUFFIXES = (".jpg", ".jpeg", ".png")


class PreviewBoard:
    """The pictures of one validation, and a slider over all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: list[tuple[int, dict[str, list[dict[str, str]]]]] = []
        self._looked_at: int | None = None
        # The newest validation is 0, the one before it -1. So the handle need not move while validations arrive: a
        # browser sends each move back, and what comes back late would look like the choice of a person.
        self.slider = Slider(
            value=0,
            min=0,
            max=0,
            show_stops=True,
            show_tooltip=False,
            widget_id="preview_slider",
            style="padding: 0 20px",
        )
        self.caption = Text("", widget_id="preview_caption")
        self._headings = {kind: Text(text, widget_id=f"preview_{kind}") for kind, text in HEADINGS.items()}
        self._images = {
            (kind, photo, role): Image(widget_id=f"preview_{kind}_{photo + 1}_{role}")
            for kind, roles in PICTURES.items()
            for photo in range(PHOTOS)
            for role in roles
        }
        self._rows = {
            (kind, photo): Container(
                [self._images[kind, photo, role] for role in roles],
                direction="horizontal",
                fractions=[1] * len(roles),
                widget_id=f"preview_{kind}_{photo + 1}",
            )
            for kind, roles in PICTURES.items()
            for photo in range(PHOTOS)
        }
        content = [self.caption, self.slider]
        for kind in PICTURES:
            content += [self._headings[kind], *(self._rows[kind, photo] for photo in range(PHOTOS))]
        self.container = Container(content, widget_id="previews")
        self.slider.value_changed(self.choose)
        self.clear()

    def clear(self) -> None:
        """Forget the pictures of an earlier run."""
        with self._lock:
            self._shown, self._looked_at = [], None
        put(self.container, hide=True)
        put(self.slider, min=0)
        send()

    def add(self, iteration: int, previews: Sequence[Preview], version: str) -> None:
        """Show the pictures of a validation, unless a person looks at those of an earlier one.

        Args:
            iteration: after which the models were measured.
            previews: of it.
            version: tells this run's pictures from another's of the same name, for the browser's memory.
        """
        urls: dict[str, list[dict[str, str]]] = {kind: [] for kind in PICTURES}
        for preview in previews:
            urls[preview.kind].append({role: _url(path, version) for role, path in preview.pictures.items()})
        with self._lock:
            if not any(urls.values()):
                return
            self._shown.append((iteration, urls))
            count, looked_at = len(self._shown), self._looked_at
            put(self.container, hide=False)
            # A slider of one stop divides by zero.
            put(self.slider, min=1 - count, hide=count == 1)
        # A slider in a browser takes no value beyond its end, which therefore has to be there first.
        send()
        value = 0 if looked_at is None else looked_at + 1 - count
        if self.slider.get_value() != value:
            self.slider.set_value(value)
        self._show()

    def choose(self, value: int) -> None:
        """Show the pictures of the validation that a person moves the slider to.

        Args:
            value: 0 for the newest one, -1 for the one before it.
        """
        with self._lock:
            number = max(len(self._shown) - 1 + int(value), 0)
            self._looked_at = number if number < len(self._shown) - 1 else None
        self._show()

    def _show(self) -> None:
        with self._lock:
            if not self._shown:
                return
            count = len(self._shown)
            number = count - 1 if self._looked_at is None else self._looked_at
            iteration, urls = self._shown[number]
            put(self.caption, text=f"Validation {number + 1} of {count}, after iteration {iteration}")
            for kind, photos in urls.items():
                put(self._headings[kind], hide=not photos)
                for photo in range(PHOTOS):
                    pictures = photos[photo] if photo < len(photos) else {}
                    put(self._rows[kind, photo], hide=not pictures)
                    for role in PICTURES[kind]:
                        put(self._images[kind, photo, role], url=pictures.get(role, ""), width="100%")
        send()


def picture_file(folder: Path, iteration: str, name: str) -> Path | None:
    """The picture that a browser asks for.

    Args:
        folder: the run's folder of previews.
        iteration: name of a folder in it, digits only.
        name: of a picture in that folder.

    Returns:
        Its path; None for whatever is not such a picture, wherever the names lead.
    """
    if not iteration.isdecimal() or Path(name).name != name or Path(name).suffix.lower() not in SUFFIXES:
        return None
    path = (folder / iteration / name).resolve()
    return path if is_file(path) and path.is_relative_to(folder.resolve()) else None


def _url(path: str, version: str) -> str:
    # Relative to the page, which may lie below a path of the instance.
    return f"{ROUTE}/{Path(path).parent.name}/{Path(path).name}?run={version}"
