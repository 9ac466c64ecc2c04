"""Depthwise and pointwise convolutions on the CPU, for training.

The decoder's dilated depthwise convolutions (6, 12 and 18 on 1024 channels) are a thousandth of its multiplications and
take a third of its time in the CPU's own kernels. The fast one of these wants channels side by side in memory, gives
up on borders wider than some to the left and right, and knows no gradients. So a map brings such a border with it; the
gradient of the map, a convolution too, takes the same way; and the gradient of the kernel is nine products of shifted
maps. All are torch's sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDEST_BORDER = 6
# Bordered maps up to so many values are made in memory that is used again: fresh memory takes as long as the sums.
VALUES_AT_ONCE = 2**21
# Two maps of 32×32 pixels and their product stay in the cache of a core.
CHANNELS_AT_ONCE = 256


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3×3 convolution whose border is as wide as its dilation; on the CPU it trains by `dilated_depthwise`.

    In eval mode it is torch's convolution, so that exports and the rearranged network see what they expect.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B×C×H×W."""
        is_plain = self.bias is None and self.padding == self.dilation
        if self.training and is_plain and x.device.type == "cpu" and not torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                x = x.to(torch.get_autocast_dtype("cpu"))
            return dilated_depthwise(x, self.weight, self.dilation[0])
        return super().forward(x)


def dilated_depthwise(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """`F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=C)`, channels-last.

    Args:
        x: B×C×H×W of any floating type.
        weight: C×1×3×3, rounded to the type of `x`; its gradient is summed in float32 at least.
        dilation: at least 1.

    Returns:
        B×C×H×W in the type of `x`.
    """
    return _DilatedDepthwise.apply(x.contiguous(memory_format=torch.channels_last), weight, dilation)


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution; on the CPU it trains as the matrix product that it is, channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B×C×H×W."""
        if self.training and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return pointwise(x, self.weight, self.bias)
        return super().forward(x)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias)` of a 1×1 kernel, channels-last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _DilatedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolve(x, weight, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _convolve(gradient, weight.flip(2, 3), ctx.dilation)
        return of_x, _kernel_gradient(x, gradient, ctx.dilation).to(weight.dtype), None


def _convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    weight = weight.to(x.dtype)
    if dilation <= WIDEST_BORDER:
        return F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=len(weight))
    count, channels, height, width = x.shape
    at_once = max(min(VALUES_AT_ONCE // (channels * height * width), count), 1)
    shape = (at_once, channels, height, width + 2 * dilation)
    bordered = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last).zero_()
    out = None if at_once == count else torch.empty_like(x)
    for first in range(0, count, at_once):
        images = x[first : first + at_once]
        part = bordered[: len(images)]
        part[..., dilation:-dilation].copy_(images)
        convolved = F.conv2d(part, weight, padding=(dilation, 0), dilation=dilation, groups=len(weight))
        if out is None:
            return convolved
        out[first : first + at_once] = convolved
    return out


def _kernel_gradient(x: Tensor, gradient: Tensor, dilation: int) -> Tensor:
    """C×1×3×3: for each tap, the sum of what it met times the gradient of what it gave."""
    exact = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(9, x.shape[1], dtype=exact)
    for of_image, given in zip(x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), strict=True):
        blocks = (tensor.split(CHANNELS_AT_ONCE, dim=-1) for tensor in (of_image, given, total))
        for met, gave, into in zip(*blocks, strict=True):
            met, gave = met.to(exact), gave.to(exact)
            for index, (rows_in, columns_in), (rows_out, columns_out) in _taps(met.shape[:2], dilation):
                into[index] += (met[rows_in, columns_in] * gave[rows_out, columns_out]).sum((0, 1))
    return total.t().reshape(-1, 1, 3, 3)


def _taps(size: tuple[int, int], dilation: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """The places of the kernel that meet the map: number, part of the input that is met, part of the output."""
    for index, (row, column) in enumerate(product((-dilation, 0, dilation), repeat=2)):
        if abs(row) < size[0] and abs(column) < size[1]:
            shifts = tuple(zip(size, (row, column), strict=True))
            yield (
                index,
                tuple(slice(max(shift, 0), length + min(shift, 0)) for length, shift in shifts),
                tuple(slice(max(-shift, 0), length - max(shift, 0)) for length, shift in shifts),
            )
