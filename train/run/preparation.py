"""From the folders of a run to lists of photos and masks, with everything refused that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.data.choice import BACKGROUND, background_twice, is_called_background
from common.data.datasets import MemoryCache, Recipe, TrainingBatches
from common.data.labelled import LabelledImages, parts_sentence
from common.data.overlap import shared_photos
from common.data.project import (
    Project,
    check_labelled,
    prepare_labelled,
    prepare_unlabelled,
)
from common.data.reading import Patience
from common.data.sampling import ClassSampler, RareClassSettings, class_sampler
from common.hrda.checks import SettingsError, closest
from common.hrda.training.feature_distance import class_indices
from train.importing.imported import Reading, imported
from train.run.domains import Domains, Opened, open_projects
from train.settings.training import TrainSettings

ClassWeights = str | tuple[float, ...] | Mapping[str, float]

NO_VALIDATION = (
    "There are no validation photos: checkpoint, student or teacher, and threshold are chosen without labels, by what "
    "the networks say of target photos. How much they find is not measured."
)
"""What a run without labelled photos to measure on says."""


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and measures on."""

    classes: tuple[str, ...]
    """Names by index, the background first."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    source: list[tuple[Path, Path]]
    """Pairs of image file and mask file."""
    source_shares: tuple[float, ...]
    """Share of each class in the source's pixels."""
    target: list[Path]
    """Image files; empty where the mode needs none."""
    validation: list[tuple[Path, Path]]
    """Pairs of image file and mask file; empty where nothing labelled is left to measure on."""
    labelled_target: list[tuple[Path, Path]] = field(default_factory=list)
    """Pairs of image file and mask file; empty where there is none."""
    source_sampler: ClassSampler | None = None
    """Draws the source's crops by class; None: each photo comes once a pass."""
    labelled_target_sampler: ClassSampler | None = None
    """The same of the labelled target."""
    unlabelled: list[Path] = field(default_factory=list)
    """Target photos on which networks are compared where there is no validation; else empty."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """Where all of them lie, as of `Domains.absolute`."""


def prepare(
    settings: TrainSettings,
    domains: Domains,
    classes: Sequence[str] | None,
    cache_dir: Path,
    say: Callable[[str], None],
    patience: Patience | None = None,
) -> PreparedData:
    """Open the projects, choose the classes and draw the masks.

    Args:
        settings: of the run.
        domains: where the photos lie.
        classes: names without the background; None: all that the labelled photos have.
        cache_dir: where masks are kept; those drawn before are used again.
        say: gets sentences about progress.
        patience: with which what cannot be read is read again.

    Raises:
        SettingsError: a domain that the mode needs is not given, or settings that name classes do not fit the classes.
        ProjectError: photos or labels that cannot be used.
    """
    reading = Reading(say, settings.data.skip_broken, patience)
    take = partial(imported, cache_dir=cache_dir, reading=reading, names=classes)
    opened = open_projects(settings, domains, take)
    names = tuple(chosen_classes(opened.source, classes, settings.data.ignored_classes, say))
    # All that is quickly checked comes before the minutes that reading every photo may take.
    for sentence in _check_classes(settings, names, opened):
        say(sentence)
    _check_overlap(settings, opened, say)

    rules = {"skip_broken": settings.data.skip_broken, "progress": say, "patience": patience}
    draw = partial(prepare_labelled, classes=names, cache_dir=cache_dir, unchosen=settings.data.unchosen, **rules)
    scale, more = settings.data.training_scale, opened.labelled_target
    labelled = draw(opened.source, role="source", scale=scale)
    more_labelled = draw(more, role="labelled target", scale=scale) if more else None
    both = ((labelled, "source"), (more_labelled, "labelled target"))
    for one, role in both:
        if one and (sentence := parts_sentence(one, settings.data.label_scaling, role)):
            say(sentence)
    sampling = settings.data.rare_class_sampling
    sampler, more_sampler = (_sampler(sampling, one, role, say) if one else None for one, role in both)
    target = _target_files(settings, opened.target, cache_dir, rules) if opened.target else []
    data = PreparedData(
        classes=labelled.classes,
        palette=((0, 0, 0), *(opened.source.colours[name] for name in names)),
        source=_files(labelled),
        source_shares=tuple(labelled.class_shares.tolist()),
        target=target,
        validation=_files(draw(opened.validation, role="validation")) if opened.validation else [],
        labelled_target=_files(more_labelled) if more_labelled else [],
        source_sampler=sampler,
        labelled_target_sampler=more_sampler,
        unlabelled=_compared_files(settings, opened, target, cache_dir, rules),
        domains=domains.absolute(),
    )
    say(_summary(data))
    if data.unlabelled:
        say(NO_VALIDATION)
    return data


def _summary(data: PreparedData) -> str:
    """How many photos there are of each kind, and the classes."""
    more = f"{len(data.labelled_target)} labelled target photos, " if data.labelled_target else ""
    return (
        f"{len(data.source)} labelled photos, {more}{len(data.target)} target photos, {len(data.validation)} "
        f"validation photos; classes: {', '.join(data.classes[1:])}."
    )


def _check_overlap(settings: TrainSettings, opened: Opened, say: Callable[[str], None]) -> None:
    """Refuse to measure on photos that are learnt from, and say which are adapted to.

    Raises:
        ProjectError: photos of the validation are in what is learnt from.
    """
    target, validation = opened.target, opened.validation
    if validation is None:
        return
    learnt_as = "target" if settings.mode == "supervised" else "source"
    for role, project in ((learnt_as, opened.source), ("labelled target", opened.labelled_target)):
        if project:
            refuse_measured(project, validation, role)
    if target and (shared := shared_photos(target, validation)):
        say(f"{len(shared)} target photos are validation photos too, such as {shared[0]}: it is adapted to them.")


def _check_classes(settings: TrainSettings, names: Sequence[str], opened: Opened) -> list[str]:
    """Refuse classes that settings or projects do not fit, and return what is worth telling a person.

    Args:
        settings: of the run.
        names: of the classes, without the background.
        opened: the projects of the run.

    Raises:
        SettingsError, ProjectError: as `prepare`.
    """
    check_class_weights(settings.class_weights, names)
    labelled = {"source": opened.source, "validation": opened.validation, "labelled target": opened.labelled_target}
    labelled = {role: project for role, project in labelled.items() if project}
    known = [name for project in labelled.values() for name in project.class_names]
    check_ignored(settings.data.ignored_classes, names, known)
    if settings.self_training.feature_distance_weight > 0:
        class_indices(settings.self_training.feature_distance_classes, (BACKGROUND, *names))
    said = [sentence for role, project in labelled.items() for sentence in check_labelled(project, names, role)]
    return [*said, *filter(None, [background_twice(names)])]


def recipe_of(settings: TrainSettings) -> Recipe:
    """How photos become crops in a run with `settings`."""
    return Recipe(
        crop_size=settings.model.crop_size,
        scale=settings.data.scale,
        augmentation=settings.data.augmentation,
        rare_class_share=settings.data.rare_class_share,
        labelled_target_share=settings.data.labelled_target_share,
        label_scaling=settings.data.label_scaling,
        margins=settings.self_training.ignore_margins,
        tubes=settings.thin.needs_tubes,
    )


def build_batches(
    settings: TrainSettings,
    data: PreparedData,
    part: range | None = None,
    sharing: int = 1,
) -> TrainingBatches:
    """The training batches of the whole run.

    Args:
        settings: of the run.
        data: what it trains on.
        part: the places in each batch that this process draws; None: all.
        sharing: processes that share the machine's memory.
    """
    return TrainingBatches(
        data.source,
        data.target,
        recipe_of(settings),
        batch_size=settings.batch_size,
        iterations=settings.iterations,
        seed=settings.seed,
        cache=MemoryCache(settings.data.memory_cache_mb * 2**20 // sharing),
        sampler=data.source_sampler,
        labelled_target=data.labelled_target,
        labelled_target_sampler=data.labelled_target_sampler,
        part=part,
        skip_broken=settings.data.skip_broken,
    )


def _sampler(
    settings: RareClassSettings, labelled: LabelledImages, role: str, say: Callable[[str], None]
) -> ClassSampler | None:
    sampler, explanation = class_sampler(settings, labelled.pixels, labelled.classes, role)
    if explanation:
        say(explanation)
    return sampler


def _files(labelled: LabelledImages) -> list[tuple[Path, Path]]:
    return [(record.image_path, mask) for record, mask in labelled]


def _target_files(settings: TrainSettings, target: Project, cache_dir: Path, rules: dict[str, Any]) -> list[Path]:
    """The readable photos of the target; margins that leave nothing of them are told, or refused where of none."""
    found = prepare_unlabelled(target, cache_dir, **rules)
    top, bottom, left, right = margins = settings.self_training.ignore_margins
    emptied = [(record, size) for record, size in found if top + bottom >= size[0] or left + right >= size[1]]
    if any(margins) and emptied:
        record, (height, width) = emptied[0]
        sentence = (
            f"self_training.ignore_margins {list(margins)} leave nothing of {len(emptied)} of {len(found)} target "
            f"photos, such as {record.key} of {width}×{height} pixels"
        )
        if len(emptied) == len(found):
            raise SettingsError(f"{sentence}. Make them smaller.")
        rules["progress"](f"{sentence}: nothing is learnt from those.")
    return [record.image_path for record, _ in found]


def _compared_files(
    settings: TrainSettings, opened: Opened, target: list[Path], cache_dir: Path, rules: dict[str, Any]
) -> list[Path]:
    """The photos on which networks are compared without labels; none where there is a validation."""
    if opened.validation:
        return []
    return _target_files(settings, opened.compared, cache_dir, rules) if opened.compared else target


def chosen_classes(
    project: Project, classes: Sequence[str] | None, ignored: Sequence[str], say: Callable[[str], None]
) -> Sequence[str]:
    """The classes to train: those that were named, but for a background that no project has, or all that can be."""
    if not classes:
        return trainable_classes(project, ignored, say)
    return [name for name in classes if name in project.class_names or not is_called_background(name)] or classes


def trainable_classes(project: Project, ignored: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The classes of a project that are trained where none are named: all that can be, but for those to ignore."""
    if project.shapeless:
        shapes = ", ".join(f"'{name}' ({shape})" for name, shape in project.shapeless.items())
        say(f"Classes that are left out, as their shape covers no area: {shapes}.")
    return [name for name in project.class_names if name not in project.shapeless and name not in ignored]


