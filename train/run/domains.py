"""Where the photos of a run lie, and which of them its mode needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from common.data.folders import ProjectError, split_spec
from common.data.project import Project, open_project
from common.hrda.checks import SettingsError
from train.settings.training import TrainSettings


@dataclass(frozen=True)
class Domains:
    """Where the photos lie: `DIR`, `DIR:DATASET` or `DIR:DATASET,OTHER/NESTED`, DIR a Supervisely project or a folder
    in a format that `train.importing` knows."""

    source: str | None
    """Labelled photos to learn from; not used in mode 'supervised'."""
    target: str | None
    """Photos to adapt to. Their labels are not looked at, except in mode 'supervised', which learns from them."""
    val: str | None
    """Labelled photos to measure on; None: networks are compared on target photos, without labels."""
    labelled_target: str | None = None
    """A labelled part of the target, which is learnt from along with the source; not used in mode 'supervised'."""

    def absolute(self) -> dict[str, str]:
        """Those that are given and there, by name, as they can be found from any folder."""
        found = {}
        for name, spec in asdict(self).items():
            # One that the mode does not need may be missing.
            with suppress(ProjectError):
                if spec:
                    folder, wanted = split_spec(spec)
                    found[name] = f"{folder.resolve()}:{wanted}" if wanted else str(folder.resolve())
        return found


@dataclass(frozen=True)
class Opened:
    """The projects of a run."""

    source: Project
    """What is learnt from."""
    target: Project | None
    """What is adapted to."""
    validation: Project | None
    labelled_target: Project | None
    """Learnt from besides."""
    compared: Project | None
    """The target that is not adapted to, where networks are compared on it for want of a validation."""


def open_projects(settings: TrainSettings, domains: Domains, take: Callable[..., str]) -> Opened:
    """Open the projects that a run needs.

    Args:
        settings: of the run.
        domains: where the photos lie.
        take: gives the project's folder for one that may be in another format, see `train.importing.imported`.

    Raises:
        SettingsError: as `domains_of_mode`.
        ProjectError: a folder is no project, or has no photos.
    """
    learn_from, adapt_to, more_from, compared_on = _needed(settings, domains)
    # Before one of the others is imported, which may take minutes.
    require_domains(settings, domains)
    return Opened(
        source=open_project(take(learn_from)),
        target=open_project(take(adapt_to, labelled=False)) if adapt_to else None,
        validation=open_project(take(domains.val)) if domains.val else None,
        labelled_target=open_project(take(more_from)) if more_from else None,
        compared=open_project(take(compared_on, labelled=False)) if compared_on else None,
    )


def require_domains(settings: TrainSettings, domains: Domains) -> None:
    """Make sure, without opening any, that the folders that a run needs are given and there.

    Raises:
        SettingsError: as `domains_of_mode`.
        ProjectError: a folder is not there.
    """
    for spec in filter(None, (domains.val, *_needed(settings, domains))):
        split_spec(spec)


def _needed(settings: TrainSettings, domains: Domains) -> tuple[str, str | None, str | None, str | None]:
    """What a run learns from, adapts to, learns from besides, and compares networks on for want of a validation."""
    learn_from, adapt_to = domains_of_mode(settings.mode, domains)
    more_from = domains.labelled_target if uses_labelled_target(settings) else None
    compared_on = None if domains.val or adapt_to else domains.target
    return learn_from, adapt_to, more_from, compared_on


def domains_of_mode(mode: str, domains: Domains) -> tuple[str, str | None]:
    """The folders of labelled photos and of photos to adapt to in `mode`.

    Raises:
        SettingsError: the one that the mode needs is not given, or neither a validation nor what takes its place.
    """
    if domains.val is None and (mode == "supervised" or domains.target is None):
        needed = "" if mode == "supervised" else ", or a target, on which networks are compared without labels"
        raise SettingsError(f"There is nothing to measure on. Name labelled photos as validation{needed}.")
    if mode == "supervised":
        if domains.target is None:
            raise SettingsError("Mode 'supervised' learns from a labelled target. Received: no target.")
        return domains.target, None
    if domains.source is None:
        raise SettingsError(f"Mode '{mode}' learns from a labelled source. Received: no source.")
    if mode != "uda":
        return domains.source, None
    if domains.target is None:
        raise SettingsError("Mode 'uda' adapts to a target. Received: no target. The baseline is mode 'source-only'.")
    return domains.source, domains.target


def uses_labelled_target(settings: TrainSettings) -> bool:
    """Whether a run learns from a labelled part of the target besides what its mode learns from."""
    return settings.mode != "supervised" and settings.data.labelled_target_share > 0
