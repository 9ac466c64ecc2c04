"""The method's parts without the reference's fixtures: formulas written out, and what each mode does."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from common.hrda import HRDASegmentor, ModelSettings, SelfTraining, SelfTrainingSettings, SettingsError, build_segmentor
from common.hrda.training.feature_distance import downscale_labels, feature_distance, masked_feature_distance
from common.hrda.training.mixing import (
    ColorJitter,
    blur,
    blur_kernel_size,
    class_masks,
    draw_classes,
    paste,
    present_classes,
)
from common.hrda.training.pseudo_labels import pseudo_labels
from common.hrda.training.self_training import StepDraws
from common.hrda.training.teacher import (
    averaging_factor,
    freeze_stochastic_layers,
    make_teacher,
    ramped_alpha,
    update_teacher,
)


def small_student(seed: int = 0) -> HRDASegmentor:
    torch.manual_seed(seed)
    settings = ModelSettings(
        encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=8, attention_channels=8
    )
    return build_segmentor(settings).train()


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(2, 64, 64, generator=g) < 0.1).long()
    return torch.randn(2, 3, 64, 64, generator=g), labels, torch.randn(2, 3, 64, 64, generator=g)


def training(
    mode: str, student: HRDASegmentor | None = None, imagenet_encoder: nn.Module | None = None, **settings
) -> SelfTraining:
    student = student or small_student()
    return SelfTraining(
        student,
        make_teacher(student),
        SelfTrainingSettings(**settings),
        mode=mode,
        generator=torch.Generator().manual_seed(0),
        class_names=("__bg__", "crack"),
        source_shares=torch.tensor([0.9, 0.1]),
        imagenet_encoder=imagenet_encoder,
    )


class Passes:
    """Notes what goes through a student, and the losses that are asked for."""

    def __init__(self, run: SelfTraining) -> None:
        self.images: list[Tensor] = []
        self.targets: list[tuple] = []
        student = run.student
        train_logits, losses = student.train_logits, student.losses
        student.train_logits = lambda images, box: [self.images.append(images), train_logits(images, box)][1]
        student.losses = lambda logits, *given, **more: [self.targets.append(given), losses(logits, *given, **more)][1]


def test_teacher_starts_as_a_copy_and_then_averages_parameters_only() -> None:
    student = small_student(1)
    teacher = make_teacher(small_student(2))
    buffers = copy.deepcopy(dict(teacher.named_buffers()))
    update_teacher(teacher, student, iteration=0, alpha=0.99)
    for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    update_teacher(teacher, student, iteration=3, alpha=0.99)
    for old, new in zip(before, teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    for name, value in teacher.named_buffers():
        torch.testing.assert_close(value, buffers[name])


def test_averaging_factor_is_capped() -> None:
    assert [averaging_factor(t, 0.9) for t in (0, 1, 3, 99)] == [0, 0.5, 0.75, 0.9]


def test_teacher_is_not_disturbed_by_dropout() -> None:
    teacher = make_teacher(small_student())
    x = torch.randn(2, 3, 64, 64)
    assert teacher.training
    torch.testing.assert_close(teacher.crop_logits(x), teacher.crop_logits(x))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_published_rule_weighs_all_pixels_by_the_confident_share() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = 10
    pseudo = pseudo_labels(logits, SelfTrainingSettings(pseudo_label_rule="published"))
    assert pseudo.labels.tolist() == [[[1, 0], [0, 0]]]
    assert pseudo.weights.unique().tolist() == [0.25]


def test_per_class_rule_keeps_a_thin_class_that_the_published_rule_starves() -> None:
    probability = torch.tensor([0.7, 0.55, 0.2, 0.01])
    logits = torch.stack([(1 - probability).log(), probability.log()])[None, :, None]
    pseudo = pseudo_labels(logits, SelfTrainingSettings(pseudo_label_rule="per_class", class_threshold=0.6))
    assert pseudo.labels.flatten().tolist() == [1, 0, 0, 0]
    assert pseudo.weights.unique().tolist() == [1.0]
    torch.testing.assert_close(pseudo.confidence.flatten(), torch.tensor([0.7, 0.45, 0.8, 0.99]))


def test_classmix_draws_half_of_the_batchs_classes_rounded_up() -> None:
    labels = torch.tensor([[[0, 1], [2, 255]], [[0, 0], [4, 4]]])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        for drawn in draw_classes(present_classes(labels), generator):
            assert len(drawn) == len(set(drawn.tolist())) == 3
            seen |= set(drawn.tolist())
    assert seen == {0, 1, 2, 4, 255}
    mask = class_masks(labels, [torch.tensor([1, 255]), torch.tensor([4])])
    assert mask.tolist() == [[[False, True], [False, True]], [[False, False], [True, True]]]
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 2, 2)
    mixed = paste(mask, images + 10, images)
    assert mixed[0, 0].tolist() == [[0, 10], [0, 10]]


def test_without_mixing_the_second_pass_sees_the_target_alone() -> None:
    settings = {"pseudo_label_rule": "per_class", "jitter_probability": 0.0, "blur_probability": 0.0}
    run = training("uda", mixing="none", **settings)
    source, labels, target = batch()
    mixed = StepDraws.draw(labels, SelfTrainingSettings(**settings), torch.Generator().manual_seed(1))
    draws = StepDraws.draw(labels, run.settings, torch.Generator().manual_seed(1))
    assert mixed.mask.any()
    assert draws.second_box == mixed.second_box
    result = run.step(source, labels, target, iteration=0, draws=draws)
    assert torch.equal(result.second_images, target)
    assert torch.equal(result.second_labels, result.pseudo.labels)


def test_jitter_without_change_is_the_identity_and_stays_in_range() -> None:
    images = torch.rand(2, 3, 8, 8)
    ones, zeros = torch.ones(2), torch.zeros(2)
    torch.testing.assert_close(ColorJitter(ones, ones, ones, zeros, (3, 1, 0, 2))(images), images, atol=1e-5, rtol=0)
    drawn = ColorJitter.draw(2, 0.5, torch.Generator().manual_seed(0))(images)
    assert not torch.allclose(drawn, images, atol=1e-2)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@pytest.mark.parametrize("sigma", [0.15, 0.6, 1.15])
def test_short_blur_kernel_equals_the_published_long_one(sigma: float) -> None:
    images = torch.randn(1, 3, 256, 320)
    full = gaussian_blur2d(images, blur_kernel_size((256, 320)), (sigma, sigma), border_type="reflect")
    torch.testing.assert_close(blur(images, sigma), full, atol=3e-6, rtol=0)


def test_label_downscaling_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 1], [255, 255, 2, 1], [255, 1, 0, 255]]])
    assert downscale_labels(labels, 2, 0.75, 3).tolist() == [[[0, 1], [255, 255]]]


def test_feature_distance_of_an_empty_mask_is_zero_with_finite_gradients() -> None:
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    distance = feature_distance(features, features.detach(), torch.zeros(1, 64, 64).long(), (1,), 0.75, 2)
    distance.backward()
    assert distance.item() == 0
    assert features.grad.abs().max() == 0


def test_feature_distance_by_hand() -> None:
    a, b = torch.zeros(1, 2, 1, 2), torch.tensor([3.0, 4.0])[None, :, None, None].expand(1, 2, 1, 2)
    assert masked_feature_distance(a, b, torch.tensor([[[True, False]]])).item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("mode", "adapt", "second"),
    [
        ("source-only", True, None),
        ("supervised", True, None),
        ("control", True, "loss/augmented"),
        ("uda", False, "loss/augmented"),
        ("uda", True, "loss/mixed"),
    ],
)
def test_modes_make_the_passes_they_promise(mode: str, adapt: bool, second: str | None) -> None:
    run = training(mode)
    source, labels, target = batch()
    result = run.step(source, labels, target, iteration=0, adapt=adapt)
    assert {k for k in result.scalars if k in ("loss/augmented", "loss/mixed")} == ({second} if second else set())
    assert (result.pseudo is not None) == (second == "loss/mixed")
    assert all(not value.requires_grad for value in result.scalars.values())
    if second == "loss/augmented":
        assert torch.equal(result.second_labels, labels)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.student.parameters())
    assert all(p.grad is None for p in run.teacher.parameters())


def test_control_and_adaptation_see_the_same_draws() -> None:
    """What the target brings is the only difference between the two arms."""
    source, labels, target = batch()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, second = (StepDraws.draw(labels, SelfTrainingSettings(), g) for g in generators)
    assert first.source_box == second.source_box
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    mostly_background = StepDraws.draw(
        torch.zeros_like(labels), SelfTrainingSettings(), torch.Generator().manual_seed(3)
    )
    assert mostly_background.second_box == first.second_box


def test_pixels_that_are_not_valid_do_not_count() -> None:
    run = training("uda", pseudo_label_rule="per_class")
    source, labels, target = batch()
    valid = torch.ones(2, 64, 64)
    valid[:, :8] = 0
    result = run.step(source, labels, target, iteration=0, target_valid=valid)
    assert result.pseudo.weights[:, :8].max() == 0
    assert result.pseudo.weights[:, 8:].min() == 1


def test_teacher_answers_as_many_views_as_are_wanted() -> None:
    run = training("uda", pseudo_label_views=4)
    source, labels, target = batch()
    asked = []
    answer = run.teacher.crop_logits
    run.teacher.crop_logits = lambda images: [asked.append(images), answer(images)][1]
    run.step(source, labels, target, iteration=0)
    expected = [target, target.flip(3), target.flip(2), target.flip(2, 3)]
    assert all(torch.equal(one, other) for one, other in zip(asked, expected, strict=True))


def test_teacher_has_the_students_statistics_until_it_sees_images() -> None:
    run = training("control")
    source, labels, _ = batch()
    run.step(source, labels, iteration=0)
    run.step(source, labels, iteration=1)
    name = "decode_head.head.fuse_layer.bottleneck.bn.num_batches_tracked"
    assert run.teacher.state_dict()[name] == 4


def test_feature_distance_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="feature_distance_weight is above 0"):
        training("uda", feature_distance_weight=0.005, feature_distance_classes=("crack",))


def test_feature_distance_finds_its_classes_by_name() -> None:
    """Indices meant other classes in every project."""
    encoder = copy.deepcopy(small_student(5).backbone).eval()
    source, labels, target = batch()
    # One image a class: these crops are one cell of the encoder's last stage.
    labels[0], labels[1] = 0, 1
    losses = {}
    for names in (("crack",), ("__bg__",), ("__bg__", "crack")):
        run = training("uda", None, encoder, feature_distance_weight=0.005, feature_distance_classes=names)
        freeze_stochastic_layers(run.student)
        losses[names] = run.step(source, labels, target, iteration=0).scalars["loss/feature_distance"].item()
    first, second, both = losses.values()
    assert first != pytest.approx(second, rel=1e-3)
    assert both == pytest.approx((first + second) / 2, rel=1e-4)
    with pytest.raises(SettingsError, match="names 'crak', which is not trained: did you mean 'crack'"):
        training("uda", None, encoder, feature_distance_weight=0.005, feature_distance_classes=("crak",))


def test_masked_pass_hides_augmented_target_and_learns_the_same_pseudo_labels() -> None:
    plain = {"jitter_probability": 0.0, "blur_probability": 0.0}
    run = training("uda", masked_weight=0.5, mask_block_size=8, **plain)
    passes = Passes(run)
    source, labels, target = batch()
    valid = torch.ones(2, 64, 64)
    valid[:, :8] = 0
    result = run.step(source, labels, target, iteration=0, target_valid=valid)
    masked = passes.images[2]
    visible = (masked != 0).all(dim=1)
    assert torch.equal(masked, torch.where(visible[:, None], target, 0.0))
    assert 0.5 < 1 - visible.float().mean() < 0.9
    assert torch.equal(visible[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2), visible)
    asked_labels, asked_weights, _ = passes.targets[2]
    assert torch.equal(asked_labels, result.pseudo.labels)
    assert torch.equal(asked_weights, result.pseudo.weights)
    assert asked_weights[:, :8].max() == 0


def test_masked_pass_counts_by_its_weight() -> None:
    source, labels, target = batch()
    losses, gradients, others = {}, {}, []
    for weight in (0.0, 1.0, 3.0):
        run = training("uda", masked_weight=weight, pseudo_label_rule="per_class")
        freeze_stochastic_layers(run.student)
        scalars = run.step(source, labels, target, iteration=0).scalars
        losses[weight] = scalars.get("loss/masked", torch.tensor(0.0)).item()
        gradients[weight] = run.student.decode_head.head.conv_seg.weight.grad
        others.append({name: value.item() for name, value in scalars.items() if name != "loss/masked"})
    assert losses[3.0] == pytest.approx(3 * losses[1.0], rel=1e-4)
    assert losses[1.0] > 0
    assert others[1] == pytest.approx(others[0])
    assert others[2] == pytest.approx(others[0])
    torch.testing.assert_close(
        gradients[3.0] - gradients[0.0], 3 * (gradients[1.0] - gradients[0.0]), rtol=1e-3, atol=1e-6
    )


def test_masked_target_is_colour_augmented_by_draws_of_its_own() -> None:
    run = training("uda", masked_weight=1.0, jitter_probability=1.0, blur_probability=0.0, mask_ratio=0.0)
    passes = Passes(run)
    source, labels, target = batch()
    run.step(source, labels, target, iteration=0)
    _, mixed, masked = passes.images
    assert not torch.allclose(masked, target, atol=0.05)
    # Where nothing is pasted, the mixed images are the target under another jitter.
    assert not torch.allclose(masked, mixed, atol=1e-3)
    assert (masked - target).abs().mean() < 1


def test_control_makes_the_masked_pass_on_the_source_towards_its_labels() -> None:
    run = training("control", masked_weight=1.0, blur_probability=0.0, jitter_probability=0.0)
    passes = Passes(run)
    source, labels, _ = batch()
    result = run.step(source, labels, iteration=0)
    masked = passes.images[2]
    assert torch.equal(masked, torch.where((masked != 0).all(dim=1, keepdim=True), source, 0.0))
    assert torch.equal(passes.targets[2][0], labels)
    assert passes.targets[2][1] is None
    assert "loss/masked" in result.scalars


def test_masking_changes_no_other_draw() -> None:
    """A run with masking must be comparable with the same run without."""
    _, labels, _ = batch()
    with_masks, without = (
        StepDraws.draw(labels, SelfTrainingSettings(masked_weight=weight), torch.Generator().manual_seed(3))
        for weight in (1.0, 0.0)
    )
    assert (with_masks.source_box, with_masks.second_box) == (without.source_box, without.second_box)
    assert torch.equal(with_masks.mask, without.mask)
    assert with_masks.sigma == without.sigma
    assert without.masked is None
    assert with_masks.masked.kept.shape == (2, 16, 16)


def test_class_balanced_rule_learns_its_cuts_from_the_target_and_goes_on_after_a_resume() -> None:
    source, labels, target = batch()
    settings = {"pseudo_label_rule": "class_balanced", "balance_source": 1.0, "balance_keep": 1.0}
    run = training("uda", **settings)
    result = run.step(source, labels, target, iteration=0)
    shares = [result.scalars[f"pseudo_label/share/{index}"].item() for index in (0, 1)]
    assert shares == pytest.approx([0.9, 0.1], abs=0.03)
    assert result.scalars["pseudo_label/foreground_share"].item() == pytest.approx(shares[1])
    state = copy.deepcopy(run.state_dict())
    other = training("uda", **settings)
    other.load_state_dict(state)
    assert torch.equal(other.cuts(), run.cuts())
    assert training("uda", pseudo_label_rule="published").state_dict() == {}
    training("uda", pseudo_label_rule="published").load_state_dict(state)


def test_class_balanced_rule_without_the_sources_shares_is_refused() -> None:
    student = small_student()
    settings = SelfTrainingSettings(pseudo_label_rule="class_balanced")
    with pytest.raises(ValueError, match="source_shares"):
        SelfTraining(student, make_teacher(student), settings, generator=torch.Generator())


def test_shares_of_the_classes_are_told_for_every_rule() -> None:
    source, labels, target = batch()
    for rule in ("published", "per_class"):
        scalars = (
            training("uda", pseudo_label_rule=rule, pseudo_label_threshold=0.5)
            .step(source, labels, target, iteration=0)
            .scalars
        )
        assert sum(scalars[f"pseudo_label/share/{index}"] for index in (0, 1)).item() == pytest.approx(1)


def test_losses_are_computed_and_gradients_added_by_what_the_caller_gives() -> None:
    entered, added = [], []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append(True)
        yield

    student = small_student()
    run = SelfTraining(
        student,
        make_teacher(student),
        SelfTrainingSettings(pseudo_label_rule="published", masked_weight=1.0),
        generator=torch.Generator().manual_seed(0),
        autocast=autocast,
        backward=added.append,
    )
    result = run.step(*batch(), iteration=0)
    assert len(entered) == 4
    assert [loss.item() for loss in added] == pytest.approx(
        [result.scalars[f"loss/{name}"].item() for name in ("source", "mixed", "masked")]
    )
    assert all(p.grad is None for p in student.parameters())


def test_teachers_factor_grows_from_its_start_by_the_same_ratio() -> None:
    settings = SelfTrainingSettings(alpha_start=0.9, alpha=0.999, alpha_ramp_iterations=100)
    factors = [ramped_alpha(t, settings) for t in (0, 50, 100, 1000)]
    assert factors == pytest.approx([0.9, 0.99, 0.999, 0.999])
    assert [ramped_alpha(t, SelfTrainingSettings()) for t in (0, 50)] == [0.99, 0.99]


def test_teacher_follows_by_the_ramped_factor() -> None:
    run = training("control", alpha=0.99, alpha_start=0.5, alpha_ramp_iterations=1000)
    source, labels, _ = batch()
    with torch.no_grad():
        for p in run.teacher.parameters():
            p.zero_()
    parameter = run.student.decode_head.head.conv_seg.weight
    before = parameter.detach().clone()
    run.step(source, labels, iteration=2)
    factor = ramped_alpha(2, run.settings)
    assert 0.5 < factor < 0.52
    torch.testing.assert_close(run.teacher.decode_head.head.conv_seg.weight, (1 - factor) * before)


def test_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'control'"):
        training("contrl")


def test_augmentation_coins_follow_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    _, labels, _ = batch()
    draws = [StepDraws.draw(labels, SelfTrainingSettings(), generator) for _ in range(400)]
    assert math.isclose(sum(d.jitter is not None for d in draws) / 400, 0.8, abs_tol=0.06)
    assert math.isclose(sum(d.sigma is not None for d in draws) / 400, 0.5, abs_tol=0.08)
    assert all(0.15 <= d.sigma <= 1.15 for d in draws if d.sigma is not None)
