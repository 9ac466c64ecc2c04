"""Choosing a project and datasets of it, nested ones too, with widgets of known ids.

The SDK's own selector of datasets tells nobody when all datasets are ticked, and asks the instance while a click waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from supervisely import Api, DatasetInfo, ProjectInfo
from supervisely.app.widgets import Checkbox, Select, TreeSelect, Widget

from train.instance.domains import Domain, InputError, spoken

NO_PROJECT = 0
"""Value of the choice that takes no project."""
_WIDTH = 400


class _Tree(TreeSelect):
    """The SDK's tree, which with new items would forget that it is hidden, disabled or loading."""

    def get_json_data(self) -> dict:
        flags = {"hide": self.is_hidden(), "disabled": self.is_disabled(), "loading": self.loading}
        return super().get_json_data() | flags


class DatasetPicker:
    """Widgets to choose a domain with: ids `<role>_project` (unless it is fixed), `<role>_all`, `<role>_tree`."""

    def __init__(
        self, role: str, projects: Sequence[ProjectInfo] = (), *, fixed: int | None = None, nothing: str | None = None
    ) -> None:
        """Make the widgets; the datasets come with `load`.

        Args:
            role: one of `train.instance.domains.ROLES`.
            projects: what can be chosen.
            fixed: number of the only project that can be chosen.
            nothing: label of the choice that takes no project; None if one must be taken.
        """
        self._role = role
        self._fixed = fixed
        self._listed: int | None = None
        self._lock = threading.Lock()
        self._on_change: Callable[[], None] = lambda: None
        self._project = None
        if fixed is None:
            items = [Select.Item(NO_PROJECT, nothing)] if nothing else []
            items += [_item(project) for project in projects]
            self._project = Select(
                items, filterable=True, placeholder="Choose a project", width_px=_WIDTH, widget_id=f"{role}_project"
            )
            self._project.set_value(None)
            self._project.value_changed(lambda _: self._project_changed())
        self._all = Checkbox("All datasets", checked=True, widget_id=f"{role}_all")
        self._all.value_changed(lambda _: self._all_changed())
        self._tree = _Tree(
            multiple_select=True, flat=True, width=_WIDTH, placeholder="Choose datasets", widget_id=f"{role}_tree"
        )
        self._tree.value_changed(lambda _: self._on_change())
        self._show_tree()

    @property
    def widgets(self) -> list[Widget]:
        """In the order of the page."""
        return [*([self._project] if self._project else []), self._all, self._tree]

    @property
    def project_id(self) -> int | None:
        """Number of the chosen project."""
        return (self._project.get_value() or None) if self._project else self._fixed

    @property
    def is_declined(self) -> bool:
        """Whether the choice that takes no project is made, and not only none so far."""
        return self._project is not None and self._project.get_value() == NO_PROJECT

    def decline(self, api: Api) -> None:
        """Show the choice that takes no project."""
        self.choose(api, None)
        self._project.set_value(NO_PROJECT)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this, within the click, whenever a person chooses something else."""
        self._on_change = callback

    def chosen(self) -> Domain | None:
        """The choice; None without a project.

        Raises:
            InputError: no dataset is chosen.
        """
        project_id = self.project_id
        if project_id is None:
            return None
        if self._all.is_checked():
            return Domain(project_id)
        # What a slow browser sends may still name datasets of the project before.
        ids = tuple(item.id for item in self._tree.get_selected() if self._tree.get_item_by_id(item.id))
        if not ids:
            raise InputError(f"Choose at least one dataset of the {spoken(self._role)}.")
        return Domain(project_id, ids)

    def choose(self, api: Api, domain: Domain | None, project: ProjectInfo | None = None) -> None:
        """Show a choice; asks the instance for the datasets.

        Args:
            api: of the instance.
            domain: the choice; None for no project.
            project: the domain's, which is added to what can be chosen.
        """
        if self._project:
            if project and project.id not in {item.value for item in self._project.get_items()}:
                self._project.set([*self._project.get_items(), _item(project)])
            self._project.set_value(domain and domain.project_id)
            self._forget_datasets()
        if domain is None or domain.dataset_ids is None:
            self._all.check()
        else:
            self._all.uncheck()
        self.load(api)
        if domain and domain.dataset_ids is not None:
            items = [self._tree.get_item_by_id(number) for number in domain.dataset_ids]
            self._tree.set_selected([item for item in items if item])
        self._show_tree()

    def load(self, api: Api) -> None:
        """Fetch the datasets of the chosen project, unless they are there; asks the instance."""
        project_id = self.project_id
        if project_id == self._listed:
            return
        try:
            items = [] if project_id is None else _tree_items(api.dataset.get_tree(project_id))
            with self._lock:
                if self.project_id == project_id != self._listed:
                    self._tree.add_items(items)
                    self._listed = project_id
        finally:
            if self.project_id == project_id:
                self._tree.loading = False

    def _project_changed(self) -> None:
        self._forget_datasets()
        self._on_change()

    def _forget_datasets(self) -> None:
        with self._lock:
            self._listed = None
            self._tree.set_items([])
            self._tree.loading = self.project_id is not None
            self._show_tree()

    def _all_changed(self) -> None:
        if not self._all.is_checked():
            self._tree.select_all()
        self._show_tree()
        self._on_change()

    def _show_tree(self) -> None:
        has_project = self.project_id is not None
        _show(self._all, has_project)
        _show(self._tree, has_project and not self._all.is_checked())


def _show(widget: Widget, visible: bool) -> None:
    if visible and widget.is_hidden():
        widget.show()
    elif not visible and not widget.is_hidden():
        widget.hide()


def _item(project: ProjectInfo) -> Select.Item:
    return Select.Item(project.id, project.name, right_text=f"{project.items_count or 0} images")


def _tree_items(tree: dict[DatasetInfo, dict]) -> list[TreeSelect.Item]:
    return [TreeSelect.Item(info.id, info.name, _tree_items(children)) for info, children in tree.items()]
