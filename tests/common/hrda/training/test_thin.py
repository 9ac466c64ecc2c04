"""Losses for what is a few pixels wide: formulas written out, and what passes ask of them."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from skimage.morphology import dilation, skeletonize
from torch import Tensor

from common.data.batches import Batch
from common.data.labels import skeleton_tubes
from common.hrda import ModelSettings, SelfTraining, SelfTrainingSettings, build_segmentor
from common.hrda.settings import ThinSettings
from common.hrda.training.teacher import freeze_stochastic_layers, make_teacher
from common.hrda.training.thin import (
    Answer,
    border_weights,
    skeleton_loss,
    skeleton_recall_loss,
    soft_cldice_loss,
    soft_skeleton,
    soft_tubes,
)
from train.run.initial_weights import Start
from train.run.learner import Learner
from train.settings.training import TrainSettings

RECALL = ThinSettings(skeleton_weight=1.0)


def lines(seed: int = 0, width: int = 3, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """H×W uint8: a crooked line of class 1 and a straight one of class 2."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    points = np.stack([np.linspace(2, size[1] - 3, 6), rng.integers(8, size[0] // 2, 6)], axis=1)
    cv2.polylines(labels, [points.astype(np.int32)], False, 1, width)
    cv2.line(labels, (4, size[0] - 12), (size[1] - 6, size[0] - 6), 2, width)
    return labels


def published_tubes(labels: np.ndarray, index: int) -> np.ndarray:
    """The transform of the paper's code, for one class."""
    line = skeletonize(labels == index).astype(np.int16)
    return dilation(dilation(line)) * (labels == index)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_loaders_tubes_are_the_published_ones(width: int) -> None:
    labels = lines(width, width, (96, 128))
    labels[:4] = 255
    expected = published_tubes(labels, 1) | published_tubes(labels, 2)
    assert expected.sum() > 100
    assert np.array_equal(skeleton_tubes(labels), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_tubes_of_pseudo_labels_are_nearly_those_of_the_loader(width: int) -> None:
    labels = lines(width, width, (96, 128))
    found = soft_tubes(torch.from_numpy(labels).long()[None], 3)[0].numpy()
    expected = skeleton_tubes(labels) > 0
    assert (found & expected).sum() / expected.sum() > 0.94
    assert not (found & (labels == 0)).any()


def test_recall_is_the_published_formula() -> None:
    """SoftSkeletonRecallLoss of the paper's code with batch_dice off, plus 1: −(Σ p·t + 1) / (Σ t + 1), mean."""
    tubes = torch.from_numpy(np.stack([[skeleton_tubes(lines(s)) * (lines(s) == c) for c in (1, 2)] for s in (0, 1)]))
    probabilities = torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    found, there = (probabilities * tubes).sum((2, 3)), tubes.sum((2, 3))
    loss = skeleton_recall_loss(probabilities, tubes, torch.ones(2, 1, 64, 64))
    torch.testing.assert_close(loss, 1 - ((found + 1) / (there + 1)).mean())
    assert skeleton_recall_loss(tubes.float(), tubes, torch.ones(2, 1, 64, 64)) == 0
    assert skeleton_recall_loss(torch.zeros(2, 2, 64, 64), tubes, torch.zeros(2, 1, 64, 64)) == 0


def test_soft_skeleton_of_a_line_is_one_pixel_wide_and_whole() -> None:
    line = torch.zeros(1, 1, 40, 60)
    line[..., 18:23, 5:55] = 1
    skeleton = soft_skeleton(line)[0, 0]
    assert set(skeleton.unique().tolist()) == {0, 1}
    assert skeleton[20, 8:52].min() == 1
    assert skeleton[:, 10:50].sum(0).max() == 1


def test_cldice_asks_for_whole_lines_and_not_for_their_width() -> None:
    true = torch.zeros(1, 1, 40, 60)
    true[..., 18:23, 5:55] = 1
    thin, broken, doubled = torch.zeros_like(true), true.clone(), true.clone()
    thin[..., 20, 6:54] = 1
    broken[..., 20:30] = broken[..., 40:45] = 0
    doubled[..., 30:33, 5:55] = 1
    trust = torch.ones(1, 1, 40, 60)
    maps = {"true": true, "thin": thin, "broken": broken, "doubled": doubled}
    loss = {name: float(soft_cldice_loss(found, true, trust)) for name, found in maps.items()}
    assert loss["true"] < loss["thin"] + 1e-6 < 0.05
    # The same line with a fifth of its pixels left, against one with 70% of them.
    assert loss["broken"] > loss["thin"] + 0.1
    assert loss["doubled"] > loss["true"] + 0.1
    assert float(soft_cldice_loss(true, true, torch.zeros_like(trust))) == 0


def test_border_pixels_count_less_on_both_sides_and_ignored_ones_make_no_border() -> None:
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[0, 4:8] = 1
    labels[0, :, 10:] = 255
    weights = border_weights(labels, 1, 0.25)
    assert weights[0, :, 0].tolist() == [1, 1, 1, 0.25, 0.25, 1, 1, 0.25, 0.25, 1, 1, 1]
    assert torch.equal(weights[0, :, :9], weights[0, :, :1].expand(12, 9))
    assert border_weights(labels, 2, 0.25)[0, :, 0].tolist() == [1, 1, *[0.25] * 8, 1, 1]


@pytest.mark.parametrize("kind", ["recall", "cldice"])
def test_parts_of_a_batch_add_up_to_the_whole(kind: str) -> None:
    """So that accumulated parts and several processes learn what one would with all of it."""
    settings = ThinSettings(skeleton_weight=1.0, skeleton_loss=kind)
    labels = torch.from_numpy(np.stack([lines(0), lines(1), np.zeros((64, 64), np.uint8), lines(2)])).long()
    answer = Answer(labels, None, torch.rand(4, 64, 64), soft_tubes(labels, 3))
    logits = torch.randn(4, 3, 16, 16, requires_grad=True)
    whole = skeleton_loss(logits, answer, settings)
    [expected] = torch.autograd.grad(whole, logits)
    parts = 0
    for part in (slice(0, 2), slice(2, 4)):
        own = Answer(*(None if tensor is None else tensor[part] for tensor in answer))
        parts = parts + skeleton_loss(logits[part], own, settings) / 2
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, logits)[0], expected)
    assert expected.isfinite().all() and expected.abs().max() > 0


