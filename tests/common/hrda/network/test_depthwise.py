"""Our dilated depthwise convolution against torch's: values, gradients, types, and who gets which kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.hrda.network import depthwise
from common.hrda.network.depthwise import DilatedDepthwiseConv2d, PointwiseConv2d, dilated_depthwise


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=dtype)
    weight = torch.randn(shape[1], 1, 3, 3, generator=g, dtype=dtype)
    return x, weight, torch.randn(shape, generator=g, dtype=dtype)


def torchs(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    return F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=len(weight))


def with_gradients(convolve, x, weight, dilation, given):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = convolve(x, weight, dilation)
    return (y.detach(), *torch.autograd.grad(y, (x, weight), given))


@pytest.mark.parametrize("dilation", [1, 2, 6, 12, 18])
@pytest.mark.parametrize("size", [(7, 13), (16, 16), (20, 9), (1, 1)])
def test_values_and_gradients_are_those_of_torch(dilation: int, size: tuple[int, int]) -> None:
    x, weight, given = inputs((2, 5, *size))
    for ours, theirs in zip(
        with_gradients(dilated_depthwise, x, weight, dilation, given),
        with_gradients(torchs, x, weight, dilation, given),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_more_channels_than_fit_at_once_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "CHANNELS_AT_ONCE", 4)
    x, weight, given = inputs((3, 10, 8, 8))
    for ours, theirs in zip(
        with_gradients(dilated_depthwise, x, weight, 3, given),
        with_gradients(torchs, x, weight, 3, given),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_is_as_exact_as_torch_in_either_layout(layout: torch.memory_format) -> None:
    x, weight, given = inputs((2, 64, 16, 16))
    exact = with_gradients(torchs, x, weight, 6, given)
    x, given = (tensor.float().contiguous(memory_format=layout) for tensor in (x, given))
    for ours, theirs in zip(with_gradients(dilated_depthwise, x, weight.float(), 6, given), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


def test_bfloat16_maps_are_summed_in_float32() -> None:
    x, weight, given = inputs((2, 8, 16, 16), torch.float32)
    x, given, weight = x.bfloat16(), given.bfloat16(), weight.bfloat16().float()
    y, x_gradient, weight_gradient = with_gradients(dilated_depthwise, x, weight, 6, given)
    assert y.dtype == x_gradient.dtype == torch.bfloat16
    assert weight_gradient.dtype == torch.float32
    exact = with_gradients(torchs, x.float(), weight, 6, given.float())
    # One rounding at the end, not one a tap.
    torch.testing.assert_close(y, exact[0].bfloat16(), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(x_gradient, exact[1].bfloat16(), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(weight_gradient, exact[2], rtol=1e-5, atol=1e-4)


def test_only_training_takes_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(depthwise, "dilated_depthwise", lambda *args: calls.append(args) or dilated_depthwise(*args))
    conv = DilatedDepthwiseConv2d(4, 4, 3, padding=6, dilation=6, groups=4, bias=False)
    x = torch.randn(1, 4, 16, 16)
    trained = conv.train()(x)
    assert len(calls) == 1
    torch.testing.assert_close(conv.eval()(x), trained, rtol=0, atol=1e-6)
    # What is exported, rearranged or counted sees a convolution.
    assert conv.train().to("meta")(x.to("meta")).shape == trained.shape
    assert len(calls) == 1


def test_images_that_take_turns_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "VALUES_AT_ONCE", 2 * 4 * 20 * 20)
    x, weight, given = inputs((5, 4, 20, 20))
    for ours, theirs in zip(
        with_gradients(dilated_depthwise, x, weight, 12, given),
        with_gradients(torchs, x, weight, 12, given),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_matrix_product_is_the_1x1_convolution() -> None:
    x, _, _ = inputs((2, 6, 5, 7))
    conv = PointwiseConv2d(6, 3, 1).double()
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = conv.train()(x.contiguous(memory_format=layout))
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, conv.eval()(x), rtol=0, atol=1e-12)
