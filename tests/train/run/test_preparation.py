"""A labelled part of the target and sampling by class, from folders to a finished run."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.data.datasets import read_mask
from common.data.folders import ImageRecord
from common.data.labels import resize_labels
from common.data.overlap import shared_photos
from common.data.project import ProjectError
from common.hrda import SettingsError
from sandbox.synthetic.projects import write_project
from train.run.engine import run
from train.run.preparation import Domains, build_batches, prepare
from train.run.request import RunRequest
from train.run.state import Progressed, Said, TrainingState
from train.settings.training import TrainSettings

SMALL = [
    "iterations=2",
    "batch_size=4",
    "log_interval=1",
    "model.encoder=mit_b0",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "optimizer.warmup_iterations=0",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "data.rare_class_sampling.mode=auto",
    "validation.interval=2",
    "validation.previews=0",
]
COUNTS = {"source": 4, "target": 3, "val": 2, "labelled": 2}


def settings(*overrides):
    return TrainSettings().with_overrides([*SMALL, *overrides])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_project(
            root / name, "source" if name == "source" else "real_like", count, seed=seed, size=(96, 80), workers=1
        )
    return Domains(*(str(root / name) for name in COUNTS))


@pytest.fixture(scope="module")
def prepared(domains, tmp_path_factory):
    said = []
    return prepare(settings(), domains, None, tmp_path_factory.mktemp("masks"), said.append), said


def test_choice_of_sampling_is_said_in_a_line_for_each_labelled_domain(prepared):
    data, said = prepared
    lines = [line for line in said if line.startswith("Rare class sampling")]
    assert ["source crops" in line or "labelled target crops" in line for line in lines] == [True, True]
    assert all("crack 75%" in line and "at temperature" in line and "\n" not in line for line in lines)
    assert "4 labelled photos, 2 labelled target photos, 3 target photos, 2 validation photos" in said[-1]
    assert [len(photos) for photos in (data.source, data.labelled_target, data.target)] == [4, 2, 3]


def test_labelled_target_photos_are_in_the_batches_of_a_run(prepared):
    data, _ = prepared
    mixed = build_batches(settings("iterations=8"), data)
    without = build_batches(settings("iterations=8"), dataclasses.replace(data, labelled_target=[]))
    other = [[not torch.equal(a, b) for a, b in zip(mixed[k][0], without[k][0], strict=True)] for k in range(8)]
    assert np.array(other).mean(axis=0).tolist() == [0, 0, 0, 1], "the last of each batch of four"


def test_run_with_a_labelled_part_of_the_target_learns_from_it(domains, tmp_path):
    heard = []
    state = TrainingState()
    state.subscribe(lambda _, change: heard.append(change))
    result = run(RunRequest(settings(), domains, tmp_path, device="cpu"), state=state)
    assert result.iteration == 2
    assert any(isinstance(change, Said) and "labelled target crops" in change.text for change in heard)
    assert all(np.isfinite(list(change.scalars.values())).all() for change in heard if isinstance(change, Progressed))


@pytest.mark.parametrize("change", ["mode=supervised", "data.labelled_target_share=0"])
def test_labelled_part_that_is_not_learnt_from_is_not_read(domains, tmp_path, change):
    said = []
    given = dataclasses.replace(domains, target=domains.labelled_target, labelled_target=str(tmp_path / "nowhere"))
    data = prepare(settings(change), given, None, tmp_path, said.append)
    assert data.labelled_target == []
    assert data.labelled_target_sampler is None


@pytest.fixture(scope="module")
def nested(domains, tmp_path_factory):
    """A project whose dataset 'road' has the dataset 'night' in it, and a copy of the latter's photos, renamed."""
    root = tmp_path_factory.mktemp("nested")
    shutil.copytree(domains.source, root / "photos")
    (root / "photos" / "ds0").rename(root / "photos" / "road")
    shutil.copytree(Path(domains.val) / "ds0", root / "photos" / "road" / "datasets" / "night")
    shutil.copytree(root / "photos" / "road" / "datasets" / "night", root / "copy" / "ds0")
    shutil.copy(root / "photos" / "meta.json", root / "copy")
    for part in ("img", "ann"):
        for path in (root / "copy" / "ds0" / part).iterdir():
            path.rename(path.with_name(f"other_{path.name}"))
    return root