def refuse_measured(learnt: Project, validation: Project, role: str) -> None:
    """Refuse to measure on photos that are learnt from, whether they are the same files or equal ones.

    Raises:
        SettingsError: a photo is in both.
    """
    shared = shared_photos(learnt, validation)
    if shared:
        raise SettingsError(
            f"{len(shared)} {role} photos are validation photos too, such as {shared[0]}. Name other datasets: "
            "measured on photos that it has learnt from, a model looks better than it is."
        )


def check_ignored(ignored: Sequence[str], names: Sequence[str], known: Sequence[str] | None = None) -> None:
    """Refuse classes to ignore that are trained, or that no project has.

    Args:
        ignored: their names.
        names: of the classes that are trained.
        known: of all classes of the projects; None: they are not known yet.

    Raises:
        SettingsError: it names the class.
    """
    for name in ignored:
        if name in names:
            raise SettingsError(
                f"data.ignored_classes names '{name}', which is trained: leave it out there, or out of the classes."
            )
        if known is not None and name not in known:
            raise SettingsError(f"data.ignored_classes names '{name}', which no project has: {closest(name, known)}")


def check_class_weights(weights: ClassWeights, names: Sequence[str]) -> None:
    """Refuse weights that do not fit the classes `names` (without the background).

    Raises:
        SettingsError: another number of weights, or a weight for a class that is not trained.
    """
    known = (BACKGROUND, *names)
    if isinstance(weights, tuple) and len(weights) != len(known):
        raise SettingsError(f"class_weights must be one weight for each of {', '.join(known)}. Received: {weights}.")
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in known:
                raise SettingsError(f"class_weights names '{name}', which is not trained: {closest(name, known)}")
        if not any(weights.get(name, 1.0) for name in known):
            raise SettingsError("class_weights must be above 0 for one class at least, or nothing is learnt.")
