"""The first card of the page: source, target, validation and labelled target, what is known and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import requests
from supervisely import Api, ProjectInfo, ProjectType, logger
from supervisely.app.widgets import Button, Card, Container, Field, Text
from supervisely.nn.training.gui.input_selector import InputSelector

from common.web.guide import LINK
from train.instance.domains import (
    ROLES,
    Domain,
    FoundDomain,
    InputError,
    Inputs,
    check_apart,
    find,
    find_domain,
    overlap_with_target,
    spoken,
)
from train.instance.facts import DomainFacts, Superseded, domain_facts
from train.instance.problems import Problem, overlaps, problems_of
from train.page.dataset_picker import DatasetPicker
from train.page.domain_view import PICTURE_HEIGHT, DomainView
from train.page.latest import LatestOnly
from train.page.live import forget_error, put, send
from train.page.thumbnails import labelled_previews, preview

_NO_VALIDATION = "Choose a validation project: labelled photos that are not learnt from."
_NOTHING_LABELLED = "I have no labelled photos"
_FIELDS = {
    "source": ("Source", "Labelled photos to learn from, of the project above."),
    "target": ("Target", "Photos to adapt to. They need no labels; those that they have are not looked at."),
    "validation": ("Validation", "Labelled photos to measure on. They should look like the target."),
    "labelled_target": (
        "Labelled target",
        "Not needed. Labelled photos of the target are learnt from along with the source: data.labelled_target_share "
        "of the crops are of them.",
    ),
}
_INVITATIONS = {
    "source": "",
    "target": "Choose a project. Training without adaptation needs none.",
    "validation": "Choose a project with labelled photos that are not learnt from. Without any, checkpoint and "
    "threshold are chosen by what the networks say of the target, and nothing is measured.",
    "labelled_target": "",
}
# The page should say soon that the instance is away, not after minutes.
_ATTEMPTS = 3

Key = tuple[Any, ...]


class DomainSelector(InputSelector):
    """The card that chooses the datasets of the source, and projects and datasets of the other domains."""

    title = "Photos"
    description = "Labelled source, unlabelled target to adapt to, and labelled validation photos"

    def __init__(self, project_info: ProjectInfo, app_options: dict[str, Any]) -> None:
        super().__init__(project_info, app_options)
        self._api = Api.from_env()
        # Of its own: the SDK's client remembers what it was asked last, and is not made for two threads.
        self._reading_api = Api.from_env(retry_count=_ATTEMPTS)
        projects = [
            project
            for project in self._api.project.get_list(project_info.workspace_id)
            if project.type == str(ProjectType.IMAGES)
        ]
        self._pickers = {
            "source": DatasetPicker("source", fixed=self.project_id),
            "target": DatasetPicker("target", projects, nothing="No target"),
            "validation": DatasetPicker("validation", projects, nothing=_NOTHING_LABELLED),
            "labelled_target": DatasetPicker("labelled_target", projects, nothing="No labelled target"),
        }
        self._views = {
            role: DomainView(role, invitation=_INVITATIONS[role], with_shares=role != "target") for role in ROLES
        }
        self._found: dict[str, FoundDomain] = {}
        self._facts: dict[str, DomainFacts] = {}
        self._problems: list[Problem] = []
        self._known: dict[Key, DomainFacts] = {}
        self._pictures: dict[Key, list[str]] = {}
        # Not an error: it may well be that the next step switches adaptation off.
        self._target_text = Text("", "warning", widget_id="target_missing")
        self._callbacks: list[Callable[[], None]] = []
        self._choice_callbacks: list[Callable[[], None]] = []
        self._missing: Callable[[], str | None] = lambda: None
        self.button = Button("Select", widget_id="input_next")
        said = {"target": [self._target_text]}
        fields = [
            Field(
                Container([*self._pickers[role].widgets, *said.get(role, []), *self._views[role].widgets]),
                *_FIELDS[role],
            )
            for role in ROLES
        ]
        self.display_widgets = [
            self.project_thumbnail,
            *fields,
            self.use_cache_checkbox,
            self.validator_text,
            self.button,
        ]
        self.container = Container(self.display_widgets)
        self.card = Card(
            title=self.title,
            description=self.description,
            content=self.container,
            content_top_right=Text(LINK),
            collapsable=app_options.get("collapsable", False),
        )
        self._reader = LatestOnly(self._read, name="facts of the domains")
        for role, picker in self._pickers.items():
            picker.on_change(lambda role=role: self._changed(role))
        self._changed("source")

    @property
    def has_target(self) -> bool:
        """Whether a target project is chosen."""
        return self._pickers["target"].project_id is not None

    def measured_target(self, mode: str) -> str | None:
        """Why a mode that learns from the target cannot be measured on what is chosen; None if it can, or before that
        is read."""
        try:
            if mode == "supervised":
                check_apart(self._found, mode)
        except InputError as error:
            return str(error)
        return None

    def use_missing(self, missing: Callable[[], str | None]) -> None:
        """Have `missing` say what the settings of a later step need that is not chosen."""
        self._missing = missing

    def show_missing(self) -> None:
        """Say at the target what the settings need that is not chosen, as the card of the settings does."""
        put(self._target_text, text=escape(self._missing() or "", quote=False))
        send()

    def on_choice(self, callback: Callable[[], None]) -> None:
        """Call this, within the click, whenever a person chooses something else."""
        self._choice_callbacks.append(callback)

    @property
    def widgets_to_disable(self) -> list:
        """What cannot be changed once the step is done."""
        pickers = [widget for picker in self._pickers.values() for widget in picker.widgets]
        return [*pickers, *super().widgets_to_disable]

    def get_inputs(self) -> Inputs:
        """What is chosen.

        Raises:
            InputError: nothing is chosen to measure on, or a project without datasets.
        """
        chosen = {role: picker.chosen() for role, picker in self._pickers.items()}
        if chosen["validation"] is None and not self._pickers["validation"].is_declined:
            raise InputError(_NO_VALIDATION)
        return Inputs(**chosen)

    def set_inputs(self, inputs: Inputs) -> None:
        """Show these on the page; a project that the instance does not have is left unchosen."""
        self._pickers["source"].choose(self._api, inputs.source)
        for role in ROLES[1:]:
            domain: Domain | None = getattr(inputs, role)
            project = domain and self._api.project.get_info_by_id(domain.project_id)
            self._pickers[role].choose(self._api, domain if project else None, project)
        if inputs.validation is None:
            self._pickers["validation"].decline(self._api)
        self._changed(*ROLES)

    def validate_step(self) -> bool:
        """Check the choice against the instance and say in the card what is wrong."""
        try:
            found = find(self._api, self.get_inputs())
        except InputError as error:
            return self._refuse(str(error))
        except requests.RequestException as error:
            return self._refuse(_away(error))
        counts = ", ".join(f"{found[role].images_count} {spoken(role)}" for role in ROLES if role in found)
        doubts = [
            self._missing(),
            overlap_with_target(found),
            *(one.text for one in self._problems if one.kind == "error"),
        ]
        doubts = list(filter(None, doubts))
        self.validator_text.set(
            escape(" ".join([f"Images: {counts}.", *doubts]), quote=False), "warning" if doubts else "success"
        )
        self.validator_text.show()
        return True

    def facts(self, role: str) -> DomainFacts | None:
        """What is known of the domain that is chosen for a role; None before it is read."""
        return self._facts.get(role)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this, in another thread, whenever `facts` may answer something else; and once now."""
        self._callbacks.append(callback)
        callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the facts of what is chosen are read; False if that took more than `timeout` seconds."""
        return self._reader.wait(timeout)

    def _refuse(self, sentence: str) -> bool:
        self.validator_text.set(escape(sentence, quote=False), "error")
        self.validator_text.show()
        return False

    def _changed(self, *roles: str) -> None:
        self._found = {role: found for role, found in self._found.items() if role not in roles}
        self._facts = {role: facts for role, facts in self._facts.items() if role not in roles}
        self._problems = [problem for problem in self._problems if problem.role not in roles]
        for role in roles:
            if self._pickers[role].project_id is None:
                self._views[role].show_nothing()
            else:
                self._views[role].show_reading()
            self._views[role].show_problems([])
        forget_error(self.validator_text)
        send()
        for callback in self._choice_callbacks:
            callback()
        self._reader.order()

    def _read(self, is_stale: Callable[[], bool]) -> None:
        problems: list[Problem] = []
        found: dict[str, FoundDomain] = {}
        failed: set[str] = set()

        def attempt(role: str, work: Callable[[], Any]) -> Any:
            try:
                return work()
            except Superseded:
                raise
            except InputError as error:
                sentence = str(error)
            except Exception as error:
                # Whatever an instance answers unexpectedly must end as a sentence, not as "Reading…" for ever.
                logger.warning(f"The facts of the {spoken(role)} could not be read", exc_info=True)
                sentence = _away(error)
            problems.append(Problem(role, "error", sentence))
            failed.add(role)
            return None

        for role, picker in self._pickers.items():
            domain = attempt(role, partial(self._find, role, picker))
            if domain:
                found[role] = domain
            if is_stale():
                return
        self._found = found
        problems += overlaps(found)
        keys = {role: _key(role, domain) for role, domain in found.items()}
        facts = {role: self._known[key] for role, key in keys.items() if key in self._known}
        self._show(found, facts, failed, [*problems, *problems_of(facts)])
        for role in [role for role in found if role not in facts]:
            labels = {"drawn": 0} if role == "target" else {}
            read = partial(domain_facts, self._reading_api, found[role], is_stale=is_stale, **labels)
            try:
                one = attempt(role, read)
            except Superseded:
                return
            if is_stale():
                return
            if one:
                facts[role] = self._known[keys[role]] = one
            self._show(found, facts, failed, [*problems, *problems_of(facts)])
        self._facts = facts
        for callback in self._callbacks:
            callback()
        for role in [role for role in facts if role != "target" and keys[role] not in self._pictures]:
            if is_stale():
                return
            self._pictures[keys[role]] = self._drawn(found[role], facts[role])
            self._show(found, facts, failed, [*problems, *problems_of(facts)])

    def _drawn(self, domain: FoundDomain, facts: DomainFacts) -> list[str]:
        """Pictures of a domain's photos with their labels, or without where these cannot be had."""
        try:
            return labelled_previews(self._reading_api, domain, facts, PICTURE_HEIGHT)
        except Exception:
            # The facts are shown, and the training says what is wrong with a label; a picture is no reason for less.
            logger.warning("The labels of the photos on the page could not be drawn", exc_info=True)
            return self._plain(facts)

    def _plain(self, facts: DomainFacts) -> list[str]:
        return [preview(self._reading_api, info, PICTURE_HEIGHT) for info in facts.samples]

    def _find(self, role: str, picker: DatasetPicker) -> FoundDomain | None:
        picker.load(self._reading_api)
        domain = picker.chosen()
        return domain and find_domain(self._reading_api, role, domain)

    def _show(
        self,
        found: Mapping[str, FoundDomain],
        facts: Mapping[str, DomainFacts],
        failed: set[str],
        problems: Sequence[Problem],
    ) -> None:
        self._problems = list(problems)
        for role, view in self._views.items():
            if role in failed:
                view.show_failure()
            elif role in facts:
                drawn = self._pictures.get(_key(role, found[role]))
                view.show_facts(facts[role], drawn or self._plain(facts[role]))
            elif role in found:
                view.show_reading()
            else:
                view.show_nothing()
            view.show_problems([problem for problem in problems if problem.role == role])
        send()


def _key(role: str, domain: FoundDomain) -> Key:
    # Whoever labels more while the page is open changes the time of the dataset's last change.
    versions = tuple(sorted((dataset.id, dataset.updated_at) for dataset in domain.datasets.values()))
    return domain.project.id, domain.project.updated_at, versions, role == "target"


def _away(error: Exception) -> str:
    return f"The instance does not answer as expected: {error}. Choose again to try again."
