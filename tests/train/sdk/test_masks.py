"""The bent benchmark: it counts as our own validation does, and what it bends is as it was when it was written."""

import ast
import hashlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import supervisely as sly
from supervisely.nn.benchmark import SemanticSegmentationBenchmark
from supervisely.nn.benchmark.base_benchmark import BaseBenchmark
from supervisely.nn.benchmark.semantic_segmentation.evaluator import SemanticSegmentationEvaluator
from supervisely.nn.benchmark.semantic_segmentation.visualizer import SemanticSegmentationVisualizer
from supervisely.nn.benchmark.utils.semantic_segmentation.evaluator import Evaluator
from supervisely.task.progress import tqdm_sly

from common.data.choice import Unchosen
from common.hrda.pixels import IGNORE_LABEL
from common.metrics import SegmentationMetrics
from train.sdk import masks as mask_benchmark
from train.sdk.masks import LockedCounter, MaskEvaluator, MissingPredictions, pair_up

CLASSES = ("crack", "stain")
OWNERS = {
    owner.__name__: owner
    for owner in (
        SemanticSegmentationBenchmark, SemanticSegmentationEvaluator, SemanticSegmentationVisualizer, Evaluator,
    )
}  # fmt: skip

# The first twelve digits of the SHA-256 of each method's source, in the release of the SDK that is pinned.
SOURCES = {
    "SemanticSegmentationBenchmark._evaluate": "fd6fa0399f40",
    "SemanticSegmentationBenchmark._dump_eval_inference_info": "55998356e111",
    "SemanticSegmentationEvaluator.evaluate": "9843adb5cc43",
    "SemanticSegmentationEvaluator._dump_eval_results": "7353c9ca8611",
    "SemanticSegmentationVisualizer._init_match_data": "4cc82c40d5ea",
    "SemanticSegmentationVisualizer._get_filtered_project_meta": "dd1b6f610274",
    "SemanticSegmentationVisualizer._get_sample_data_for_gallery": "f657f257e831",
    "SemanticSegmentationVisualizer._update_match_data": "4cf6be513235",
    "Evaluator.update_results": "b5012f42940d",
    "Evaluator.calc_confusion_matrix": "5dbc826536b2",
}


@pytest.mark.parametrize("name", SOURCES)
def test_method_of_the_benchmark_is_the_one_that_was_read(name: str):
    owner, attribute = name.split(".")
    found = inspect.getattr_static(OWNERS[owner], attribute, None)
    assert found is not None, f"the SDK has no {name} any more: see what does its work now: train/sdk/masks.py"
    digest = hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]
    assert digest == SOURCES[name], (
        f"the SDK changed {name} ({mask_benchmark.REACHES[name]}): read it again, see that train/sdk/masks.py "
        f"still fits, and write {digest} here"
    )


def test_benchmark_still_keeps_what_it_knows_of_the_prediction():
    assert "self._eval_inference_info = " in inspect.getsource(BaseBenchmark), "change train/sdk/masks.py"


def test_every_private_name_of_the_benchmark_in_use_is_listed():
    tree = ast.parse(inspect.getsource(mask_benchmark))
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    private = {name for name in private if name.startswith("_") and not name.startswith("__")}
    sources = [inspect.getsource(base) for owner in OWNERS.values() for base in owner.__mro__[:-1]]
    theirs = {name for name in private if any(re.search(rf"\b{name}\b", source) for source in sources)}
    assert theirs == {name for reach in mask_benchmark.REACHES if (name := reach.split(".")[1]).startswith("_")}


def counted(pairs: list[tuple[np.ndarray, np.ndarray, str]], folder: Path) -> dict:
    counter = LockedCounter(
        class_names=[*CLASSES, "__bg__"], boundary_width=0.01, boundary_iou_d=0.02, result_dir=str(folder),
        progress=tqdm_sly,
    )  # fmt: skip
    return counter.evaluate(pairs)


def for_the_sdk(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == IGNORE_LABEL, 0, np.where(mask == 0, len(CLASSES) + 1, mask)).astype(np.uint8)


