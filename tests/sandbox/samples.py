"""Projects to send through the sandbox, and how two of them are compared."""

from pathlib import Path

import numpy as np
import supervisely as sly

HEIGHT, WIDTH = 24, 32


def meta() -> sly.ProjectMeta:
    """Classes of every shape that segmentation meets, and tags with and without values."""
    classes = [
        sly.ObjClass("crack", sly.Bitmap, [255, 0, 0]),
        sly.ObjClass("joint", sly.Polygon, [0, 255, 0]),
        sly.ObjClass("frame", sly.Rectangle, [0, 0, 255]),
        sly.ObjClass("parts", sly.Multipolygon, [9, 9, 9]),
        sly.ObjClass("soft", sly.AlphaMask, [7, 7, 7]),
        sly.ObjClass("any", sly.AnyGeometry, [1, 2, 3]),
    ]
    tags = [sly.TagMeta("wet", sly.TagValueType.NONE), sly.TagMeta("depth", sly.TagValueType.ANY_NUMBER)]
    return sly.ProjectMeta(classes, tags)


def annotation(project_meta: sly.ProjectMeta, seed: int) -> sly.Annotation:
    """One label of every kind in a fixed order, some at the image's far edge; every third image has none."""
    if seed % 3 == 2:
        return sly.Annotation((HEIGHT, WIDTH), img_description="nothing here")
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2 + seed % 5 : 9, 4:] = True
    alpha = rng.integers(1, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    depth = sly.Tag(project_meta.get_tag_meta("depth"), 2.5 + seed)
    hole = [sly.PointLocation(5, 8), sly.PointLocation(5, 12), sly.PointLocation(9, 12)]
    corner = [sly.PointLocation(0, 0), sly.PointLocation(0, WIDTH - 1), sly.PointLocation(HEIGHT - 1, WIDTH - 1)]
    polygon = sly.Polygon(corner, [hole])
    parts = sly.Multipolygon([polygon, sly.Polygon([sly.PointLocation(1, 1), sly.PointLocation(3, 1), hole[0]])])
    shapes = [
        ("crack", sly.Bitmap(mask)), ("joint", polygon), ("frame", sly.Rectangle(0, 0, HEIGHT - 1, WIDTH - 1)),
        ("any", sly.Polygon(hole)), ("parts", parts), ("soft", sly.AlphaMask(alpha)),
        ("crack", sly.Bitmap(mask[:4, :4] | True, origin=sly.PointLocation(HEIGHT - 4, WIDTH - 4))),
    ]  # fmt: skip
    labels = [
        sly.Label(shape, project_meta.get_obj_class(name), tags=[depth] if index == 0 else None)
        for index, (name, shape) in enumerate(shapes)
    ]
    wet = sly.Tag(project_meta.get_tag_meta("wet"))
    return sly.Annotation((HEIGHT, WIDTH), labels, img_tags=[wet, depth], img_description=f"photo {seed}")


def write(folder: Path, images: int = 3) -> sly.Project:
    """A project on disk: datasets ``a``, ``a/inner``, ``a/inner/deep`` and ``b`` with the same image names in each."""
    project = sly.Project(str(folder), sly.OpenMode.CREATE)
    project_meta = meta()
    project.set_meta(project_meta)
    paths = ["a", "a/datasets/inner", "a/datasets/inner/datasets/deep", "b"]
    for number, path in enumerate(paths):
        dataset = project.create_dataset(path.rsplit("/", 1)[-1], path)
        for index in range(images):
            seed = 10 * number + index
            pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            dataset.add_item_np(f"photo_{index}.png", pixels, ann=annotation(project_meta, seed))
    return sly.Project(str(folder), sly.OpenMode.READ)


def content(project: sly.Project) -> dict:
    """What must survive a round trip: bytes of images, and labels and tags without ids and times."""
    result = {}
    for dataset in project.datasets:
        for name in dataset.get_items_names():
            found = dataset.get_ann(name, project.meta)
            result[(dataset.path, name)] = (
                Path(dataset.get_img_path(name)).read_bytes(),
                found.img_size,
                found.img_description,
                _tags(found.img_tags),
                sorted(map(_label, found.labels), key=repr),
            )
    return result


def order(project: sly.Project, dataset: str, name: str) -> list[str]:
    """Class names of an image's labels, in the order in which they are drawn."""
    found = next(d for d in project.datasets if d.path == dataset).get_ann(name, project.meta)
    return [label.obj_class.name for label in found.labels]


def _tags(tags: sly.TagCollection) -> list[tuple]:
    return sorted((tag.name, tag.value) for tag in tags)


def _label(label: sly.Label) -> tuple:
    geometry = label.geometry.to_json()
    for key in ("id", "classId", "labelerLogin", "createdAt", "updatedAt"):
        geometry.pop(key, None)
    if isinstance(label.geometry, sly.Bitmap | sly.AlphaMask):
        shape = label.geometry
        geometry = (shape.origin.row, shape.origin.col, shape.data.shape, shape.data.tobytes())
    return label.obj_class.name, repr(geometry), tuple(_tags(label.tags))
