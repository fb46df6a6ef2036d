"""Weigh the channels or the positions of a map that goes on, and add the gradient in place.

The map passes as ``torchplug.kernels.passing`` tells. A convolution to few channels reads a map
and its backward pass writes one, which PyTorch then adds to the rest; here it is added at once.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.kernels.eager import (
    PIECE,
    cut,
    cut_finely,
    differentiate,
    is_compiled,
    is_free,
    is_fused,
    is_worthwhile,
    learns,
    reduce_channels,
    reduce_positions,
    sum_positions,
    to_fast_layout,
)
from torchplug.kernels.native import pool_project, pool_project_last
from torchplug.kernels.passing import Gradient
from torchplug.kernels.pools import pool_positions
from torchplug.nn import is_bare_conv

COLUMNS = 16
"""Width from which on a narrow map is faster made position by position than channel by channel."""

FEW, SMALLEST_WIDE = 24, 1 << 20
"""Channels made up to which, and elements of a map from which on, one pass in C++ gains."""

FEWEST, SMALLEST_NARROW = 2, 1 << 12
"""Samples, and positions of all of them, from which on samples gain in the place of channels."""


def project(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` to go on with, and ``conv(x)``.

    A 1x1 convolution that somebody hooked, parametrized or replaced is called as it is.

    >>> x, y = project(nn.Conv2d(4, 1, 1), torch.ones(1, 4, 2, 2))
    >>> y.shape
    torch.Size([1, 1, 2, 2])
    """
    if not _is_pointwise(conv):
        return x, conv(x)
    if is_fused(x) and conv.out_channels == 1:
        y = reduce_channels(x * conv.weight[0], torch.sum)  # which the compiler writes itself
        return x, (y if conv.bias is None else y + conv.bias)
    if conv.out_channels == 1 and learns(x, conv.weight) and _is_walkable(x, conv):
        return _Project.apply(x, conv.weight, conv.bias)
    return x, conv(x)