def test_counts_are_those_of_our_own_validation(tmp_path):
    """Blobs of three classes, a region that does not count, many photos at once in the SDK's threads."""
    random = np.random.default_rng(3)
    ours, pairs = SegmentationMetrics(("__bg__", *CLASSES)), []
    for number in range(12):
        truth, prediction = (np.kron(random.integers(0, 3, (6, 7)), np.ones((8, 8))).astype(np.uint8) for _ in "ab")
        truth[:10, :13] = IGNORE_LABEL
        ours.update(prediction, truth)
        prediction = for_the_sdk(prediction)
        prediction[truth == IGNORE_LABEL] = 0
        pairs.append((prediction, for_the_sdk(truth), f"{number}.png"))
    data = counted(pairs, tmp_path)
    scores, table = ours.compute(), data["result"]
    for name in (*CLASSES, "__bg__"):
        assert table.loc[name, "IoU"] == pytest.approx(scores[f"iou/{name}"], abs=1e-12)
        assert table.loc[name, "recall"] == pytest.approx(scores[f"recall/{name}"], abs=1e-12)
    assert table.loc["mean", "IoU"] == pytest.approx(scores["mIoU"], abs=1e-12)
    recalls = [scores[f"recall/{name}"] for name in (*CLASSES, "__bg__")]
    np.testing.assert_allclose(np.diag(data["confusion_matrix"]), recalls, atol=5e-4)
    assert sorted(data["cell_img_names"]["0_0"]) == sorted(f"{number}.png" for number in range(12))


def write(folder: Path, photos: dict[str, dict[str, list]], classes: list[sly.ObjClass]) -> sly.Project:
    """A project without images: annotations of 20×30 by dataset and name, each with labels (class, geometry)."""
    project = sly.Project(str(folder), sly.OpenMode.CREATE)
    meta = sly.ProjectMeta(classes)
    project.set_meta(meta)
    for dataset, items in photos.items():
        place = project.create_dataset(dataset.rsplit("/", 1)[-1], dataset.replace("/", "/datasets/"))
        for name, labels in items.items():
            label_list = [sly.Label(geometry, meta.get_obj_class(title)) for title, geometry in labels]
            place._add_ann_by_type(name, sly.Annotation((20, 30), label_list))
    return sly.Project(str(folder), sly.OpenMode.READ)


@pytest.fixture
def projects(tmp_path) -> tuple[sly.Project, sly.Project]:
    """Truth with polygons, an unchosen class over one of them, photos of one name; predictions as bitmaps."""
    polygon = sly.Polygon([(2, 2), (2, 9), (9, 9), (9, 2)])
    truth = write(
        tmp_path / "truth",
        {"ds0": {"a.jpg": [("crack", polygon), ("paint", sly.Rectangle(2, 2, 3, 9))]}, "ds0/night": {"a.jpg": []}},
        [sly.ObjClass("crack", sly.AnyGeometry), sly.ObjClass("paint", sly.Rectangle)],
    )
    every = np.ones((20, 30), bool)
    found = every.copy()
    found[2:10, 2:10] = False
    cracks = [("__bg__", sly.Bitmap(found)), ("crack", sly.Bitmap(~found[2:10, 2:10], sly.PointLocation(2, 2)))]
    prediction = write(
        tmp_path / "prediction",
        {"ds0": {"a.jpg": cracks}, "ds0/night": {"a.jpg": [("__bg__", sly.Bitmap(every))]}},
        [sly.ObjClass("crack", sly.Bitmap), sly.ObjClass("__bg__", sly.Bitmap)],
    )
    return truth, prediction


@pytest.mark.parametrize(("unchosen", "crack"), [(Unchosen(), 48 / 64), (Unchosen("ignore"), 1.0)])
def test_labels_of_any_shape_count_and_unlabelled_pixels_are_background(projects, tmp_path, unchosen, crack):
    truth, prediction = projects
    evaluator = MaskEvaluator(
        truth.directory, prediction.directory, str(tmp_path / "result"), tqdm_sly, 2, ["crack"], unchosen=unchosen
    )
    evaluator.evaluate()
    table = evaluator.eval_data["result"]
    assert table.loc["crack", "IoU"] == pytest.approx(crack)
    assert list(table.index) == ["crack", "__bg__", "mean"]
    assert sorted(evaluator.eval_data["per_image_metrics"]["img_names"]) == ["ds0/a.jpg", "ds0/night/a.jpg"]
    assert evaluator.get_eval_result().key_metrics["mIoU"] == pytest.approx(table.loc["mean", "IoU"])


def test_photo_without_prediction_is_named_instead_of_counted_as_background(projects):
    truth, prediction = projects
    path = Path(prediction.datasets.get("ds0/night").get_ann_path("a.jpg"))
    annotation = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**annotation, "objects": []}), encoding="utf-8")
    with pytest.raises(MissingPredictions, match=r"1 of 2 validation photos .* for example ds0/night/a\.jpg"):
        pair_up(truth, prediction, ["crack"], "background")