@pytest.mark.parametrize("mode", ["source-only", "control", "uda", "supervised"])
@pytest.mark.parametrize("validation", ["photos:road/night", "copy"], ids=["by path", "by content"])
def test_measuring_on_what_is_learnt_from_is_refused_in_every_mode(nested, domains, tmp_path, mode, validation):
    learnt = f"{nested}/photos:road"
    given = Domains(learnt, learnt if mode == "supervised" else domains.target, f"{nested}/{validation}")
    role = "target" if mode == "supervised" else "source"
    with pytest.raises(SettingsError, match=f"2 {role} photos are validation photos too, such as road/night/"):
        prepare(settings(f"mode={mode}"), given, None, tmp_path / "masks", lambda _: None)
    assert not (tmp_path / "masks").exists()


def test_adapting_to_the_validation_photos_is_allowed_and_told(domains, tmp_path):
    said = []
    prepare(settings(), dataclasses.replace(domains, target=domains.val), None, tmp_path, said.append)
    assert sum("2 target photos are validation photos too, such as ds0/" in line for line in said) == 1


def test_photo_that_cannot_be_read_is_shared_with_none(tmp_path):
    def record(folder, name, content=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / folder / name).write_bytes(content)
        return ImageRecord(folder, name, tmp_path / folder / name, None)

    beginning = b"x" * 100_000
    learnt = [record("a", "1", beginning + b"1"), record("a", "2", b""), record("a", "gone"), record("a", "3", b"same")]
    measured = [
        record("b", "1", beginning + b"2"),
        record("b", "2", b""),
        record("b", "gone"),
        record("b", "4", b"same"),
    ]
    assert shared_photos(learnt, measured) == ["a/3"]
    assert shared_photos(learnt, [record("b", "5", beginning + b"1")]) == ["a/1"]


