"""Supervisely projects on disk: which photos there are, and their labels as index masks.

The only module of `common` that imports the SDK. Masks are H×W uint8: 0 is the background (`__bg__`), i + 1 the i-th
chosen class, 255 what training and measuring leave out.

Orientation: `supervisely.image.read` turns a photo by its EXIF tag, as browsers do, so labels are drawn on the turned
photo and an annotation's size is that of the turned photo. `common.data.images` does the same, in training and in
serving. An annotation with sides exchanged was made on the unturned photo and is refused rather than guessed at.

What counts as annotated: a photo with an annotation file, even an empty one, shows what it says, so a photo without
labels is a valid example of background. A photo without annotation file says nothing and is left out of source and
validation. A source or a validation set without any label of a chosen class is refused as a whole.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import supervisely as sly
from numpy.typing import NDArray

from common.data.choice import RESERVED, UNCHOSEN_IS_BACKGROUND, Unchosen, label_indices, named, pronoun, quoted
from common.data.folders import (
    META,
    ImageRecord,
    Progress,
    ProjectError,
    choose_datasets,
    find_datasets,
    for_each_image,
    list_images,
    split_spec,
    what_to_write,
)
from common.data.images import IMAGE_SUFFIXES
from common.data.labelled import (
    MASK_FACTS,
    LabelledImages,
    LabelledRole,
    MaskFacts,
    TrainingScale,
    check_choice,
    count_labels,
    facts_of_file,
    pixel_counts,
    read_annotation,
    with_facts,
)
from common.data.mask_cache import MaskCache, mask_key
from common.data.reading import Patience
from common.hrda.checks import closest
from common.hrda.pixels import IGNORE_LABEL

logger = logging.getLogger(__name__)

_AREAS = (sly.Bitmap, sly.Polygon, sly.Rectangle, sly.OrientedBBox, sly.Multipolygon, sly.AlphaMask)
DRAWABLE = (*_AREAS, sly.AnyGeometry)
"""Shapes of classes that can be trained: all of them are drawn into masks here, none is converted by the SDK."""


@dataclass(frozen=True)
class Project(Sequence[ImageRecord]):
    """The chosen photos of a project, as a sequence, and all its classes."""

    path: Path
    records: tuple[ImageRecord, ...]
    meta: sly.ProjectMeta

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the project's order, without the background's and that of what is ignored."""
        return [c.name for c in self.meta.obj_classes if c.name not in RESERVED]

    @property
    def shapeless(self) -> dict[str, str]:
        """Names of the classes that cannot be trained, as their shape covers no area, and that shape."""
        return {
            c.name: c.geometry_type.geometry_name() for c in self.meta.obj_classes if c.geometry_type not in DRAWABLE
        }

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        """RGB colour of each class."""
        return {c.name: tuple(c.color) for c in self.meta.obj_classes}


# -------------------------------------------------------------------------------------------------------- opening
def open_project(spec: str | Path) -> Project:
    """Find the photos of a project folder.

    Args:
        spec: `DIR`, `DIR:DATASET` or `DIR:DATASET,OTHER/NESTED`. A dataset brings those nested in it. Where the
            folder's own path contains a colon, the longest path that exists is taken.

    Returns:
        The photos, sorted by dataset and name.

    Raises:
        ProjectError: No such folder, not a project, no such dataset, or no photo in it.
    """
    folder, wanted = split_spec(str(spec))
    meta = _read_meta(folder)
    datasets = dict(find_datasets(folder))
    if not datasets:
        raise ProjectError(f"The project {folder} has no dataset: expected folders DATASET/img with photos in them.")
    names = list(datasets) if wanted is None else choose_datasets(wanted, list(datasets), folder)
    records = tuple(record for name in names for record in list_images(name, datasets[name]))
    if not records:
        raise ProjectError(
            f"There are no images in {spec}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in "
            f"{', '.join(f'{name}/img' for name in names)}. Choose another dataset, or add photos."
        )
    return Project(folder, records, meta)


def project_classes(spec: str | Path) -> list[str]:
    """Names of a project's classes in its order, without the background's; `spec` as for `open_project`.

    Raises:
        ProjectError: No such folder, or not a project.
    """
    folder, _ = split_spec(str(spec))
    return Project(folder, (), _read_meta(folder)).class_names


