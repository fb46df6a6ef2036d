"""Pool a map that goes on to be scaled, and add the pool's gradient to the map's in place.

How the map passes, and who writes its gradient, is told in ``torchplug.kernels.passing``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchplug.kernels.affine import is_affine, scale_and_shift
from torchplug.kernels.eager import (
    cut,
    cut_finely,
    differentiate,
    is_fused,
    is_worthwhile,
    learns,
    reduce_channels,
    reduce_positions,
    sum_positions,
)
from torchplug.kernels.gates import apply_gates
from torchplug.kernels.passing import Gradient


def pool_positions(x: Tensor, *, maximum: bool = False) -> tuple[Tensor, ...]:
    """Return ``x`` to go on with, its mean over all positions and, if asked, its maximum.

    Args:
        x: a map ``(N, C, H, W)``.
        maximum: whether the maximum is wanted. Where several positions share it, the first has
            the gradient.

    Returns:
        The map, the means ``(N, C, 1, 1)`` and, if asked, the maxima ``(N, C, 1, 1)``.

    >>> x, mean, largest = pool_positions(torch.arange(4.0).view(1, 1, 2, 2), maximum=True)
    >>> mean.item(), largest.item()
    (1.5, 3.0)
    """
    learning = learns(x)
    if not maximum:
        return _Mean.apply(x) if learning and is_worthwhile(x) else _plain_mean(x)
    if not is_worthwhile(x):
        return _plain_mean_max(x)
    return _MeanMax.apply(x) if learning else _mean_max(x)


def pool_channels(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` to go on with, and maximum and mean over the channels of ``x * gate``.

    Args:
        x: a map ``(N, C, H, W)``.
        gate: ``(N, C, 1, 1)``.

    Returns:
        The map ``x``, not scaled; the maxima and the means, ``(N, 1, H, W)`` each.

    >>> x, largest, mean = pool_channels(torch.ones(1, 2, 1, 1), torch.tensor([[[[1.]], [[3.]]]]))
    >>> largest.item(), mean.item()
    (3.0, 2.0)
    """
    gate = gate.to(x.dtype)
    if not is_worthwhile(x):
        return _plain_channels(x, gate)
    return _ChannelPool.apply(x, gate) if learns(x, gate) else _channels(x, gate)


