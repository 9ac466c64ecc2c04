"""The folders of a Supervisely project: where its datasets and photos lie. Knows files, not what is in them."""

import difflib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# The SDK puts a class of its own in place of tqdm.tqdm, which lacks most arguments.
from tqdm.std import tqdm

from common.data.images import IMAGE_SUFFIXES, ImageError
from common.data.reading import A_MOMENT_S, Patience, only_this_one
from common.hrda.checks import closest
from common.paths import is_file, is_folder
from common.processors import available_processors

logger = logging.getLogger(__name__)

META = "meta.json"
"""The file that makes a folder a project."""
_NOT_DATASETS = frozenset({"img", "ann", "img_info", "seg", "meta", "blob"})
_NAMED_IN_MESSAGES = 10
_SECONDS_BETWEEN_MESSAGES = 2.0

Progress = Callable[[str], None]
"""Gets a sentence about how far the work is."""

Result = TypeVar("Result")


class ProjectError(ValueError):
    """A project that cannot be used as asked; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class ImageRecord:
    """A photo of a project."""

    dataset: str
    """Name of its dataset, "a/b" for dataset b nested in a."""
    name: str
    """File name, unique within the dataset only."""
    image_path: Path
    annotation_path: Path | None
    """None if the photo has no annotation file."""

    @property
    def key(self) -> str:
        """Dataset and name: unique in the project."""
        return f"{self.dataset}/{self.name}"


def split_spec(spec: str) -> tuple[Path, str | None]:
    """The project's folder and what `DIR:DATASET` says after the colon; the longest path that exists is the folder.

    Raises:
        ProjectError: There is no such folder.
    """
    if is_folder(spec):
        return Path(spec), None
    for at in reversed([i for i, character in enumerate(spec) if character == ":"]):
        if at and is_folder(spec[:at]):
            return Path(spec[:at]), spec[at + 1 :]
    raise ProjectError(
        f"There is no such project folder. Expected DIR or DIR:DATASET. Received: {spec}{_nearest(Path(spec))}"
    )


def is_of_project(folder: Path) -> bool:
    """Whether a folder is a project, lies in one, or holds some."""
    here = folder.resolve()
    return any((place / META).is_file() for place in (here, *here.parents)) or any(here.glob(f"*/{META}"))


def what_to_write(folder: Path) -> str:
    """A sentence that says what to write in place of a folder that is no project; what it says can be opened."""
    here = folder.resolve()
    above = next((parent for parent in here.parents if (parent / META).is_file()), None)
    if above is None:
        below = sorted(path.parent.name for path in here.glob(f"*/{META}"))
        if below:
            names = f"{', '.join(below[:_NAMED_IN_MESSAGES])}{', …' * (len(below) > _NAMED_IN_MESSAGES)}"
            return f"It holds projects: write {here / below[0]}, or another of them ({names})."
        return (
            "Give a project in Supervisely's format (JSON annotations and images), or photos with labels that are "
            "imported: a folder images beside a folder masks of PNGs of the same names, COCO, Pascal VOC or Cityscapes "
            "(docs/import.md)."
        )
    datasets = dict(find_datasets(above))
    if here.name == "datasets" and here not in datasets.values():
        here = here.parent
    # A dataset, or what lies in one, such as its folder img; else what holds datasets, such as a parent of nested ones.
    around = [name for name, place in datasets.items() if place == here or place in here.parents]
    name = max(around, key=len, default=dataset_name(here.relative_to(above).parts))
    is_known = any(other == name or other.startswith(f"{name}/") for other in datasets)
    return f"It lies in the project {above}: write {f'{above}:{name}' if is_known and name else above}."


def _nearest(path: Path) -> str:
    """What may have been meant by a path that is no folder, where there is something like it."""
    if is_file(path):
        return f", which is a file. {what_to_write(path)}"
    folder, missing = path.parent, path.name
    while not is_folder(folder) and folder != folder.parent:
        folder, missing = folder.parent, folder.name
    known = [entry.name for entry in folder.iterdir() if entry.is_dir()] if os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(missing.partition(":")[0], known, n=1)
    return f". Did you mean {folder / near[0]}?" if near else ""


def dataset_name(parts: Sequence[str]) -> str:
    """'a/b' from the folders a/datasets/b."""
    return "/".join(part for i, part in enumerate(parts) if part != "datasets" or i + 1 == len(parts))


def find_datasets(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Name and folder of each dataset below `folder`: the folders that have a folder `img`."""
    for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        is_dataset = (sub / "img").is_dir()
        if sub.name in _NOT_DATASETS and not is_dataset:
            continue
        transparent = sub.name == "datasets" and not is_dataset
        name = prefix if transparent else f"{prefix}/{sub.name}".lstrip("/")
        if is_dataset:
            yield name, sub
        yield from find_datasets(sub, name)


