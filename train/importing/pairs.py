"""A folder of photos beside a folder of masks of the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.data.choice import quoted
from common.data.folders import ImageRecord, ProjectError
from train.importing.source import dataset_of, photos_below

PHOTOS = ("images", "image", "img", "imgs", "photos", "photo", "pictures", "jpegimages")
MASKS = (
    "masks",
    "mask",
    "masks_machine",
    "labels",
    "label",
    "annotations",
    "gt",
    "ground_truth",
    "groundtruth",
    "segmentationclass",
    "segmentations",
    "segmentation",
)
"""Names of the two folders, in lower case; the first of several counts."""
_DEEPEST = 4
_NAMED = 3


@dataclass(frozen=True)
class Pair:
    """Two folders that belong together."""

    photos: Path
    masks: Path
    dataset: tuple[str, ...] = ()
    """Folders from the one that was named down to these two."""


def find_pairs(folder: Path) -> list[Pair]:
    """The pairs in a folder and its subfolders; where it holds photos itself, that of it and what lies beside it."""
    inside = list(_pairs_in(folder, ()))
    if inside:
        return inside
    beside = _named(folder.resolve().parent, MASKS)
    is_photos = beside is not None and folder.name.lower() in PHOTOS and beside != folder.resolve()
    return [Pair(folder, beside)] if is_photos else []


def _pairs_in(folder: Path, above: tuple[str, ...]) -> Iterator[Pair]:
    masks = _named(folder, MASKS)
    if masks is not None:
        photos = _named(folder, PHOTOS)
        if photos is None and any(each.parent == folder for each in photos_below(folder, [masks])):
            photos = folder
        if photos is not None:
            yield Pair(photos, masks, above)
            return
    if len(above) < _DEEPEST:
        for sub in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
            yield from _pairs_in(sub, (*above, sub.name))


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder that holds pictures and has one of `names`."""
    found = {each.name.lower(): each for each in folder.iterdir() if each.is_dir()}
    candidates = (found[name] for name in names if name in found)
    return next((each for each in candidates if next(photos_below(each), None)), None)


def matched(pair: Pair) -> Iterator[ImageRecord]:
    """The photos of a pair, each with its mask where there is one: `a.png` or `a.jpg.png` for `a.jpg`.

    Raises:
        ProjectError: no mask, masks without their photo, or of two photos.
    """
    masks = {path.relative_to(pair.masks): path for path in photos_below(pair.masks)}
    if not masks:
        raise ProjectError(f"There is no mask in {pair.masks}: expected PNGs of the photos' names.")
    photos = [path.relative_to(pair.photos) for path in photos_below(pair.photos, [pair.masks])]
    of_name = {mask.with_suffix(""): mask for mask in masks}
    taken: dict[Path, Path] = {}
    for photo in photos:
        mask = of_name.get(photo, of_name.get(photo.with_suffix("")))
        if mask is not None and (other := taken.setdefault(mask, photo)) != photo:
            raise ProjectError(
                f"The mask {masks[mask]} is that of two photos, {other} and {photo}. Rename it {photo}.png or "
                f"{other}.png."
            )
        yield ImageRecord(
            dataset_of((*pair.dataset, *photo.parent.parts)), photo.name, pair.photos / photo, masks.get(mask)
        )
    _check_all_taken(pair, masks, taken)


def _check_all_taken(pair: Pair, masks: Mapping[Path, Path], taken: Mapping[Path, Path]) -> None:
    lost = [str(mask) for mask in masks if mask not in taken]
    if lost:
        more = ", …" if len(lost) > _NAMED else ""
        raise ProjectError(
            f"{len(lost)} of {len(masks)} masks in {pair.masks} have no photo of their name in {pair.photos}: "
            f"{quoted(lost[:_NAMED])}{more}. The mask of a.jpg is a.png: rename them, or take them out."
        )