def scale_in_turn(x: Tensor, gate: Tensor, find: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Return ``x`` scaled by a gate of its channels, then by one that is found in the result.

    Args:
        x: a map ``(N, C, H, W)``.
        gate: ``(N, C, 1, 1)``.
        find: makes the gate of the positions ``(N, 1, H, W)`` from maximum and mean over the
            channels of ``x * gate``, ``(N, 1, H, W)`` each.

    >>> scale_in_turn(torch.ones(1, 2, 1, 1), torch.tensor([[[[1.]], [[3.]]]]), sum).flatten()
    tensor([ 5., 15.])
    """
    gate = gate.to(x.dtype)
    if learns(x, gate) or not is_worthwhile(x):
        x, *statistics = pool_channels(x, gate)
        return apply_gates(x, gate, find(statistics), "product")
    y = torch.empty_like(x)  # nobody else has it, so the second gate may act in place
    _, *statistics = _channels(x, gate, y)
    return y.mul_(find(statistics).to(y.dtype))


def _plain_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, reduce_positions(x, torch.mean)


def _plain_mean_max(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, reduce_positions(x, torch.mean), reduce_positions(x, torch.amax)


def pool_strips(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of every row, ``(N, C, H, 1)``, and of every column, ``(N, C, 1, W)``.

    The operator depends on the layout: each is several times slower in the other one.

    >>> [mean.flatten().tolist() for mean in pool_strips(torch.arange(4.0).view(1, 1, 2, 2))]
    [[0.5, 2.5], [1.0, 2.0]]
    """
    if is_worthwhile(x) and not x.is_contiguous():
        return F.avg_pool2d(x, (1, x.shape[3])), F.avg_pool2d(x, (x.shape[2], 1))
    return x.mean(3, keepdim=True), x.mean(2, keepdim=True)


def add_strips(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sum at every position of a value of its row and a value of its column.

    Args:
        rows: ``(N, C, H, 1)``.
        columns: ``(N, C, 1, W)``.

    >>> add_strips(torch.tensor([[[[1.], [2.]]]]), torch.tensor([[[[10., 20.]]]])).tolist()
    [[[[11.0, 21.0], [12.0, 22.0]]]]
    """
    wide = rows.expand(-1, -1, -1, columns.shape[3])
    if learns(rows, columns) and is_worthwhile(wide) and not rows.is_contiguous():
        return _AddStrips.apply(rows, columns)
    return rows + columns


def _mean_max(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pairs = [_plain_mean_max(piece)[1:] for (piece,) in cut(x)]
    mean, largest = (torch.cat(column) for column in zip(*pairs, strict=True))
    return x, mean, largest


def _channels(x: Tensor, gate: Tensor, *into: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pool ``x * gate``, which is written ``into`` a map if one is given."""
    size = (x.shape[0], 1, *x.shape[2:])
    largest = x.new_full(size, -math.inf)
    total = x.new_zeros(size, dtype=torch.promote_types(x.dtype, torch.float32))
    for xi, ci, li, ti, *yi in cut_finely(x, gate, largest, total, *into):
        scaled = torch.mul(xi, ci, out=yi[0] if yi else None)
        torch.maximum(li, scaled.amax(1, keepdim=True), out=li)
        ti.add_(scaled.sum(1, keepdim=True))
    return x, largest, (total / x.shape[1]).to(x.dtype)


def _plain_channels(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scaled = x * gate
    if is_fused(x):
        mean = reduce_channels(scaled, torch.sum) / x.shape[1]
        return x, reduce_channels(scaled, torch.amax), mean
    return x, scaled.amax(1, keepdim=True), scaled.mean(1, keepdim=True)


def _argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima ``(n, c, 1, 1)`` and where they are, ``(n, c, 1)`` in a flattened map.

    The search for a place is slow: where a map can be cut, only the band of rows that holds the
    maximum is searched.
    """
    bands = math.gcd(x.shape[2], 8)
    if bands == 1 or not x.is_contiguous():
        largest, place = x.flatten(2).max(2, keepdim=True)
        return largest[..., None], place
    strips = x.view(-1, bands, x[0, 0].numel() // bands)
    band = strips.amax(2).argmax(1)
    largest, place = strips[torch.arange(len(band)), band].max(1)
    shape = (*x.shape[:2], 1)
    return largest.view(*shape, 1), (band * strips.shape[2] + place).view(shape)


class _AddStrips(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        return rows + columns

    @staticmethod
    def backward(_ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = pool_strips(dy)
        return rows * dy.shape[3], columns * dy.shape[2]


def _add_shares(gradient: Gradient, share: Tensor) -> Tensor:
    for piece, own in gradient.walk(share):
        piece.add_(own)
    return gradient.total


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        ctx.save_for_backward(x)
        return x, x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dmean: Tensor | None) -> Tensor | None:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_plain_mean, (x,), (dx, dmean))[0]
        gradient = Gradient(ctx, dx, x)
        if dmean is None:
            return gradient.settle()
        share = dmean / math.prod(x.shape[2:])
        owed = gradient.owed
        if owed is not None and owed.write is torch.mul:
            scale = owed.tensors[0]
            if is_affine(scale, owed.dy, gradient.total):
                return scale_and_shift(owed.dy, scale, share, out=gradient.total)
        return _add_shares(gradient, share)


class _MeanMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        parts = [(part.mean((2, 3), keepdim=True), *_argmax(part)) for (part,) in cut(x)]
        mean, largest, place = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(x, place)
        return x, mean, largest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        x, place = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(_plain_mean_max, (x,), grads)[0]
        dx, dmean, dlargest = grads
        gradient = Gradient(ctx, dx, x)
        if dmean is not None:
            _add_shares(gradient, dmean / math.prod(x.shape[2:]))
        dx = gradient.settle()
        if dlargest is not None:
            n, c, _, width = x.shape
            samples, channels = torch.arange(n).view(n, 1), torch.arange(c)
            rows, columns = place[..., 0] // width, place[..., 0] % width
            dx[samples, channels, rows, columns] += dlargest.view(n, c)
        return dx


def _argmax_channels(x: Tensor, largest: Tensor, place: Tensor) -> None:
    """Write the maxima over the channels and their places.

    With the channels in a square, the row and the column of the maximum follow from the maxima of
    all rows and all columns, unless it is there twice; a search through all channels is slower.
    """
    side = math.isqrt(x.shape[1])
    if side * side == x.shape[1] and x.is_contiguous() and x.dtype != torch.bfloat16:
        square = x.view(len(x), side, side, *x.shape[2:])
        row = torch.max(square.amax(2), 1, keepdim=True, out=(largest, place))[1]
        column = square.amax(1).max(1, keepdim=True)[1]
        torch.add(column, row, alpha=side, out=place)
        if torch.equal(x.gather(1, place), largest):
            return
    torch.max(x, 1, keepdim=True, out=(largest, place))


class _ChannelPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.owed = None
        largest, mean = (x.new_empty(x.shape[0], 1, *x.shape[2:]) for _ in range(2))
        place = torch.empty_like(mean, dtype=torch.int64)
        for xi, ci, li, pi, mi in cut(x, gate, largest, place, mean):
            scaled = xi * ci
            _argmax_channels(scaled, li, pi)
            mi.copy_(reduce_channels(scaled, torch.sum))
        mean.div_(x.shape[1])
        ctx.save_for_backward(x, gate, place)
        return x, largest, mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, gate, place = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = differentiate(_plain_channels, (x, gate), grads)
            return found[0], found[1]
        dx, dlargest, dmean = grads
        gradient, dgate = Gradient(ctx, dx, x), torch.zeros_like(gate)
        if dmean is not None:
            for dxi, ci, dmi, xi, dci in gradient.walk(gate, dmean / x.shape[1], x, dgate):
                dxi.addcmul_(ci, dmi)
                dci.add_(sum_positions(xi, dmi))
        dx = gradient.settle()
        if dlargest is not None:
            flat = place.flatten(2)[:, 0]
            values = (dlargest.flatten(1) * x.gather(1, place).flatten(1), gate.flatten(1))
            dgate.flatten(1).scatter_add_(1, flat, values[0])
            dx.scatter_add_(1, place, dlargest * gate.flatten(1).gather(1, flat).view_as(place))
        return dx, dgate
