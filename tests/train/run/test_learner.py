"""An iteration of a run: precisions, parts of a batch, recomputation, compilation, and no waiting for a device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.data.datasets import Batch
from common.hrda import HRDASegmentor, SelfTraining, SelfTrainingSettings, SettingsError, build_segmentor
from common.hrda.training.self_training import StepDraws
from common.hrda.training.teacher import make_teacher
from train.run.device import autocast_of, compile_networks, computing_precision
from train.run.initial_weights import Start
from train.run.learner import Learner
from train.run.watch import FINITE
from train.settings.training import TrainSettings

CPU = torch.device("cpu")
SETTINGS = TrainSettings().with_overrides(
    [
        "iterations=10",
        "batch_size=4",
        "model.encoder=mit_b0",
        "model.crop_size=[64, 64]",
        "model.decoder_channels=8",
        "model.attention_channels=8",
        "model.dropout=0.0",
        "model.drop_path=0.0",
        "optimizer.warmup_iterations=0",
        "self_training.pseudo_label_threshold=0.5",
    ]
)


def learner(*overrides: str) -> Learner:
    data = SimpleNamespace(classes=["background", "crack"], source_shares=(0.9, 0.1))
    return Learner(SETTINGS.with_overrides(overrides), data, CPU, Start(), lambda text: None)


def batch(seed: int = 0, count: int = 4) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images, target = torch.randn(2, count, 3, 64, 64, generator=g)
    return Batch(images, (torch.rand(count, 64, 64, generator=g) < 0.3).long(), target, torch.ones(count, 64, 64))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def freeze_norms(model: nn.Module) -> None:
    """Batch norm that does not look at the batch: parts of it then give what the whole gives."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    results = []
    for accumulate in (1, 2, 4):
        one = learner(f"compute.accumulate={accumulate}")
        freeze_norms(one.student)
        freeze_norms(one.teacher)
        scalars = one.learn(batch(), 0)
        results.append((gradients(one.student), scalars))
    (whole, scalars), *others = results
    for parts, others_scalars in others:
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
        for name, value in scalars.items():
            torch.testing.assert_close(others_scalars[name], value, rtol=1e-5, atol=1e-6)


def test_a_part_that_is_left_over_counts_by_its_size() -> None:
    whole, parts = learner(), learner("compute.accumulate=2")
    for one in (whole, parts):
        freeze_norms(one.student)
        freeze_norms(one.teacher)
        one.learn(batch(count=3), 0)
    torch.testing.assert_close(gradients(parts.student), gradients(whole.student), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet_lite0"])
def test_recomputed_activations_give_the_same_gradients_and_statistics(encoder: str) -> None:
    own = (f"model.encoder={encoder}", "model.drop_path=0.5")
    kept, recomputed = (learner(*own, f"compute.activation_checkpointing={flag}") for flag in ("false", "true"))
    for one in (kept, recomputed):
        one.learn(batch(), 0)
    assert torch.equal(gradients(kept.student), gradients(recomputed.student))
    for first, second in ((kept.student, recomputed.student), (kept.teacher, recomputed.teacher)):
        for (name, value), other in zip(first.named_buffers(), second.buffers(), strict=True):
            assert torch.equal(value, other), name


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_reduced_precision_learns_nearly_the_same_with_float32_weights(precision: str) -> None:
    exact, reduced = learner(), learner(f"compute.precision={precision}")
    expected, scalars = exact.learn(batch(), 0), reduced.learn(batch(), 0)
    for name in ("loss/source", "loss/mixed"):
        assert scalars[name].dtype == torch.float32
        assert scalars[name].item() == pytest.approx(expected[name].item(), rel=2e-2)
        assert scalars[name] != expected[name]
    assert {p.dtype for p in reduced.student.parameters()} == {torch.float32}
    similarity = torch.cosine_similarity(gradients(exact.student), gradients(reduced.student), dim=0)
    assert similarity > 0.98


def test_a_batch_that_is_not_finite_leaves_weights_and_statistics() -> None:
    one = learner()
    assert one.learn(batch(), 0)[FINITE]
    # The teacher follows at the start of an iteration, so that it is compared after one that is clean.
    bad = batch(1)
    bad.source_images[0, 0, 0, 0] = float("nan")
    student = {name: value.clone() for name, value in one.student.state_dict().items()}
    statistics = [buffer.clone() for buffer in one.teacher.buffers()]
    assert not one.learn(bad, 1)[FINITE]
    for name, value in one.student.state_dict().items():
        assert torch.equal(value, student[name]), name
    assert all(torch.equal(a, b) for a, b in zip(one.teacher.buffers(), statistics, strict=True))
    assert all(p.isfinite().all() for p in one.teacher.parameters())


def test_auto_is_what_the_device_computes_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda")
    assert computing_precision("auto", CPU) == "float32"
    for has_bfloat16, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bfloat16, **options: has)
        assert computing_precision("auto", card) == expected
    with pytest.raises(SettingsError, match="float16 needs a GPU"):
        computing_precision("float16", CPU)
    with autocast_of("bfloat16", CPU)():
        assert torch.is_autocast_enabled("cpu")
    assert autocast_of("float32", card) is nullcontext


