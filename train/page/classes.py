"""The card of the classes: every shape that can be drawn, and how often each class is in source and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import supervisely.nn.training.gui.classes_selector as classes_module
from supervisely.app import StateJson
from supervisely.app.widgets import Card, ClassesTable, Container, Field, Select, Table, Text
from supervisely.nn.training.gui.classes_selector import ClassesSelector

from common.data.choice import RESERVED, background_twice, named, pronoun
from common.data.project import DRAWABLE
from common.replacing import replaced
from common.web.guide import LINK
from train.instance.facts import ClassFacts, DomainFacts
from train.page.domain_view import percent
from train.page.live import put, send

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
        self._ignored: list[str] = []
        self._ignored_select = Select(
            [], filterable=True, placeholder="none", multiple=True, width_percent=100, widget_id="ignored_classes"
        )
        ignored_field = Field(
            self._ignored_select,
            "Ignored classes",
            "Not trained, and no loss and no score where they are labelled. Labels of all others that are not chosen "
            "become what data.unchosen_classes says, the background unless that is changed.",
        )
        self.show_ignored(())
        after = self.display_widgets.index(self.classes_table) + 1
        self.display_widgets[after:after] = [self._counts_field, ignored_field]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            content_top_right=Text(LINK),
            lock_message=self.lock_message,
            collapsable=app_options.get("collapsable", False),
        )
        self.card.lock()

    @property
    def widgets_to_disable(self) -> list:
        """What cannot be changed once the step is done."""
        return [*super().widgets_to_disable, self._ignored_select]

    def show_ignored(self, names: Sequence[str]) -> None:
        """Show which classes are ignored."""
        every = [c.name for c in self.classes_table.project_meta.obj_classes if c.name not in RESERVED]
        # The validation may have classes of its own.
        offered = [*every, *(name for name in names if name not in every)]
        self._ignored = list(names)
        put(self._ignored_select, items=[Select.Item(name).to_json() for name in offered])
        StateJson()[self._ignored_select.widget_id]["value"] = list(names)
        StateJson().send_changes()
        send()

    def on_ignored(self, callback: Callable[[list[str]], None]) -> None:
        """Call `callback` with the names of the classes to ignore when a person has changed them."""

        def changed(names: list[str]) -> None:
            # Browsers also report values that were not chosen there but sent to them.
            if names != self._ignored:
                self._ignored = list(names)
                callback(self._ignored)

        self._ignored_select.value_changed(changed)

    def refuse(self, sentence: str) -> None:
        """Say in the card what is wrong."""
        self.validator_text.set(escape(sentence, quote=False), "error")
        self.validator_text.show()

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
        chosen = [name for name in self.get_selected_classes() if name not in RESERVED]
        both = [name for name in chosen if name in self._ignored]
        if not chosen:
            self.refuse("Choose at least one class besides the background.")
        elif both:
            self.refuse(f"Chosen and ignored at once: {named(both)}. Untick {pronoun(both)} in one of the two lists.")
        else:
            doubts = [*self._doubts(chosen)]
            sentences = [f"Classes: {', '.join(chosen)}.", *doubts]
            self.validator_text.set(escape(" ".join(sentences), quote=False), "warning" if doubts else "success")
            self.validator_text.show()
        return bool(chosen) and not both

    def _doubts(self, chosen: Sequence[str]) -> Iterator[str]:
        lacking = {
            where: [name for name in chosen if facts is not None and not facts.classes.get(name, _NOTHING).images]
            for where, facts in (("source", self._source), ("validation", self._validation))
        }
        if lacking["source"]:
            names = lacking["source"]
            yield f"No labels of {named(names)} in the source: leave {pronoun(names)} out, or label some."
        unmeasured = [name for name in lacking["validation"] if name not in lacking["source"]]
        if unmeasured:
            found = "it is found" if len(unmeasured) == 1 else "they are found"
            yield f"No labels of {named(unmeasured)} in the validation: how well {found} is not measured."
        twice = background_twice(chosen)
        if twice:
            yield twice


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