def pool_and_project(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` to go on with, its mean over all positions, and ``conv(x)``.

    Both read ``x`` while it is in the cache. What follows ``conv`` gets its few channels last,
    where convolutions on processors are faster.

    >>> x, mean, y = pool_and_project(nn.Conv2d(4, 2, 1), torch.ones(1, 4, 2, 2))
    >>> mean.shape, y.shape
    (torch.Size([1, 4, 1, 1]), torch.Size([1, 2, 2, 2]))
    """
    if _is_pointwise(conv):
        if _is_one_pass_faster(x, conv):
            return _pool_project_at_once(x, conv.weight, conv.bias)
        # products of matrices lose in other layouts and in half precision
        if x.is_contiguous() and x.dtype in (torch.float32, torch.float64):
            if is_fused(x) and conv.out_channels > 1:
                return _plain_pool_project(x, conv.weight, conv.bias)
            if _is_walkable(x, conv):
                bias = conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias
                how = _PoolProject.apply if learns(x, conv.weight, bias) else _pool_project
                return how(x, conv.weight, bias)
    x, mean = pool_positions(x)
    x, y = project(conv, x)
    return x, mean, to_fast_layout(y, like=x)


def see_around(conv: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """Return ``conv`` of ``maps``, one channel each, to one channel.

    Without gradients each map, or the samples of each, is convolved by itself: libraries walk over
    channels, of which the maps have hardly any.

    >>> see_around(nn.Conv2d(2, 1, 3, padding=1), [torch.ones(1, 1, 4, 4)] * 2).shape
    torch.Size([1, 1, 4, 4])
    """
    first = maps[0]
    if not _is_divisible(conv, maps):
        return conv(torch.cat(list(maps), 1))
    if is_compiled(first):  # whose programs may have to serve every number of samples
        y = _see_alone(torch.cat(list(maps), 1), conv.weight.transpose(0, 1), conv)
        return y.sum(1, keepdim=True)
    samples = torch.cat([one.transpose(0, 1) for one in maps], 1)  # (1, maps * n, h, w)
    kernels = conv.weight.transpose(0, 1).repeat_interleave(len(first), 0)
    y = _see_alone(samples, kernels, conv)
    return y.view(len(maps), len(first), 1, *y.shape[2:]).sum(0)


def _is_divisible(conv: nn.Module, maps: Sequence[Tensor]) -> TypeGuard[nn.Conv2d]:
    """Tell whether each map may be convolved by itself, and gains by it."""
    first = maps[0]
    if not (_is_bare(conv) and conv.bias is None and conv.out_channels == 1 and conv.groups == 1):
        return False
    if learns(*maps, conv.weight) or not (is_compiled(first) or is_free(first)):
        return False
    many = is_compiled(first) or (len(first) >= FEWEST and first.numel() >= SMALLEST_NARROW)
    return many and _is_native(first, conv)


def _see_alone(x: Tensor, kernels: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve every channel by its own kernel, as ``conv`` would go."""
    return F.conv2d(x, kernels, None, conv.stride, conv.padding, conv.dilation, len(kernels))


def pool_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` to go on with, and the sum of its positions by ``weights``.

    Args:
        x: a map ``(N, C, H, W)``.
        weights: ``(N, 1, H * W)``.

    Returns:
        The map, and the sums ``(N, C, 1, 1)``.

    >>> x, total = pool_weighted(torch.ones(1, 2, 2, 2), torch.full((1, 1, 4), 0.25))
    >>> total.flatten()
    tensor([1., 1.])
    """
    weights = weights.to(x.dtype)
    if not (learns(x, weights) and is_worthwhile(x)):
        return _plain_weighted(x, weights)
    return _Weighted.apply(x, weights)


def _is_bare(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether calling ``conv`` is a convolution by its own weight and nothing more."""
    return type(conv) is nn.Conv2d and is_bare_conv(conv)


def _is_pointwise(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not _is_bare(conv):
        return False
    ones = (*conv.kernel_size, *conv.stride, conv.groups)
    return set(ones) == {1} and set(conv.padding) == {0}


def _is_native(x: Tensor, conv: nn.Conv2d) -> bool:
    return x.dtype == conv.weight.dtype and not torch.is_autocast_enabled(x.device.type)


def _is_walkable(x: Tensor, conv: nn.Conv2d) -> bool:
    return is_worthwhile(x) and _is_native(x, conv)


def _plain_project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return x, F.conv2d(x, weight, bias)


def _plain_pool_project(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    # for a convolution, or a product without a batch, a compiler would lay the map out anew
    matrices = weight.flatten(1).expand(len(x), -1, -1)
    y = torch.bmm(matrices, x.flatten(2)).view(len(x), -1, *x.shape[2:])
    y = y if bias is None else y + bias.view(-1, 1, 1)
    return x, x.mean((2, 3), keepdim=True), y


def _is_one_pass_faster(x: Tensor, conv: nn.Conv2d) -> bool:
    """Tell whether a kernel in C++ gains: in compiled programs, for few channels of large maps."""
    if not is_fused(x) or learns(x, conv.weight) or not _is_native(x, conv):
        return False
    few = 1 < conv.out_channels <= FEW and x.numel() >= SMALLEST_WIDE
    laid_out = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return few and laid_out and x.dtype == torch.float32


def _pool_project_at_once(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    weights = weight.view(-1, c).mT.contiguous()
    if x.is_contiguous():
        mean, y = pool_project(x.flatten(2), weights)
        y = y.view(n, -1, h, w)
    else:
        mean, y = pool_project_last(x.permute(0, 2, 3, 1).flatten(1, 2), weights)
        y = y.view(n, h, w, -1).permute(0, 3, 1, 2)
    y = y if bias is None else y + bias.view(-1, 1, 1)
    return x, mean.view(n, c, 1, 1), y


def _pool_project(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, c, *size = x.shape
    k, positions = len(weight), math.prod(size)
    matrix = weight.view(1, k, c).expand(n, -1, -1).mT
    wide = k >= COLUMNS
    y = bias.repeat(n, 1, positions, 1) if wide else bias[:, None].repeat(n, 1, 1, positions)
    mean = x.new_empty(n, c)
    walk = cut if x[:1].numel() * x.element_size() <= PIECE else cut_finely
    for xi, mi, wi, yi in walk(x.flatten(2), mean, matrix, y):
        torch.mean(xi, 2, out=mi)
        total, pair = yi[:, 0], (xi.mT, wi) if wide else (wi.mT, xi)
        torch.baddbmm(total, *pair, out=total)  # nobody counts the FLOPs of the form in place
    y = (y.mT if wide else y).reshape(n, k, *size)
    return x, mean.view(n, c, 1, 1), y.contiguous(memory_format=torch.channels_last)


def _plain_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if is_free(x) and x.dtype in (torch.bfloat16, torch.float16) and not x.is_contiguous():
        # which strides its vector has decides whether this product is fast; measured
        return x, (x.flatten(2) @ weights.reshape(len(x), -1, 1))[..., None]
    if is_fused(x) and not x.is_contiguous():
        return x, reduce_positions(x * weights.reshape(len(x), 1, *x.shape[2:]), torch.sum)
    return x, (weights @ x.flatten(2).mT).mT[..., None]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        ctx.save_for_backward(x, weight, *([] if bias is None else [bias]))
        return x, F.conv2d(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*differentiate(_plain_project, saved, (dx, dy)), None)[:3]
        x, weight = saved[:2]
        gradient = Gradient(ctx, dx, x)
        if dy is None:
            return gradient.settle(), None, None
        row = weight.view(1, -1, 1, 1)
        dweight = torch.zeros_like(weight)
        for dxi, dyi, xi in gradient.walk(dy, x):
            dxi.addcmul_(row, dyi)
            dweight += sum_positions(xi, dyi).sum(0, keepdim=True)
        bias = dy.sum((0, 2, 3)) if len(saved) > 2 else None
        return gradient.total, dweight, bias


class _PoolProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        ctx.save_for_backward(*inputs)
        return _pool_project(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, _ = saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_plain_pool_project, saved, grads)
        dx, dmean, dy = grads
        gradient = Gradient(ctx, dx, x)
        n, c, k = x.shape[0], x.shape[1], len(weight)
        dmean = x.new_zeros(n, c, 1, 1) if dmean is None else dmean
        dy = x.new_zeros(n, k, *x.shape[2:]) if dy is None else dy
        with torch.autocast(x.device.type, enabled=False):
            # the mean is one more row of the matrix, and its gradient the same everywhere
            shares = (dmean / (x.shape[2] * x.shape[3])).view(n, 1, c)
            matrix = torch.cat([weight.view(1, k, c).expand(n, -1, -1), shares], 1)
            rows = F.pad(dy, (0, 0, 0, 0, 0, 1), value=1.0).flatten(2)
            for dxi, mi, ri in gradient.walk(matrix, rows):
                dxi.view(len(dxi), c, -1).baddbmm_(mi.mT, ri)
            dmatrix = (dy.flatten(2) @ x.flatten(2).mT).sum(0)
        return gradient.total, dmatrix.view_as(weight), dy.sum((0, 2, 3))


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        ctx.save_for_backward(x, weights)
        return _plain_weighted(x, weights)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_plain_weighted, (x, weights), (dx, dsum))
        gradient = Gradient(ctx, dx, x)
        dweights = torch.zeros_like(weights)
        if dsum is None:
            return gradient.settle(), dweights
        dsum = dsum.to(x.dtype)  # of half precision under autocast
        maps = weights.view(len(x), 1, *x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):
            for dxi, dsi, mi, xi, dwi in gradient.walk(dsum, maps, x, dweights):
                dxi.addcmul_(dsi, mi)
                dwi.copy_(dsi.flatten(2).mT @ xi.flatten(2))
        return gradient.total, dweights