def run_of(thin: ThinSettings, mode: str = "uda", **settings: object) -> SelfTraining:
    torch.manual_seed(0)
    small = ModelSettings(encoder="mit_b0", crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    student = build_segmentor(small).train()
    freeze_stochastic_layers(student)
    return SelfTraining(
        student,
        make_teacher(student),
        SelfTrainingSettings(**{"jitter_probability": 0.0, "blur_probability": 0.0} | settings),
        mode=mode,
        thin=thin,
        generator=torch.Generator().manual_seed(0),
        source_shares=torch.tensor([0.9, 0.1]),
    )


def step_of(thin: ThinSettings, mode: str = "uda", tubes: bool = True, **settings: object) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    images, target = torch.randn(2, 2, 3, 64, 64, generator=g)
    labels = np.stack([lines(0) == 1, lines(1) == 1]).astype(np.uint8)
    made = torch.from_numpy(np.stack([skeleton_tubes(one) for one in labels])).bool()
    run = run_of(thin, mode, **settings)
    return run.step(
        images, torch.from_numpy(labels).long(), target, iteration=0, source_tubes=made if tubes else None
    ).scalars


@pytest.mark.parametrize("kind", ["recall", "cldice"])
def test_every_pass_asks_for_middle_lines_by_their_weight(kind: str) -> None:
    """Of source, of pseudo-labels pasted over, and of pseudo-labels that masks hide."""
    rule = {"pseudo_label_rule": "per_class", "masked_weight": 1.0}
    off, one, three = (
        step_of(ThinSettings(skeleton_weight=weight, skeleton_loss=kind), **rule) for weight in (0.0, 1.0, 3.0)
    )
    assert "loss/source_skeleton" not in off
    assert one["loss/source"] - off["loss/source"] == pytest.approx(float(one["loss/source_skeleton"]), rel=1e-4)
    for name in ("loss/source", "loss/mixed", "loss/masked"):
        assert one[name] > off[name]
        assert three[name] - off[name] == pytest.approx(3 * float(one[name] - off[name]), rel=1e-3)


def test_pseudo_labels_that_are_not_trusted_have_no_middle_lines() -> None:
    """With the published rule and nothing confident, all of them weigh 0."""
    rule = {"pseudo_label_rule": "published", "pseudo_label_threshold": 1.0, "mixing": "none"}
    assert step_of(RECALL, **rule)["loss/mixed"] == 0


def test_borders_count_less_wherever_source_labels_teach() -> None:
    plain, tolerant = ThinSettings(), ThinSettings(border_px=1, border_weight=0.0)
    for mode, second in (("control", "loss/augmented"), ("uda", "loss/mixed")):
        before, after = step_of(plain, mode), step_of(tolerant, mode)
        assert after["loss/source"] < before["loss/source"]
        assert after[second] < before[second]
    alone = {"pseudo_label_rule": "per_class", "mixing": "none"}
    assert step_of(tolerant, **alone)["loss/mixed"] == step_of(plain, **alone)["loss/mixed"]


def test_recall_without_the_loaders_tubes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the tubes of the source labels"):
        step_of(RECALL, tubes=False)


def test_learner_hands_the_loaders_tubes_on() -> None:
    overrides = ["batch_size=2", "model.encoder=mit_b0", "model.crop_size=[64, 64]", "thin.skeleton_weight=1"]
    overrides += ["model.decoder_channels=8", "model.attention_channels=8", "mode=source-only"]
    settings = TrainSettings().with_overrides(overrides)
    data = SimpleNamespace(classes=["background", "crack"], source_shares=(0.9, 0.1))
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(2, 64, 64, generator=g) < 0.3).long()
    batch = Batch(torch.randn(2, 3, 64, 64, generator=g), labels, None, None)
    found = {}
    for name, tubes in (("none", torch.zeros(2, 64, 64)), ("all", batch.source_labels)):
        learner = Learner(settings, data, torch.device("cpu"), Start(), lambda text: None)
        found[name] = float(learner.learn(batch._replace(source_tubes=tubes.bool()), 0)["loss/source_skeleton"])
    assert found["none"] == 0 < found["all"]
