"""The guarded optimiser: what is not finite leaves no trace, what is finite steps as AdamW does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from common.hrda import HRDASegmentor, ModelSettings, SettingsError, build_segmentor
from common.hrda.training.optimisation import GuardedOptimizer, optimizer_groups, require_layers


def network() -> nn.Module:
    torch.manual_seed(0)
    # Without a bias before the batch norm: its gradient is rounding, of which Adam makes whole steps.
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 1))


def guarded(model: nn.Module, **options) -> GuardedOptimizer:
    optimizer = AdamW(model.parameters(), lr=1e-2, fused=True)
    return GuardedOptimizer(optimizer, (model,), torch.amp.GradScaler("cpu", enabled=False), **options)


def learn(optimizer: GuardedOptimizer, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    optimizer.begin()
    loss = model(x).square().mean()
    optimizer.backward(loss)
    return optimizer.step([loss.detach()])


def everything(optimizer: GuardedOptimizer, model: nn.Module) -> list[torch.Tensor]:
    averages = [v for state in optimizer.optimizer.state_dict()["state"].values() for v in state.values()]
    return [tensor.clone() for tensor in (*model.state_dict().values(), *averages)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_iteration_that_is_not_finite_leaves_every_bit_as_it_was(bad: float) -> None:
    model = network()
    optimizer = guarded(model, clip_norm=1.0)
    x = torch.randn(16, 4)
    assert learn(optimizer, model, x)
    before = everything(optimizer, model)
    assert not learn(optimizer, model, torch.where(torch.arange(16)[:, None] == 3, bad, x))
    for ours, theirs in zip(everything(optimizer, model), before, strict=True):
        assert torch.equal(ours, theirs)
    assert learn(optimizer, model, x)
    assert not torch.equal(everything(optimizer, model)[0], before[0])


@pytest.mark.parametrize("scaled", [False, True])
def test_a_loss_that_is_not_finite_is_enough(scaled: bool) -> None:
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
    optimizer = GuardedOptimizer(AdamW(model.parameters(), lr=1e-2, fused=True), (model,), scaler)
    optimizer.begin()
    optimizer.backward(model(torch.randn(8, 4)).mean())
    before = copy.deepcopy(model.state_dict())
    assert not optimizer.step([torch.tensor(float("nan"))])
    assert torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    # The statistics are those of before the iteration.
    assert model.state_dict()["1.num_batches_tracked"] == 0


def test_finite_iterations_are_adamw() -> None:
    ours, theirs = network(), network()
    optimizer, plain = guarded(ours), AdamW(theirs.parameters(), lr=1e-2)
    for seed in range(5):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        learn(optimizer, ours, x)
        plain.zero_grad()
        theirs(x).square().mean().backward()
        plain.step()
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_together() -> None:
    model = network()
    optimizer = guarded(model, clip_norm=1e-3)
    learn(optimizer, model, 100 * torch.randn(16, 4))
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_scaled_gradients_are_what_unscaled_ones_are() -> None:
    plain, scaled = network(), network()
    x = torch.randn(16, 4)
    learn(guarded(plain, clip_norm=0.1), plain, x)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = GuardedOptimizer(AdamW(scaled.parameters(), lr=1e-2, fused=True), (scaled,), scaler, 0.1)
    assert learn(optimizer, scaled, x)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before = everything(optimizer, scaled)
    assert not learn(optimizer, scaled, x * float("inf"))
    for ours, theirs in zip(everything(optimizer, scaled), before, strict=True):
        assert torch.equal(ours, theirs)
    assert scaler.get_scale() < 1024


def tiny(encoder: str) -> HRDASegmentor:
    with torch.device("meta"):
        return build_segmentor(ModelSettings(encoder=encoder, decoder_channels=8, attention_channels=8))


@pytest.mark.parametrize("encoder", ["dinov2_small", "sam2_hiera_tiny"])
def test_each_layer_of_a_transformer_learns_at_a_share_of_the_rate_behind_it(encoder: str) -> None:
    model = tiny(encoder)
    groups = optimizer_groups(model, 1e-3, 0.01, head_lr_factor=10, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    blocks = model.backbone.network.model.blocks
    patches = model.backbone.network.model.patch_embed
    for place, layer in enumerate([patches, *blocks]):
        assert {rates[id(p)] for p in layer.parameters()} == {1e-3 * 0.5 ** (len(blocks) - place)}
    assert {rates[id(p)] for p in model.decode_head.parameters()} == {1e-2}
    if model.backbone.pyramid is not None:
        assert {rates[id(p)] for p in model.backbone.pyramid.parameters()} == {1e-3}


def test_layer_decay_changes_rates_and_neither_decay_nor_order() -> None:
    """A state of the optimiser, which has its averages in order, is that of the same parameters."""
    model = tiny("dinov2_small")
    plain, decayed = (optimizer_groups(model, 1e-3, 0.01, layer_decay=decay) for decay in (None, 0.5))
    assert [group["name"] for group in plain] == ["head", "encoder", "encoder_norm"]
    order, same = ([(id(p), g["weight_decay"]) for g in groups for p in g["params"]] for groups in (plain, decayed))
    assert order == same
    assert len(order) == len(list(model.parameters()))


@pytest.mark.parametrize("encoder", ["mit_b0", "convnext_tiny"])
def test_encoders_whose_layers_have_no_order_are_refused(encoder: str) -> None:
    with pytest.raises(SettingsError, match=f"layer_decay is for vision transformers.* {encoder} .* set it to null"):
        require_layers(encoder)
    require_layers("dinov2_small")
