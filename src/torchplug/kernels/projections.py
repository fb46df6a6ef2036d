"""Weigh the channels or the positions of a map that goes on, and add the gradient in place.

The map passes through as in ``torchplug.kernels.pools``. A convolution to one channel reads a map
and its backward pass writes one, which PyTorch then adds to the rest; here it is added at once.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from torchplug.kernels import eager
from torchplug.kernels.eager import cut, differentiate, is_worthwhile, learns


def project(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` to go on with, and ``conv(x)``.

    A 1x1 convolution that somebody hooked, parametrized or replaced is called as it is.

    >>> x, y = project(nn.Conv2d(4, 1, 1), torch.ones(1, 4, 2, 2))
    >>> y.shape
    torch.Size([1, 1, 2, 2])
    """
    if not _is_bare(conv):
        return x, conv(x)
    if _is_fused(x) and conv.out_channels == 1:
        y = (x * conv.weight[0]).sum(1, keepdim=True)  # an operator that the compiler can fuse
        return x, (y if conv.bias is None else y + conv.bias)
    if not (learns(x, conv.weight) and is_worthwhile(x)):
        return x, conv(x)
    if torch.is_autocast_enabled(x.device.type) or x.dtype != conv.weight.dtype:
        return x, conv(x)
    if conv.out_channels > 1 and not x.is_contiguous():  # the matrix product is slower there
        return x, conv(x)
    return _Project.apply(x, conv.weight, conv.bias)


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


def _is_fused(x: Tensor) -> bool:
    """Tell whether a compiler is at work that would call a library for a convolution.

    For one output channel the library lays a large map out anew first.
    """
    compiler = torch.compiler
    if not compiler.is_compiling() or compiler.is_exporting():
        return False
    return x.device.type == "cpu" and x.numel() >= eager.SMALLEST


def _is_bare(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether calling ``conv`` is a 1x1 convolution by its own weight and nothing more."""
    hooks = (
        conv._forward_hooks,
        conv._forward_pre_hooks,
        conv._backward_hooks,
        conv._backward_pre_hooks,
    )
    if type(conv) is not nn.Conv2d or any(hooks) or parametrize.is_parametrized(conv):
        return False
    ones = (*conv.kernel_size, *conv.stride, conv.groups)
    return set(ones) == {1} and set(conv.padding) == {0} and "forward" not in vars(conv)


def _plain_project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return x, F.conv2d(x, weight, bias)


def _plain_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return x, (weights @ x.flatten(2).mT).mT[..., None]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *([] if bias is None else [bias]))
        return x, F.conv2d(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*differentiate(_plain_project, saved, (dx, dy)), None)[:3]
        x, weight = saved[:2]
        dx = torch.zeros_like(x) if dx is None else dx
        if dy is None:
            return dx, None, None
        matrix = weight.flatten(1)
        dmatrix = torch.zeros_like(matrix)
        with torch.autocast(x.device.type, enabled=False):
            for dxi, dyi, xi in cut(dx, dy, x):
                _add_product(dxi, matrix, dyi)
                dmatrix += torch.bmm(dyi.flatten(2), xi.flatten(2).mT).sum(0)
        bias = dy.sum((0, 2, 3)) if len(saved) > 2 else None
        return dx, dmatrix.view_as(weight), bias


def _add_product(dx: Tensor, matrix: Tensor, dy: Tensor) -> None:
    """Add to ``dx`` the channels of ``dy`` mixed by ``matrix``, ``(K, C)``."""
    if len(matrix) == 1:
        dx.addcmul_(matrix.view(1, -1, 1, 1), dy)
        return
    for one, grad in zip(dx, dy, strict=True):
        one.view(one.shape[0], -1).addmm_(matrix.t(), grad.flatten(1))


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weights)
        return _plain_weighted(x, weights)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_plain_weighted, (x, weights), (dx, dsum))
        dx = torch.zeros_like(x) if dx is None else dx
        dweights = torch.zeros_like(weights)
        if dsum is None:
            return dx, dweights
        maps = weights.view(len(x), 1, *x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):
            for dxi, dsi, mi, xi, dwi in cut(dx, dsum, maps, x, dweights):
                dxi.addcmul_(dsi, mi)
                dwi.copy_(dsi.flatten(2).mT @ xi.flatten(2))
        return dx, dweights