def test_class_called_background_is_told_and_line_classes_are_left_out_as_on_the_page(domains, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(domains.source, source)
    meta = json.loads((source / "meta.json").read_text())
    shapes = {"background": "rectangle", "axis": "line", "spot": "point", "neutral": "rectangle"}
    meta["classes"] += [{**meta["classes"][0], "title": title, "shape": shape} for title, shape in shapes.items()]
    (source / "meta.json").write_text(json.dumps(meta))
    for path in source.glob("ds0/ann/*.json"):
        annotation = json.loads(path.read_text())
        corners = {"background": [[0, 0], [79, 95]], "axis": [[1, 1], [9, 9]], "neutral": [[0, 0], [9, 9]]}
        shaped = [
            {
                "classTitle": title,
                "geometryType": shapes[title],
                "tags": [],
                "points": {"exterior": points, "interior": []},
            }
            for title, points in corners.items()
        ]
        annotation["objects"] = [*shaped[:1], *annotation["objects"], *shaped[1:]]
        path.write_text(json.dumps(annotation))
    given, said = dataclasses.replace(domains, source=str(source)), []
    ignoring = settings("mode=source-only", "data.ignored_classes=[neutral]")
    data = prepare(ignoring, given, None, tmp_path / "masks", said.append)
    assert data.classes == ("__bg__", "crack", "background")
    assert "Classes that are left out, as their shape covers no area: 'axis' (line), 'spot' (point)." in said
    assert sum("'background' would be trained as a class of its own" in line for line in said) == 1
    assert (
        sum("has no label of the class 'background': how well it is found is not measured" in line for line in said)
        == 1
    )
    masks = [read_mask(mask) for _, mask in data.source]
    assert all((mask[:10, :10] == 255).all() and 2 in mask and 0 not in mask for mask in masks)
    with pytest.raises(ProjectError, match="covers no area: 'axis' .*--classes"):
        prepare(ignoring, given, ["crack", "axis"], tmp_path / "masks", said.append)
    with pytest.raises(SettingsError, match="ignored_classes names 'neutral', which is trained"):
        prepare(ignoring, given, ["crack", "neutral"], tmp_path / "masks", said.append)
    with pytest.raises(
        SettingsError, match="ignored_classes names 'netral', which no project has: did you mean 'neutral'"
    ):
        prepare(settings("data.ignored_classes=[netral]"), given, ["crack"], tmp_path / "masks", said.append)


def test_share_of_the_parts_that_survive_is_told_and_decides_shares_and_sampling(domains, tmp_path):
    found = {}
    for scaling in ("keep_thin", "nearest"):
        said = []
        small = settings("data.scale={long_edge: 32, short_edge: 32}", f"data.label_scaling={scaling}")
        data = prepare(small, dataclasses.replace(domains, labelled_target=None), None, tmp_path, said.append)
        found[scaling] = data.source_shares[1], next(line for line in said if line.startswith("Of the parts"))
        labels = [resize_labels(read_mask(mask), (32, 27), scaling) for _, mask in data.source]
        assert data.source_shares[1] == pytest.approx(np.mean([label == 1 for label in labels]))
        batch = build_batches(small, data)[0]
        inside = [(label[:32, :27] == 1).sum() for label in batch.source_labels.numpy()]
        assert set(inside) <= {(label == 1).sum() for label in labels}
    assert found["keep_thin"][0] > found["nearest"][0]
    assert "(source): crack 100%" in found["keep_thin"][1] and "data.scale with larger edges" in found["keep_thin"][1]
    assert found["nearest"][1].endswith("data.label_scaling: keep_thin keeps more.")
    said = []
    prepare(settings(), domains, None, tmp_path, said.append)
    assert not any(line.startswith("Of the parts") for line in said), "at their own size all are left"


def test_margins_that_leave_nothing_of_the_target_are_refused_and_of_some_told(domains, tmp_path):
    with pytest.raises(SettingsError, match=r"ignore_margins \[90, 10, 0, 0\] leave nothing of 3 of 3 target photos"):
        prepare(settings("self_training.ignore_margins=[90, 10, 0, 0]"), domains, None, tmp_path, lambda _: None)
    target = tmp_path / "target"
    shutil.copytree(domains.target, target)
    [small, *_] = sorted(target.glob("ds0/img/*"))
    cv2.imwrite(str(small), cv2.imread(str(small))[:50])
    said, given = [], dataclasses.replace(domains, target=str(target))
    prepare(settings("self_training.ignore_margins=[30, 30, 0, 0]"), given, None, tmp_path, said.append)
    assert (
        sum(f"leave nothing of 1 of 3 target photos, such as ds0/{small.name} of 80×50 pixels" in one for one in said)
        == 1
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{1: 2}", "names '1', which is not trained: expected one of: __bg__, crack"),
        ("{crack: 0, __bg__: 0}", "above 0 for one class at least"),
        ("[1, 2, 3]", "one weight for each of __bg__, crack"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(domains, tmp_path, weights, message):
    with pytest.raises(SettingsError, match=message):
        prepare(settings(f"class_weights={weights}"), domains, None, tmp_path, lambda _: None)


def test_measuring_on_the_labelled_part_of_the_target_is_refused_before_anything_is_read(domains, tmp_path):
    same = dataclasses.replace(domains, labelled_target=domains.val)
    with pytest.raises(SettingsError, match="2 labelled target photos are validation photos too, such as ds0/"):
        prepare(settings(), same, None, tmp_path / "masks", lambda _: None)
    assert not (tmp_path / "masks").exists()
