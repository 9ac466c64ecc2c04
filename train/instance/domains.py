"""The domains of a run on an instance: which projects and datasets they are, and their photos."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests
from supervisely import Api, DatasetInfo, ProjectInfo, ProjectType, logger
from supervisely.project.download import download_fast, download_using_cache

from common.hrda.checks import received

ROLES = ("source", "target", "validation", "labelled_target")


def spoken(role: str) -> str:
    """What a sentence calls a role."""
    return role.replace("_", " ")


NO_LABELS = "none"
"""What an app state names as validation where nothing labelled is left to measure on."""


class InputError(ValueError):
    """A domain is missing or cannot be used. The message says which, and what to do."""


@dataclass(frozen=True)
class Domain:
    """One project and the datasets of it that are used."""

    project_id: int
    """Number of the project on the instance."""
    dataset_ids: tuple[int, ...] | None = None
    """Numbers of the datasets, nested ones by themselves; None: all of the project."""

    @classmethod
    def from_state(cls, role: str, state: Any, default_project_id: int | None = None) -> Self:
        """Read `{"project_id": 1, "dataset_ids": [2, 3]}`; without `dataset_ids`, or with null, all are used.

        Raises:
            InputError: not of that form.
        """
        expected = f'input.{role} must look like {{"project_id": 1, "dataset_ids": [2, 3]}}'
        if not isinstance(state, Mapping) or not set(state) <= {"project_id", "dataset_ids"}:
            raise InputError(f"{expected}. Received: {received(state)}.")
        project_id, dataset_ids = state.get("project_id", default_project_id), state.get("dataset_ids")
        if not _is_id(project_id):
            raise InputError(f"{expected}; project_id is a whole number. Received: {received(project_id)}.")
        if dataset_ids is None:
            return cls(project_id)
        if not isinstance(dataset_ids, list) or not dataset_ids or not all(_is_id(number) for number in dataset_ids):
            raise InputError(
                f"{expected}; dataset_ids is null for all datasets, or a list of at least one. "
                f"Received: {received(dataset_ids)}."
            )
        return cls(project_id, tuple(dataset_ids))

    def to_state(self) -> dict[str, Any]:
        """What `from_state` reads."""
        return {"project_id": self.project_id, "dataset_ids": self.dataset_ids and list(self.dataset_ids)}


@dataclass(frozen=True)
class Inputs:
    """Source, target and validation of a run, and a labelled part of the target where there is one."""

    source: Domain
    """Labelled photos to learn from: the project that the app was started on."""
    target: Domain | None
    """Photos to adapt to; None for the modes that need none."""
    validation: Domain | None
    """Labelled photos to measure on; None: networks are compared on the target, without labels."""
    labelled_target: Domain | None = None
    """A labelled part of the target, which is learnt from along with the source."""

    def __post_init__(self) -> None:
        if self.validation is None and self.target is None:
            raise InputError(
                "Without labelled photos to measure on, networks are compared on the target: choose a target too."
            )

    @classmethod
    def from_state(cls, state: Any, launched_project_id: int) -> Self:
        """Read the `input` of an app state.

        Args:
            state: `{"source": …, "target": …, "validation": …, "labelled_target": …}`, each as `Domain.from_state`
                reads it. A source that is left out is the whole project that the app was started on; target and
                labelled target may be left out or null. Validation may be 'none': no labelled photos to measure on.
            launched_project_id: number of the project that the app was started on.

        Raises:
            InputError: a domain is missing, or is not of that form.
        """
        example = '{"source": {"project_id": 1}, "target": {"project_id": 2}, "validation": {"project_id": 3}}'
        if not isinstance(state, Mapping):
            came = f" Received: {received(state)}."
            if state is None:
                came = (
                    " The SDK's api.nn.train.run names one project only: docs/training.md shows a launch with all of "
                    'them under "Train from a script".'
                )
            raise InputError(f"The app state must name the photos to use: input = {example}.{came}")
        unknown = set(state) - {*ROLES, "project_id"}
        if unknown:
            raise InputError(f"Unknown key '{min(unknown)}' in input: expected {example}.")
        if state.get("validation") is None:
            raise InputError(f"No validation project is named: expected input = {example}.")
        source = Domain.from_state("source", state.get("source") or {}, launched_project_id)
        if source.project_id != launched_project_id:
            raise InputError(
                f"The source must be the project that the app was started on, {launched_project_id}. Start the app on "
                f"project {source.project_id} instead. Received: input.source.project_id = {source.project_id}."
            )

        def read(role: str) -> Domain | None:
            return None if state.get(role) is None else Domain.from_state(role, state[role])

        validation = None if state["validation"] == NO_LABELS else read("validation")
        return cls(source, read("target"), validation, read("labelled_target"))

    def to_state(self) -> dict[str, Any]:
        """What `from_state` reads."""
        return {
            "source": self.source.to_state(),
            "target": self.target and self.target.to_state(),
            "validation": self.validation.to_state() if self.validation else NO_LABELS,
            **({"labelled_target": self.labelled_target.to_state()} if self.labelled_target else {}),
        }


@dataclass(frozen=True)
class FoundDomain:
    """A domain as the instance has it."""

    project: ProjectInfo
    datasets: dict[str, DatasetInfo]
    """The datasets that are used by their path, such as `road/night`."""
    is_whole: bool = False
    """Whether these are all datasets of the project."""

    @property
    def images_count(self) -> int:
        """Number of images in these datasets."""
        return sum(dataset.images_count for dataset in self.datasets.values())


def find(api: Api, inputs: Inputs) -> dict[str, FoundDomain]:
    """Look the domains up on the instance.

    Returns:
        By role; without target and labelled target where there are none.

    Raises:
        InputError: no such project or dataset, not images, no images, or what is learnt from shares a dataset with the
            validation.
    """
    domains = {role: domain for role in ROLES if (domain := getattr(inputs, role)) is not None}
    found = {role: find_domain(api, role, domain) for role, domain in domains.items()}
    check_apart(found)
    return found


def find_domain(api: Api, role: str, domain: Domain) -> FoundDomain:
    """Look one domain up on the instance.

    Args:
        api: of the instance.
        role: one of `ROLES`, for the messages.
        domain: what to look for.

    Raises:
        InputError: no such project or dataset, not images, or no images.
    """
    name = spoken(role)
    try:
        project = api.project.get_info_by_id(domain.project_id)
    except requests.HTTPError as error:
        logger.debug("Project lookup refused", exc_info=True)
        raise InputError(f"The instance refuses to show project {domain.project_id} ({name}): {error}.") from error
    if project is None:
        raise InputError(
            f"There is no project {domain.project_id} for the {name}, or this token may not see it. "
            "Name a project that exists."
        )
    if project.type != str(ProjectType.IMAGES):
        raise InputError(f"Project {project.id} '{project.name}' ({name}) holds {project.type}. Choose one of images.")
    existing = {"/".join([*parents, dataset.name]): dataset for parents, dataset in api.dataset.tree(project.id)}
    missing = set(domain.dataset_ids or ()) - {dataset.id for dataset in existing.values()}
    if missing:
        known = ", ".join(f"{dataset.id} '{path}'" for path, dataset in existing.items()) or "none"
        raise InputError(
            f"Project {project.id} '{project.name}' ({name}) has no dataset {min(missing)}. Its datasets: {known}."
        )
    chosen = {
        path: dataset
        for path, dataset in existing.items()
        if domain.dataset_ids is None or dataset.id in domain.dataset_ids
    }
    found = FoundDomain(project, chosen, is_whole=len(chosen) == len(existing))
    if found.images_count == 0:
        raise InputError(
            f"The datasets of the {name} in project {project.id} '{project.name}' hold no images. "
            "Add images, or choose other datasets."
        )
    return found


def check_apart(found: Mapping[str, FoundDomain], mode: str | None = None) -> None:
    """Refuse to measure on what is learnt from; `found` may lack domains.

    Args:
        found: by role.
        mode: of the training, which in 'supervised' learns from the target; None: not known yet, any but that.

    Raises:
        InputError: what is learnt from shares a dataset with the validation.
    """
    for role in ("target",) if mode == "supervised" else ("source", "labelled_target"):
        shared = _shared(found, role, "validation")
        if shared:
            raise InputError(
                f"{spoken(role).capitalize()} and validation share {shared}. Choose other datasets for one of them: "
                "measured on photos that it has learnt from, a model looks better than it is."
            )


def overlap_with_target(found: Mapping[str, FoundDomain]) -> str | None:
    """A sentence about datasets that are target and something else too; None if there are none, or no target."""
    sentences = [
        f"Target and {role} share {shared}."
        for role in ("source", "validation")
        if (shared := _shared(found, "target", role))
    ]
    return " ".join(sentences) or None


def download(api: Api, domain: FoundDomain, folder: Path, *, use_cache: bool, progress: Any) -> None:
    """Download the datasets of a domain, and nothing else of its project, into a new Supervisely project folder.

    Args:
        api: of the instance.
        domain: what to download.
        folder: is made; must be empty if it exists.
        use_cache: keep the photos on the agent for the next run, and take those that it kept.
        progress: called with the number of images that have arrived since the last call.
    """
    dataset_ids = [dataset.id for dataset in domain.datasets.values()]
    if use_cache:
        try:
            # The cache saves what is known about each image without being asked.
            download_using_cache(api, domain.project.id, str(folder), dataset_ids, progress_cb=progress)
            return
        except OSError as error:
            # Outside of an agent there may be no folder that the cache may write to.
            logger.warning(f"The agent's cache is not used: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    download_fast(api, domain.project.id, str(folder), dataset_ids, progress_cb=progress, save_image_info=True)


def _shared(found: Mapping[str, FoundDomain], role: str, other: str) -> str | None:
    if not {role, other} <= set(found):
        return None
    numbers = {dataset.id for dataset in found[role].datasets.values()}
    paths = [path for path, dataset in found[other].datasets.items() if dataset.id in numbers]
    if not paths:
        return None
    noun = "dataset" if len(paths) == 1 else "datasets"
    return f"{noun} {', '.join(repr(path) for path in paths)} of project '{found[other].project.name}'"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
