"""Depthwise and pointwise convolutions on the CPU, for training.

The decoder's dilated depthwise convolutions (6, 12 and 18 on 1024 channels) are a thousandth of its multiplications and
take a third of its time in the CPU's own kernels. The fast one of these wants channels side by side in memory, gives
up on borders wider than some to the left and right, and knows no gradients. So a map gets such a border beforehand; the
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
# Bordered maps of so many values stay near the cache: larger ones take longer to make than to convolve.
VALUES_AT_ONCE = 2**21
# Two maps of 32×32 pixels and their product stay in the cache of a core.
CHANNELS_AT_ONCE = 256


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3×3 convolution without bias whose border is as wide as its dilation."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B×C×H×W."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if not self.training:
            return _convolve(x, self.weight, self.bias, self.dilation[0])
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        return dilated_depthwise(x, self.weight, self.dilation[0])


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
        return _in_parts(x, weight.to(x.dtype), dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _in_parts(gradient, weight.flip(2, 3).to(gradient.dtype), ctx.dilation)
        return of_x, _kernel_gradient(x, gradient, ctx.dilation).to(weight.dtype), None


def _in_parts(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """`_convolve` of few images at a time."""
    at_once = max(VALUES_AT_ONCE // x[0].numel(), 1)
    if len(x) <= at_once:
        return _convolve(x, weight, None, dilation)
    return torch.cat([_convolve(images, weight, None, dilation) for images in x.split(at_once)])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    rows = columns = dilation
    if dilation > WIDEST_BORDER:
        x, columns = F.pad(x, (dilation, dilation, 0, 0)), 0
    return F.conv2d(x, weight, bias, padding=(rows, columns), dilation=dilation, groups=len(weight))


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
