"""The SDK's model benchmark as this app needs it: every reach into names of it that are not promised lies here.

The SDK writes the masks to compare under the photos' names, which spoils those of JPEGs, lets two photos of one name in
different datasets overwrite each other, and knows a background only if one of the projects has a class for it. Here
masks are drawn in memory, as training and validation draw them, and a pixel without a label is background. Counting,
charts and report stay the SDK's.

`REACHES` lists what is overridden or used; a test fails when another version of the SDK changes one of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from supervisely import Dataset, OpenMode, Project, ProjectMeta, logger
from supervisely.api.file_api import FileInfo
from supervisely.nn.benchmark import SemanticSegmentationBenchmark
from supervisely.nn.benchmark.semantic_segmentation.evaluator import SemanticSegmentationEvaluator
from supervisely.nn.benchmark.semantic_segmentation.visualizer import SemanticSegmentationVisualizer
from supervisely.nn.benchmark.utils.semantic_segmentation.evaluator import Evaluator
from supervisely.nn.inference import SessionJSON

from common.data.choice import BACKGROUND, UNCHOSEN_IS_BACKGROUND, Unchosen, label_indices
from common.data.project import draw_mask
from common.hrda.pixels import IGNORE_LABEL

REACHES = {
    # Overridden
    "SemanticSegmentationBenchmark._evaluate": "masks are compared in memory",
    "SemanticSegmentationEvaluator.evaluate": "masks are drawn as in training; what has no label is background",
    "SemanticSegmentationVisualizer._init_match_data": "photos of one name in several datasets stay apart",
    "SemanticSegmentationVisualizer._get_filtered_project_meta": "the SDK fails where labels are polygons",
    "SemanticSegmentationVisualizer._get_sample_data_for_gallery": "the SDK asks one dataset for the photos of all",
    "Evaluator.update_results": "the SDK counts in several threads without a lock",
    "Evaluator.calc_confusion_matrix": "as update_results",
    # Called or read
    "SemanticSegmentationEvaluator._dump_eval_results": "the report is made of what lies in the folder",
    "SemanticSegmentationVisualizer._update_match_data": "the three pictures of a photo",
    "SemanticSegmentationBenchmark._dump_eval_inference_info": "the report says what was measured on",
    "SemanticSegmentationBenchmark._eval_inference_info": "as _dump_eval_inference_info",
}
"""Names of the SDK's benchmark that may change, and why they are needed."""

BOUNDARY_WIDTH = 0.01
"""Errors within this share of a photo's diagonal from an edge are errors of the boundary; the SDK's value."""
BOUNDARY_IOU_WIDTH = 0.02
"""Width of the band of the boundary IoU, as a share of a photo's diagonal; the SDK's value."""
GALLERY_SIZE = 9
NOT_COUNTED = 0


class MissingPredictions(ValueError):
    """Photos came back without any prediction, not even of the background."""


def photo_name(dataset: str, name: str, datasets: Sequence[str]) -> str:
    """What the report calls a photo: its name, with its dataset's where there are several."""
    return name if len(datasets) == 1 else f"{dataset}/{name}"


@dataclass(frozen=True)
class MaskPair:
    """Prediction and truth of a photo, drawn when they are unpacked, so that not all lie in memory at once."""

    name: str
    truth: Path
    prediction: Path
    metas: tuple[ProjectMeta, ProjectMeta]
    classes: tuple[str, ...]
    unchosen: Unchosen

    def __iter__(self) -> Iterator[Any]:
        truth = read_mask(self.truth, self.metas[0], self.classes, self.unchosen, self.name)
        prediction = read_mask(self.prediction, self.metas[1], self.classes, UNCHOSEN_IS_BACKGROUND, self.name)
        if prediction.shape == truth.shape:
            prediction[truth == NOT_COUNTED] = NOT_COUNTED
        return iter((prediction, truth, self.name))


def read_mask(
    path: Path, meta: ProjectMeta, classes: Sequence[str], unchosen: Unchosen, name: str
) -> NDArray[np.uint8]:
    """An annotation's mask: H×W uint8, the i-th class as i + 1 and the background as the last one, as the SDK counts.

    Pixels that do not count are 0: they belong to no class, in neither of the two masks.
    """
    annotation = json.loads(path.read_text(encoding="utf-8"))
    size = annotation["size"]["height"], annotation["size"]["width"]
    indices = label_indices((c.name for c in meta.obj_classes), classes, unchosen)
    mask = draw_mask(annotation, meta, indices, size, name)
    mask[mask == 0] = len(classes) + 1
    mask[mask == IGNORE_LABEL] = NOT_COUNTED
    return mask