def _read_meta(folder: Path) -> sly.ProjectMeta:
    path = folder / META
    if not path.is_file():
        hint = what_to_write(folder)
        raise ProjectError(f"{folder} is not a Supervisely project: it has no meta.json. {hint}")
    try:
        return sly.ProjectMeta.from_json(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # the SDK raises whatever its parsers meet
        raise ProjectError(f"Cannot read {path}: {error!r}. Download the project again.") from error


# --------------------------------------------------------------------------------------------------------- checks
def check_target(project: Project) -> None:
    """Refuse a target without photos; labels are not looked at.

    Raises:
        ProjectError: No image.
    """
    if not len(project):
        raise ProjectError(f"The target {project.path} has no images. Choose another project or dataset.")


def check_labelled(project: Project, classes: Sequence[str], role: LabelledRole) -> list[str]:
    """Refuse photos that cannot teach the chosen classes, or on which none of them can be measured.

    Args:
        project: the photos.
        classes: names without the background.
        role: what they are for. Of a source every class must have a label; elsewhere one of any class is enough.

    Returns:
        What is worth telling a person, a sentence each: classes that cannot be measured.

    Raises:
        ProjectError: No image, no annotated image, a class that the project does not have or whose shape covers no
            area, or labels that are missing.
    """
    where = f"The {role} {project.path}"
    check_choice(classes)
    if not len(project):
        raise ProjectError(f"{where} has no images. Choose another project or dataset.")
    if not any(record.annotation_path for record in project):
        raise ProjectError(f"{where} has no annotated image: there are {len(project)} photos and no annotation file.")
    unknown = [name for name in classes if name not in project.class_names]
    if unknown and (role == "source" or len(unknown) == len(classes)):
        hint = closest(unknown[0], project.class_names) if project.class_names else "it has no classes at all."
        raise ProjectError(f"{where} has no class {quoted(unknown)}: {hint}")
    shapeless = [f"'{name}' ({project.shapeless[name]})" for name in classes if name in project.shapeless]
    if shapeless:
        raise ProjectError(
            f"{where} has classes whose shape covers no area: {', '.join(shapeless)}. Leave them out of the classes "
            "(--classes), or draw them as areas."
        )
    labels = count_labels(project)
    lacking = [name for name in classes if not labels[name]]
    if not lacking:
        return []
    existing = ", ".join(f"{other} ({count})" for other, count in labels.most_common()) or "none"
    if role == "source" or len(lacking) == len(classes):
        raise ProjectError(
            f"{where} has no label of {named(lacking)} in {len(project)} images. Label some, leave {pronoun(lacking)} "
            f"out of the classes (--classes), or choose another dataset. Classes with labels: {existing}."
        )
    return [_unmeasured(where, lacking)] if role == "validation" else []


def _unmeasured(where: str, names: Sequence[str]) -> str:
    found = "it is found" if len(names) == 1 else "they are found"
    return f"{where} has no label of {named(names)}: how well {found} is not measured."


# -------------------------------------------------------------------------------------------------------- drawing
def prepare_labelled(
    project: Project,
    classes: Sequence[str],
    cache_dir: str | Path,
    *,
    role: LabelledRole = "source",
    unchosen: Unchosen = UNCHOSEN_IS_BACKGROUND,
    scale: TrainingScale | None = None,
    skip_broken: bool = False,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> LabelledImages:
    """Check a labelled project and draw its masks, or find them in the cache.

    Labels are drawn in their order, the later over the earlier: bitmaps, polygons (with holes), rectangles,
    turned or not, multipolygons, and alpha masks where they are at least half opaque.

    Args:
        project: From `open_project`.
        classes: Chosen class names without the background; index i + 1 is the i-th.
        cache_dir: Folder of the masks; a second call with equal annotations, classes and settings draws nothing.
        role: Which checks apply and how messages name the project.
        unchosen: What labels of other classes become.
        scale: At which pixels and parts are counted; None: at the photos' own size. Masks have it in any case.
        skip_broken: Whether to go on without images that cannot be read or whose annotation does not fit.
        progress: Gets a sentence now and then; without it a progress bar is shown.
        patience: With which what cannot be read is read again.

    Returns:
        Photos and mask files in the project's order. Photos without annotation file are left out.

    Raises:
        ProjectError: As `check_labelled`; images that are broken
            (unreadable, annotation of another size, label without area), named; or no pixel is left of a class that
            must have some.
    """
    said = check_labelled(project, classes, role)
    annotated = [record for record in project if record.annotation_path]
    if len(annotated) < len(project):
        logger.warning("The %s: %d images have no annotation file.", role, len(project) - len(annotated))
    with MaskCache(cache_dir) as cache:
        indices = label_indices((c.name for c in project.meta.obj_classes), classes, unchosen)
        draw = partial(_mask_of, meta=project.meta, indices=indices, scale=scale, cache=cache)
        drawn, left_out = for_each_image(annotated, draw, f"Masks of the {role}", skip_broken, progress, patience)
    items = [(record, path) for record, (path, _) in drawn]
    labelled = with_facts(classes, items, [facts for _, (_, facts) in drawn], left_out)
    lacking = [name for name, count in zip(classes, labelled.pixels.sum(axis=0)[1:], strict=True) if not count]
    if lacking and (role == "source" or len(lacking) == len(classes)):
        small = "" if scale is None else ", or nothing of them is left at the scale of training (data.scale)"
        raise ProjectError(
            f"The {role} {project.path} has no pixel of {named(lacking)} in the {len(items)} images that can be used "
            f"({len(left_out)} were left out): its labels lie in those, or later labels cover them{small}."
        )
    unmeasured = _unmeasured(f"The {role} {project.path}", lacking)
    if lacking and role == "validation" and unmeasured not in said:
        (progress or logger.warning)(unmeasured)
    return labelled


def prepare_unlabelled(
    project: Project,
    cache_dir: str | Path,
    *,
    skip_broken: bool = False,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> list[tuple[ImageRecord, tuple[int, int]]]:
    """Check that every photo of a target can be read; what was read before is not read again.

    Args:
        project: From `open_project`.
        cache_dir: As for `prepare_labelled`; may be the same folder.
        skip_broken: Whether to go on without images that cannot be read.
        progress, patience: As for `prepare_labelled`.

    Returns:
        The photos, each with its height and width.

    Raises:
        ProjectError: No image, or, naming them, images that cannot be read.
    """
    check_target(project)
    with MaskCache(cache_dir) as cache:
        read = partial(_size_of, cache=cache)
        return for_each_image(project, read, "Photos of the target", skip_broken, progress, patience)[0]


def _size_of(record: ImageRecord, cache: MaskCache) -> tuple[int, int]:
    return cache.image_size(record.image_path)


def _mask_of(
    record: ImageRecord, meta: sly.ProjectMeta, indices: dict[str, int], scale: TrainingScale | None, cache: MaskCache
) -> tuple[Path, MaskFacts]:
    content, annotation = read_annotation(record)
    size = cache.image_size(record.image_path)
    try:
        stated = (annotation["size"]["height"], annotation["size"]["width"])
    except (KeyError, TypeError) as error:
        raise ProjectError(f"The annotation {record.annotation_path} states no size of its image.") from error
    if stated != size:
        turned = (
            " Its labels were drawn without regard to the photo's EXIF orientation." if stated == size[::-1] else ""
        )
        raise ProjectError(
            f"The image {record.image_path} is {size[0]} pixels high and {size[1]} wide, its annotation says "
            f"{stated[0]} and {stated[1]}.{turned} Annotate this very file, or download the project again."
        )
    shapes = sorted((c.name, c.geometry_type.geometry_name()) for c in meta.obj_classes)
    key = mask_key(content, indices, shapes, size)
    path, pixels = cache.mask(key, lambda: draw_mask(annotation, meta, indices, size, record.key))
    if scale is None:
        return path, MaskFacts(pixel_counts(pixels), {})
    return path, cache.facts(mask_key(key, scale.key()), MASK_FACTS, lambda: facts_of_file(path, scale))


def draw_mask(
    annotation: dict[str, Any],
    meta: sly.ProjectMeta,
    indices: Mapping[str, int],
    size: tuple[int, int],
    name: str = "the annotation",
) -> NDArray[np.uint8]:
    """Draw an annotation: H×W uint8 class indices, later labels over earlier ones.

    Args:
        annotation: In Supervisely's JSON format.
        meta: Of the project.
        indices: Of each of its classes, from `label_indices`.
        size: Height and width.
        name: What an error message calls it.

    Raises:
        ProjectError: A label that the SDK cannot read, or one of a trained class whose shape has no area.
    """
    mask = np.zeros(size, np.uint8)
    canvas = sly.Rectangle.from_size(size)
    # Label by label: `sly.Annotation` crops at the border, and loses parts of polygons that cross themselves there.
    for number, one in enumerate(annotation.get("objects", []), start=1):
        try:
            label = sly.Label.from_json(one, meta)
        except Exception as error:  # the SDK raises whatever its parsers meet
            raise ProjectError(f"Label {number} of {name} cannot be read: {error!r}. Correct or delete it.") from error
        geometry = label.geometry
        if type(geometry) not in _AREAS:
            if indices[label.obj_class.name] in (0, IGNORE_LABEL):
                continue
            raise ProjectError(
                f"Label {number} of {name}, class '{label.obj_class.name}', is a {geometry.geometry_name()}, which has "
                f"no area. Expected one of {', '.join(area.geometry_name() for area in _AREAS)}: convert it, or leave "
                "the class out."
            )
        if isinstance(geometry, sly.AlphaMask):
            opaque = geometry.data >= 128
            parts = [sly.Bitmap(opaque, geometry.origin)] if opaque.any() else []
        else:
            parts = [geometry]
        try:
            for part in parts:
                inside = part.crop(canvas) if isinstance(part, sly.Bitmap) else [part]
                for piece in inside:
                    piece.draw(mask, indices[label.obj_class.name])
        except Exception as error:  # the SDK looks at some coordinates only here
            raise ProjectError(f"Label {number} of {name} cannot be drawn: {error!r}. Correct or delete it.") from error
    return mask
