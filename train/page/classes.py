"""The card of the classes: every shape that can be drawn, and how often each class is in source and validation."""

from __future__ import annotations

from html import escape
from typing import Any

import supervisely.nn.training.gui.classes_selector as classes_module
from supervisely.app.widgets import Card, ClassesTable, Container, Field, Table
from supervisely.nn.training.gui.classes_selector import ClassesSelector

from common.data.choice import BACKGROUND
from common.data.project import DRAWABLE
from train.instance.facts import ClassFacts, DomainFacts
from train.page.domain_view import percent
from train.sdk.app import replaced

_COLUMNS = [
    "Class", "Images in source", "Pixels in source", "Images in validation", "Pixels in validation", "To note",
]  # fmt: skip


class AnyShapeClassesSelector(ClassesSelector):
    """The classes card: every shape that can be drawn is offered, and none needs converting."""

    def __init__(self, project_id: int, classes: list, model_selector: Any, app_options: dict) -> None:
        with replaced(classes_module, ClassesTable=_drawable_classes_table):
            super().__init__(project_id, classes, model_selector, app_options)
        self.convert_class_shapes_checkbox.hide()
        self._source: DomainFacts | None = None
        self._validation: DomainFacts | None = None
        self._counts = Table([], _COLUMNS, per_page=15, width="100%", widget_id="classes_counts")
        self._counts_field = Field(
            self._counts, "In the chosen datasets", "Pixels are counted on some of the images, as step Photos says."
        )
        self._counts_field.hide()
        self.display_widgets.insert(self.display_widgets.index(self.classes_table) + 1, self._counts_field)
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            lock_message=self.lock_message,
            collapsable=app_options.get("collapsable", False),
        )
        self.card.lock()

    def get_wrong_shape_classes(self, task_type: str) -> list[str]:
        """None: no class is converted, whatever its shape."""
        return []

    def set_facts(self, source: DomainFacts | None, validation: DomainFacts | None) -> None:
        """Show how often each class is in source and validation; None for what is not known."""
        self._source, self._validation = source, validation
        if source is None and validation is None:
            self._counts_field.hide()
            return
        self._counts.read_json({"columns": _COLUMNS, "data": class_rows(source, validation)})
        self._counts_field.show()

    def validate_step(self) -> bool:
        """Check that a class is chosen, and say which of them lack labels."""
        chosen = [name for name in self.get_selected_classes() if name != BACKGROUND]
        lacking = [sentence for name in chosen if (sentence := self._lack(name))]
        if not chosen:
            self.validator_text.set("Choose at least one class besides the background.", "error")
        else:
            sentences = [f"Classes: {', '.join(chosen)}.", *lacking]
            self.validator_text.set(escape(" ".join(sentences), quote=False), "warning" if lacking else "success")
        self.validator_text.show()
        return bool(chosen)

    def _lack(self, name: str) -> str | None:
        for facts, where in ((self._source, "source"), (self._validation, "validation")):
            if facts is not None and not facts.classes.get(name, _NOTHING).images:
                return f"No labels of '{name}' in the {where}: leave it out, or label some."
        return None


_NOTHING = ClassFacts(0, 0)


def class_rows(source: DomainFacts | None, validation: DomainFacts | None) -> list[list[str]]:
    """Rows of text, a class each: name, images and share of pixels in source and validation, and what to note."""
    names = dict.fromkeys([*(source.classes if source else ()), *(validation.classes if validation else ())])
    return [
        [escape(name, quote=False), *_cells(name, source), *_cells(name, validation), _note(name, source, validation)]
        for name in names
    ]


def _cells(name: str, facts: DomainFacts | None) -> tuple[str, str]:
    if facts is None:
        return "", ""
    one = facts.classes.get(name, _NOTHING)
    return str(one.images), percent(one.pixel_share)


def _note(name: str, source: DomainFacts | None, validation: DomainFacts | None) -> str:
    notes = []
    if source is not None:
        if not source.classes.get(name, _NOTHING).images:
            notes.append("no labels in source")
        elif source.classes[name].is_rare:
            notes.append("rare")
    if validation is not None and not validation.classes.get(name, _NOTHING).images:
        notes.append("no labels in validation")
    return ", ".join(notes)


def _drawable_classes_table(project_id: int, allowed_types: list) -> ClassesTable:
    return ClassesTable(project_id=project_id, allowed_types=list(DRAWABLE), widget_id="classes_table")