def pair_up(truth: Project, prediction: Project, classes: Sequence[str], unchosen: Unchosen) -> list[MaskPair]:
    """The photos of two downloaded projects, one pair each; `unchosen` is what true labels of other classes become.

    Raises:
        MissingPredictions: for photos without prediction.
    """
    predicted = {dataset.name: dataset for dataset in prediction.datasets}
    names = [dataset.name for dataset in truth.datasets if len(dataset)]
    pairs, missing = [], []
    for dataset in truth.datasets:
        other = predicted.get(dataset.name)
        for name in dataset.get_items_names():
            shown = photo_name(dataset.name, name, names)
            path = None if other is None or not other.item_exists(name) else Path(other.get_ann_path(name))
            if path is None or not json.loads(path.read_text(encoding="utf-8"))["objects"]:
                missing.append(shown)
                continue
            truth_path = Path(dataset.get_ann_path(name))
            pairs.append(MaskPair(shown, truth_path, path, (truth.meta, prediction.meta), tuple(classes), unchosen))
    if missing:
        total = len(pairs) + len(missing)
        raise MissingPredictions(
            f"{len(missing)} of {total} validation photos came back without a prediction, for example {missing[0]}."
        )
    return pairs


class LockedCounter(Evaluator):
    """The SDK's counting, which it does in several threads, with a lock where they write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writing = threading.Lock()

    def update_results(self, sample_results: dict[str, Any], img_name: str) -> None:
        """Add a photo's counts."""
        with self._writing, np.errstate(divide="ignore", invalid="ignore"):
            super().update_results(sample_results, img_name)

    def calc_confusion_matrix(
        self, pred: NDArray[np.uint8], gt: NDArray[np.uint8], cmat: NDArray[np.float64], img_name: str
    ) -> NDArray[np.float64]:
        """Add a photo's pairs of true and predicted classes to `cmat`."""
        count = self.num_classes
        counted = gt != NOT_COUNTED
        pairs = (gt[counted].astype(np.int64) - 1) * count + pred[counted] - 1
        matrix = np.bincount(pairs, minlength=count * count).reshape(count, count)
        with self._writing:
            cmat += matrix
            for truth, prediction in np.argwhere(matrix):
                self.cell_img_names[f"{truth}_{prediction}"].append(img_name)
        return cmat


