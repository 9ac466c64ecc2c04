"""Labels (figures) and tags of images in the database."""

import json
from collections.abc import Iterable
from sqlite3 import Row

from sandbox import projectmeta
from sandbox.errors import ApiError
from sandbox.payload import text
from sandbox.storage import USER_LOGIN, Storage, dump, now

# Keys of a label that are not its geometry; those in the second row are kept beside it.
_OWN_KEYS = {"id", "classId", "classTitle", "geometryType", "shape", "tags", "labelerLogin", "createdAt", "updatedAt"}
_EXTRA_KEYS = {
    "description", "instance", "smartToolInput", "nnCreated", "nnUpdated", "customData", "meta", "trackId",
    "objectId",
}  # fmt: skip
_IGNORED_KEYS = {"entityId", "imageId", "priority", "area", "geometryMeta", "geometry", "datasetId", "projectId"}


class Names:
    """Names and ids of a project's classes and tags."""

    def __init__(self, storage: Storage, project_id: int) -> None:
        meta = projectmeta.read(storage, project_id)
        self.classes = {item["id"]: item["title"] for item in meta["classes"]}
        self.tags = {item["id"]: item["name"] for item in meta["tags"]}
        self._class_ids = {title: key for key, title in self.classes.items()}
        self._tag_ids = {name: key for key, name in self.tags.items()}

    def class_id(self, label: dict) -> int:
        """The id of a label's class, by ``classTitle``, else by ``classId``.

        Raises:
            ApiError: 400 if the project has no such class.
        """
        title, class_id = label.get("classTitle"), label.get("classId")
        if title in self._class_ids:
            return self._class_ids[title]
        if title is None and class_id in self.classes:
            return class_id
        raise ApiError(
            400,
            f"The project has no class {title or class_id!r}: its classes are {sorted(self._class_ids)}. "
            "Update the project's meta before the annotations.",
        )

    def tag_id(self, tag: dict) -> int:
        """The id of a tag's meta, by ``name``, else by ``tagId``.

        Raises:
            ApiError: 400 if the project has no such tag.
        """
        name, tag_id = tag.get("name"), tag.get("tagId")
        if name in self._tag_ids:
            return self._tag_ids[name]
        if name is None and tag_id in self.tags:
            return tag_id
        raise ApiError(400, f"The project has no tag {name or tag_id!r}: its tags are {sorted(self._tag_ids)}.")


def add_tag(storage: Storage, image_id: int, figure_id: int | None, tag_id: int, value: object) -> int:
    """Attach a tag to an image, or to one of its figures, and return the tag's id."""
    moment = now()
    return storage.run(
        "INSERT INTO tags (image_id, figure_id, tag_id, value, created_at, updated_at) VALUES (?,?,?,?,?,?)",
        image_id, figure_id, tag_id, dump(value), moment, moment,
    )  # fmt: skip


def add_figure(storage: Storage, names: Names, image_id: int, label: dict) -> int:
    """Add one label to an image and return its id.

    Args:
        storage: The state; call inside a transaction.
        names: Of the image's project.
        image_id: The image.
        label: Label as the SDK writes it; its geometry lies under ``geometry`` or among its keys, and is missing for
            an alpha mask, whose content follows by ``figures.bulk.upload.geometry``.

    Raises:
        ApiError: 400 if class, geometry type or geometry are missing or unknown.
    """
    kind = text(label, "geometryType")
    class_id = names.class_id(label)
    source = label["geometry"] if isinstance(label.get("geometry"), dict) else label
    geometry = {key: value for key, value in source.items() if key not in _OWN_KEYS | _EXTRA_KEYS | _IGNORED_KEYS}
    if not geometry and kind != "alpha_mask":
        raise ApiError(400, f"A {kind} label of image {image_id} has no geometry. Received keys: {sorted(label)}")
    extra = {key: label[key] for key in _EXTRA_KEYS if label.get(key) is not None}
    moment = now()
    figure_id = storage.run(
        "INSERT INTO figures (image_id, class_id, geometry_type, geometry, extra, priority, created_at, updated_at)"
        " SELECT ?,?,?,?,?, COALESCE(MAX(priority), 0) + 1, ?,? FROM figures WHERE image_id=?",
        image_id, class_id, kind, dump(geometry), dump(extra), moment, moment, image_id,
    )  # fmt: skip
    for tag in label.get("tags") or []:
        add_tag(storage, image_id, figure_id, names.tag_id(tag), tag.get("value"))
    return figure_id