def small_networks() -> list[HRDASegmentor]:
    torch.manual_seed(0)
    student = build_segmentor(replace(SETTINGS.model, num_classes=2)).train()
    return [student, make_teacher(student)]


def test_without_a_compiler_the_run_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Cannot find a working\n compiler")

    monkeypatch.setattr(torch, "compile", fails)
    networks, said = small_networks(), []
    assert not compile_networks(networks, 2, nullcontext, said.append)
    assert said[-1] == (
        "torch.compile does not work here, so that the run goes on without it: Cannot find a working compiler"
    )
    networks[0].train_logits(
        batch().source_images,
        StepDraws.draw(batch().source_labels, SelfTrainingSettings(), torch.Generator()).source_box,
    )


def test_compiled_networks_are_called_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def pretends(function, *args: object, **kwargs: object):
        return lambda *given, **options: calls.append(1) or function(*given, **options)

    monkeypatch.setattr(torch, "compile", pretends)
    networks = small_networks()
    names = list(networks[0].state_dict())
    assert compile_networks(networks, 2, nullcontext, lambda text: None)
    calls.clear()
    networks[1].crop_logits(batch().target_images)
    # Encoder and decoder on both resolutions, and the attention.
    assert len(calls) == 5
    assert list(networks[0].state_dict()) == names


def test_an_iteration_reads_nothing_back_from_its_device() -> None:
    """On the meta device tensors have no content: whatever asks for some, which on a GPU would wait for it, fails."""
    meta = torch.device("meta")
    student, teacher = (network.to(meta) for network in small_networks())
    settings = SelfTrainingSettings(jitter_probability=1.0, blur_probability=1.0)
    training = SelfTraining(
        student,
        teacher,
        settings,
        generator=torch.Generator(),
        backward=lambda loss: None,
        source_shares=torch.tensor([0.9, 0.1], device=meta),
    )
    source, labels, target, valid = batch()[:4]
    draws = StepDraws.draw(labels, settings, torch.Generator().manual_seed(0))
    draws = replace(draws, mask=draws.mask.to(meta))
    result = training.step(
        source.to(meta), labels.to(meta), target.to(meta), iteration=3, target_valid=valid.to(meta), draws=draws
    )
    assert {value.device.type for value in result.scalars.values()} == {"meta"}


def test_settings_of_the_computation_are_checked() -> None:
    for override, words in (
        ("compute.precision=bf16", "Unknown precision 'bf16'"),
        ("compute.accumulate=3", "divides batch_size"),
        ("compute.clip_norm=0", "clip_norm must be"),
        ("compute.tf32=1", "tf32 must be true or false"),
    ):
        with pytest.raises(SettingsError, match=words):
            SETTINGS.with_overrides([override])