class MaskEvaluator(SemanticSegmentationEvaluator):
    """Compares the annotations of the two projects; `unchosen` is what true labels of other classes count as."""

    def __init__(self, *args: Any, unchosen: Unchosen, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unchosen = unchosen

    def evaluate(self) -> None:
        """Count, and write the result for the report.

        Raises:
            MissingPredictions: for photos without prediction.
        """
        projects = [Project(path, OpenMode.READ) for path in (self.gt_project_path, self.pred_project_path)]
        pairs = pair_up(*projects, self.classes_whitelist, self._unchosen)
        self.bg_cls_name = BACKGROUND
        counter = LockedCounter(
            class_names=[*self.classes_whitelist, BACKGROUND],
            boundary_width=BOUNDARY_WIDTH,
            boundary_iou_d=BOUNDARY_IOU_WIDTH,
            result_dir=self.result_dir,
            progress=self.pbar,
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            self.eval_data = counter.evaluate(pairs) | {"bg_cls_name": BACKGROUND}
        self._dump_eval_results()


class MaskVisualizer(SemanticSegmentationVisualizer):
    """The SDK's report, for several datasets and for labels of any shape."""

    def _init_match_data(self) -> None:
        truth, prediction = (Project(path, OpenMode.READ) for path in (self.gt_project_path, self.pred_project_path))
        names = [dataset.name for dataset in truth.datasets if len(dataset)]
        result = self.eval_result
        copies = full_names(result.diff_dataset_infos)
        with self.pbar(message="Visualizations: Matching photos", total=prediction.total_items) as progress:
            for dataset in prediction.datasets:
                true: Dataset = truth.datasets.get(dataset.name)
                items = dataset.get_items_names()
                if not items:
                    continue
                infos = [dataset.get_image_info(name) for name in items]
                shown = self.api.image.copy_batch_optimized(
                    infos[0].dataset_id, infos, copies[dataset.name], with_annotations=False, skip_validation=True
                )
                for name, info, copy in zip(items, infos, shown, strict=True):
                    true_info = true.get_image_info(name)
                    key = photo_name(dataset.name, name, names)
                    annotation = dataset.get_ann(name, prediction.meta)
                    self._update_match_data(
                        true_info.id,
                        gt_image_info=true_info._replace(name=key),
                        pred_image_info=info._replace(name=key),
                        diff_image_info=copy._replace(name=key),
                        gt_annotation=true.get_ann(name, truth.meta),
                        pred_annotation=annotation,
                    )
                    result.images_map[key] = true_info.id
                    for label in annotation.labels:
                        result.images_by_class[label.obj_class.name].add(true_info.id)
                progress.update(len(items))

    def _get_filtered_project_meta(self, eval_result: Any) -> ProjectMeta:
        shown = {*eval_result.classes_whitelist, BACKGROUND}
        meta = eval_result.pred_project_meta
        return meta.clone(obj_classes=[one for one in meta.obj_classes if one.name in shown])

    def _get_sample_data_for_gallery(self) -> None:
        result = self.eval_result
        photos = [data.pred_image_info for data in result.matched_pair_data.values()]
        step = max(1, len(photos) // GALLERY_SIZE)
        result.sample_images = photos[::step][:GALLERY_SIZE]
        result.sample_anns = [
            self.api.annotation.download_batch(photo.dataset_id, [photo.id])[0] for photo in result.sample_images
        ]


def full_names(datasets: Sequence[Any]) -> dict[str, int]:
    """Ids of datasets by full name, `parent/child`."""
    by_id = {dataset.id: dataset for dataset in datasets}

    def full_name(dataset: Any) -> str:
        parent = by_id.get(dataset.parent_id)
        return dataset.name if parent is None else f"{full_name(parent)}/{dataset.name}"

    return {full_name(dataset): dataset.id for dataset in datasets}


class MaskBenchmark(SemanticSegmentationBenchmark):
    """The SDK's benchmark with the parts above."""

    visualizer_cls = MaskVisualizer

    def __init__(self, *args: Any, unchosen: Unchosen = UNCHOSEN_IS_BACKGROUND, **kwargs: Any) -> None:
        """As the SDK's; `unchosen` is what true labels of classes that are not compared count as."""
        super().__init__(*args, **kwargs)
        self._unchosen = unchosen

    def predict(self, session: SessionJSON, settings: dict[str, Any], batch_size: int, checkpoint: FileInfo) -> None:
        """Let a served model predict the photos into a project of their own.

        Args:
            session: the served model.
            settings: of the prediction.
            batch_size: photos at once.
            checkpoint: the model in Team Files, for the report.
        """
        compared, self.classes_whitelist = self.classes_whitelist, [*self.classes_whitelist, BACKGROUND]
        try:
            # The SDK sends them as the classes to predict, and keeps them for the report. Its own evaluator has put the
            # background last by then, and its comparison of models goes by their number.
            self.run_inference(session, settings, batch_size=batch_size)
        finally:
            self.classes_whitelist = compared
        # The served model knows only its copy on this machine, which nobody can open.
        self._eval_inference_info |= {
            "custom_checkpoint_path": checkpoint.path,
            "checkpoint_url": self.api.file.get_url(checkpoint.id),
        }

    def compare(self) -> None:
        """Download both projects' annotations and compare them.

        Raises:
            MissingPredictions: for photos without prediction.
        """
        self._evaluate(*self.download_projects(save_images=False))
        self._dump_eval_inference_info(self._eval_inference_info)

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name; without those of what was neither there nor predicted."""
        return {name: float(value) for name, value in self.key_metrics.items() if np.isfinite(value)}

    @property
    def classes_found(self) -> set[str]:
        """Classes of which the predictions have a pixel."""
        counts = self.evaluator.eval_data["result"].drop(index="mean")
        return {name for name, row in counts.iterrows() if row["TP"] + row["FP"] > 0}

    def remove_projects(self) -> None:
        """Remove the projects of predictions and differences; what cannot be removed is noted in the log."""
        diff = getattr(self.visualizer, "diff_project", None)
        for project in (self.dt_project_info, diff):
            if project is not None:
                try:
                    self.api.project.remove(project.id)
                except requests.RequestException as error:
                    logger.warning(f"The project '{project.name}' of the model benchmark is left over: {error!r}")

    def _evaluate(self, gt_project_path: str, pred_project_path: str) -> None:
        self.evaluator = MaskEvaluator(
            gt_project_path=gt_project_path,
            pred_project_path=pred_project_path,
            result_dir=self.get_eval_results_dir(),
            progress=self.pbar,
            items_count=self.num_items,
            classes_whitelist=self.classes_whitelist,
            evaluation_params=self.evaluation_params,
            unchosen=self._unchosen,
        )
        self.evaluator.evaluate()