def set_annotation(storage: Storage, names: Names, image_id: int, annotation: dict) -> None:
    """Replace labels, tags and description of an image.

    Args:
        storage: The state; call inside a transaction.
        names: Of the image's project.
        image_id: The image.
        annotation: Annotation as the SDK writes it; geometries between pixels (see ``sandbox.coordinates``).
    """
    if not isinstance(annotation.get("objects"), list):
        raise ApiError(400, f"The annotation of image {image_id} has no list 'objects'. Received: {sorted(annotation)}")
    storage.run("DELETE FROM figures WHERE image_id=?", image_id)
    storage.run("DELETE FROM tags WHERE image_id=?", image_id)
    for label in annotation["objects"]:
        add_figure(storage, names, image_id, label)
    for tag in annotation.get("tags") or []:
        add_tag(storage, image_id, None, names.tag_id(tag), tag.get("value"))
    storage.run(
        "UPDATE images SET description=?, custom_big_data=?, updated_at=? WHERE id=?",
        annotation.get("description") or "", dump(annotation.get("customBigData") or {}), now(), image_id,
    )  # fmt: skip


def tag_json(row: Row, names: Names) -> dict:
    """A tag inside an annotation."""
    return {
        "id": row["id"], "tagId": row["tag_id"], "name": names.tags.get(row["tag_id"]),
        "value": json.loads(row["value"]), "labelerLogin": USER_LOGIN, "createdAt": row["created_at"],
        "updatedAt": row["updated_at"],
    }  # fmt: skip


def _label_json(row: Row, names: Names, tags: list[dict]) -> dict:
    extra = json.loads(row["extra"])
    return {
        "description": "", **extra, "id": row["id"], "classId": row["class_id"],
        "classTitle": names.classes[row["class_id"]], "geometryType": row["geometry_type"],
        "labelerLogin": USER_LOGIN, "createdAt": row["created_at"], "updatedAt": row["updated_at"], "tags": tags,
        "priority": row["priority"], **json.loads(row["geometry"]),
    }  # fmt: skip


def annotations(storage: Storage, names: Names, images: Iterable[Row], *, custom_data: bool) -> list[dict]:
    """Annotations as ``annotations.bulk.info`` answers them.

    Args:
        storage: The state.
        names: Of the images' project.
        images: Rows of :func:`sandbox.images.get_rows`.
        custom_data: Whether ``customBigData`` is wanted.
    """
    images = list(images)
    ids = dump([image["id"] for image in images])
    figures: dict[int, list[Row]] = {}
    for row in storage.all(
        "SELECT * FROM figures WHERE image_id IN (SELECT value FROM json_each(?)) ORDER BY priority, id", ids
    ):
        figures.setdefault(row["image_id"], []).append(row)
    tags: dict[tuple[int, int | None], list[dict]] = {}
    for row in storage.all("SELECT * FROM tags WHERE image_id IN (SELECT value FROM json_each(?)) ORDER BY id", ids):
        tags.setdefault((row["image_id"], row["figure_id"]), []).append(tag_json(row, names))
    result = []
    for image in images:
        key = image["id"]
        annotation = {
            "description": image["description"], "size": {"height": image["height"], "width": image["width"]},
            "tags": tags.get((key, None), []),
            "objects": [_label_json(row, names, tags.get((key, row["id"]), [])) for row in figures.get(key, [])],
        }  # fmt: skip
        if custom_data:
            annotation["customBigData"] = json.loads(image["custom_big_data"])
        result.append({
            "imageId": key, "imageName": image["name"], "datasetId": image["dataset_id"], "annotation": annotation,
            "createdAt": image["created_at"], "updatedAt": image["updated_at"],
        })  # fmt: skip
    return result