def choose_datasets(wanted: str, existing: list[str], folder: Path) -> list[str]:
    """The datasets of `existing` that `wanted`, one name or several with commas, means; nested ones included.

    Raises:
        ProjectError: There is none of a name; `folder` is what the message calls the project.
    """
    chosen: list[str] = []
    for name in [wanted] if wanted in existing else wanted.split(","):
        name = name.strip().strip("/")
        found = [other for other in existing if name and (other == name or other.startswith(f"{name}/"))]
        if not found:
            raise ProjectError(f"The project {folder} has no dataset '{name}': {closest(name, existing)}")
        chosen += [other for other in found if other not in chosen]
    return sorted(chosen)


def list_images(dataset: str, folder: Path) -> Iterator[ImageRecord]:
    """The photos of the dataset `dataset` in `folder`, sorted by name, those that are gone included.

    An annotation whose photo is gone, or a link that leads nowhere, is a photo that cannot be read, not one less.
    """
    files = {
        path
        for path in (folder / "img").iterdir()
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".")
    }
    images = {path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    if len(images) < len(files):
        others = sorted({path.suffix for path in files} - {path.suffix for path in images})
        logger.warning("%s: %d files are no photos (%s).", folder / "img", len(files) - len(images), ", ".join(others))
    named_without_suffix = {path.stem for path in images}
    # Of a folder without any photo that is said in place of all their names.
    for annotation in (folder / "ann").glob("[!.]*.json") if images else ():
        if Path(annotation.stem).suffix.lower() in IMAGE_SUFFIXES and annotation.stem not in named_without_suffix:
            images.add(folder / "img" / annotation.stem)
    for path in sorted(images):
        # The second form is of projects written by old releases of the SDK.
        candidates = (folder / "ann" / f"{path.name}.json", folder / "ann" / f"{path.stem}.json")
        annotation = next((candidate for candidate in candidates if candidate.is_file()), None)
        yield ImageRecord(dataset, path.name, path, annotation)


def for_each_image(
    records: Sequence[ImageRecord],
    work: Callable[[ImageRecord], Result],
    title: str,
    skip_broken: bool,
    progress: Progress | None,
    patience: Patience | None = None,
) -> tuple[list[tuple[ImageRecord, Result]], list[str]]:
    """Do `work` on each photo, several at a time, and gather what fails instead of stopping at the first.

    Args:
        records: The photos.
        work: Raises `ImageError` or `ProjectError` for a photo that cannot be used.
        title: What is being done, for the progress and the messages.
        skip_broken: Whether to go on without photos that failed, as long as any is left.
        progress: Gets a sentence now and then; without it a progress bar is shown.
        patience: With which what failed is tried again.

    Returns:
        The photos that did not fail with the results of `work`, in order; and what was wrong with the others.

    Raises:
        ProjectError: Photos failed, and it names them; or their disk is away.
    """
    results: list[Result | Exception] = []
    said = time.monotonic()

    def attempt(record: ImageRecord) -> Result | Exception:
        try:
            return work(record)
        except (ImageError, ProjectError) as error:
            return error

    with ThreadPoolExecutor(min(4, available_processors())) as pool:
        try:
            attempts = pool.map(attempt, records)
            for result in attempts if progress is not None else tqdm(attempts, title, len(records)):
                results.append(result)
                is_last = len(results) == len(records)
                if progress and (is_last or time.monotonic() - said > _SECONDS_BETWEEN_MESSAGES):
                    said = time.monotonic()
                    progress(f"{title}: {len(results)} of {len(records)}.")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _try_again(results, records, work, title, patience or Patience(progress or logger.warning))
    pairs = list(zip(records, results, strict=True))
    done = [(record, result) for record, result in pairs if not isinstance(result, Exception)]
    broken = [str(result) for result in results if isinstance(result, Exception)]
    if broken and not (skip_broken and done):
        more = f"\n… and {len(broken) - _NAMED_IN_MESSAGES} more" if len(broken) > _NAMED_IN_MESSAGES else ""
        remedy = (
            "None is left to go on with." if skip_broken else "Mend or remove them, or go on without (skip_broken)."
        )
        raise ProjectError(
            f"{title}: {len(broken)} of {len(records)} images cannot be used. {remedy}\n"
            + "\n".join(broken[:_NAMED_IN_MESSAGES])
            + more
        )
    for sentence in broken:
        (progress or logger.warning)(f"Left out: {sentence}")
    return done, broken


def _try_again(
    results: list[Result | Exception],
    records: Sequence[ImageRecord],
    work: Callable[[ImageRecord], Result],
    title: str,
    patience: Patience,
) -> None:
    """Put the results of a second try in the place of errors; a disk that is away is waited for.

    Raises:
        ProjectError: it stays away: not the photos are broken.
    """
    failed = [number for number, result in enumerate(results) if isinstance(result, Exception)]
    if failed:
        patience.pause(A_MOMENT_S)
    for number in failed:
        record = records[number]
        try:
            results[number] = patience.read_after(lambda record=record: work(record), results[number])
        except (ImageError, ProjectError) as error:
            if not only_this_one(error):
                raise ProjectError(f"{title}: {error} Its disk is away: see to it, and start again.") from error
            results[number] = error
