"""Projects in Supervisely format on disk → projects of the sandbox."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from sandbox import datasets, images, projectmeta, projects
from sandbox.coordinates import to_subpixel
from sandbox.errors import ApiError
from sandbox.imagefile import UnreadableImage
from sandbox.labels import Names, set_annotation
from sandbox.storage import WORKSPACE_ID, Storage

logger = logging.getLogger("sandbox")


class ImportFailed(ValueError):
    """A folder that cannot be taken as a project; the message names the file and the remedy."""


@dataclass
class Imported:
    """What became of one folder."""

    name: str
    project_id: int
    images: int
    """Images added; 0 if the project was in the state already."""
    skipped: int
    """Files in ``img`` that are no readable images."""


def project_folders(data: Path) -> list[Path]:
    """The projects in ``data``: its folders that hold a ``meta.json``, or ``data`` itself if it holds one.

    Raises:
        ImportFailed: If there is none.
    """
    if (data / "meta.json").is_file():
        return [data]
    found = sorted(path.parent for path in data.glob("*/meta.json")) if data.is_dir() else []
    if not found:
        raise ImportFailed(
            f"No project in Supervisely format in {data}: expected folders with a meta.json in them, or a meta.json."
        )
    return found


def import_projects(storage: Storage, data: Path) -> list[Imported]:
    """Import every project in ``data`` that the state does not hold under the same name.

    Raises:
        ImportFailed: If there is no project, or one is damaged; that one leaves nothing behind.
    """
    return [import_project(storage, folder) for folder in project_folders(data)]


def import_project(storage: Storage, folder: Path) -> Imported:
    """Import one project, named after its folder.

    Raises:
        ImportFailed: If its meta or an annotation cannot be read or do not fit each other.
    """
    name = folder.resolve().name
    present = storage.value("SELECT id FROM projects WHERE workspace_id=? AND name=?", WORKSPACE_ID, name)
    if present is not None:
        return Imported(name, present, 0, 0)
    meta = _read(folder / "meta.json")
    with storage.transaction():
        kind = meta.get("projectType") or "images"
        if kind != "images":
            raise ImportFailed(f"{folder} holds {kind}: the sandbox takes projects of images only.")
        project_id = projects.create(storage, {"workspaceId": WORKSPACE_ID, "name": name, "type": kind})
        projectmeta.write(storage, project_id, meta)
        result = Imported(name, project_id, 0, 0)
        for child in _dataset_folders(folder):
            _import_dataset(storage, result, child, None)
    return result


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImportFailed(f"Cannot read {path} as JSON: {error}") from error


def _dataset_folders(folder: Path) -> list[Path]:
    def is_dataset(path: Path) -> bool:
        return any((path / part).is_dir() for part in ("img", "ann", "datasets"))

    return sorted(path for path in folder.iterdir() if path.is_dir() and is_dataset(path))


def _import_dataset(storage: Storage, result: Imported, folder: Path, parent_id: int | None) -> None:
    body = {"projectId": result.project_id, "parentId": parent_id, "name": folder.name}
    dataset_id = datasets.create(storage, body)
    names = Names(storage, result.project_id)
    files = sorted((folder / "img").glob("*")) if (folder / "img").is_dir() else []
    for path in files:
        if path.name.startswith(".") or not path.is_file():
            continue
        with path.open("rb") as file:
            content_hash, size = storage.blobs.put(file)
        try:
            images.add_content(storage, content_hash, size)
        except UnreadableImage as error:
            logger.warning("%s is left out: %s", path, error)
            result.skipped += 1
            continue
        entry = {"title": path.name, "hash": content_hash}
        details = folder / "meta" / f"{path.name}.json"
        if details.is_file():
            entry["meta"] = _read(details)
        image_id = images.add(storage, dataset_id, [entry])[0]
        _import_annotation(storage, names, image_id, folder / "ann" / f"{path.name}.json")
        result.images += 1
    if (folder / "datasets").is_dir():
        for child in _dataset_folders(folder / "datasets"):
            _import_dataset(storage, result, child, dataset_id)


def _import_annotation(storage: Storage, names: Names, image_id: int, path: Path) -> None:
    if not path.is_file():
        return
    annotation = _read(path)
    try:
        for label in annotation["objects"]:
            if label["geometryType"] == "oriented_bbox":
                raise ImportFailed(f"{path} holds an oriented box: the sandbox imports projects without them.")
            to_subpixel(label, label["geometryType"])
        set_annotation(storage, names, image_id, annotation)
    except (ApiError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ImportFailed):
            raise
        reason = error.message if isinstance(error, ApiError) else repr(error)
        raise ImportFailed(f"{path} is no annotation that fits the project's meta.json: {reason}") from error
