"""Scale a map by gates of its channels and its positions without making a map of gates.

Each rule says how two gates, ``c`` of the channels ``(N, C, 1, 1)`` and ``s`` of the positions
``(N, 1, H, W)``, act on the map ``x``:

- ``"product"``: ``x c s``;
- ``"sum"``: ``x (c + s)``;
- ``"max"``: the larger of ``x c`` and ``x s``;
- ``"residual_product"``: ``x + x sigmoid(c s)``;
- ``"residual_sum"``: ``x + x sigmoid(c + s)``;
- ``"residual_max"``: ``x + x sigmoid(max(c, s))``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from torchplug.kernels.affine import is_affine, sum_products
from torchplug.kernels.eager import (
    cut,
    cut_finely,
    differentiate,
    is_fused,
    is_worthwhile,
    learns,
    sum_positions,
)
from torchplug.kernels.passing import claim, owe
from torchplug.kernels.powers import exp2

_LOG2E = math.log2(math.e)

Rule = Literal["product", "sum", "max", "residual_product", "residual_sum", "residual_max"]


def apply_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Return ``x * gate``, in the type of ``x``.

    Args:
        x: a map ``(N, C, H, W)``.
        gate: ``(N, C, 1, 1)`` or ``(N, 1, H, W)``.

    >>> apply_gate(torch.ones(1, 2, 3, 3), torch.full((1, 2, 1, 1), 0.5)).unique()
    tensor([0.5000])
    """
    return _apply(_Scale, x, gate.to(x.dtype))


def add_context(x: Tensor, context: Tensor) -> Tensor:
    """Return ``x + context``, in the type of ``x``.

    Args:
        x: a map ``(N, C, H, W)``.
        context: ``(N, C, 1, 1)``.

    >>> add_context(torch.ones(1, 2, 3, 3), torch.full((1, 2, 1, 1), 0.5)).unique()
    tensor([1.5000])
    """
    return _apply(_Shift, x, context.to(x.dtype))


def apply_gates(x: Tensor, channel: Tensor, spatial: Tensor, rule: Rule) -> Tensor:
    """Return ``x`` under a gate of its channels and a gate of its positions.

    Args:
        x: a map ``(N, C, H, W)``.
        channel: ``(N, C, 1, 1)``.
        spatial: ``(N, 1, H, W)``.
        rule: how they act; see the top of this file.

    >>> gate = torch.full((1, 2, 1, 1), 0.5), torch.full((1, 1, 3, 3), 0.1)
    >>> apply_gates(torch.ones(1, 2, 3, 3), *gate, "max").unique()
    tensor([0.5000])
    """
    return _apply(_RULES[rule], x, channel.to(x.dtype), spatial.to(x.dtype))


def _apply(how: type["_How"], x: Tensor, *gates: Tensor) -> Tensor:
    learning = learns(x, *gates)
    if is_fused(x) and not learning:
        return how.fused(x, *gates)
    if how.forward is how.plain and not learning:
        return how.plain(x, *gates)
    if not is_worthwhile(x):
        return how.plain(x, *gates)
    return _Gating.apply(how, x, *gates) if learning else how.forward(x, *gates)


class _How:
    """One rule: its plain form, and its way forward and back by pieces.

    ``plain`` and ``forward`` take the map and the gates; ``learn`` also returns what it keeps.
    ``share`` takes a piece to write what it likes into, then of the gradient, the map, the gates
    and what was kept, and adds to the gradients of the gates, which follow. ``spread`` takes the
    gradient, the gates and what was kept, and writes the gradient of the map into ``out``.
    """

    plain: ClassVar[Callable[..., Tensor]]
    forward: ClassVar[Callable[..., Tensor]]
    share: ClassVar[Callable[..., None]]
    spread: ClassVar[Callable[..., object]]
    walk: ClassVar[Callable[..., Iterator[tuple[Tensor, ...]]]] = cut
    late: ClassVar[bool] = True
    """Whether there is a ``spread``; else ``share`` writes the map's gradient into its piece."""

    @classmethod
    def share_whole(cls, _dy: Tensor, _x: Tensor, *_rest: Tensor) -> bool:
        """Do what ``share`` does for all pieces at once, where there is a way, and tell."""
        return False

    @classmethod
    def fused(cls, x: Tensor, *gates: Tensor) -> Tensor:
        """Compute the plain form as a compiler without gradients likes it."""
        return cls.plain(x, *gates)

    @classmethod
    def learn(cls, x: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        return (cls.forward(x, *gates),)


class _Gating(torch.autograd.Function):
    """Apply a rule piece by piece.

    The gradient of the map is owed to the operator that handed the map on, or is a tensor that
    nobody else holds.
    """

    @staticmethod
    def forward(ctx: Any, how: type[_How], x: Tensor, *gates: Tensor) -> Tensor:
        ctx.how, ctx.inputs = how, 1 + len(gates)
        ctx.passing = claim(x) if how.late else None
        y, *kept = how.learn(x, *gates)
        ctx.save_for_backward(x, *gates, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        how: type[_How] = ctx.how
        x, *others = saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *differentiate(how.plain, saved[: ctx.inputs], (dy,))
        sums = [torch.zeros_like(gate, dtype=_sum_type(gate)) for gate in saved[1 : ctx.inputs]]
        passing, dx = ctx.passing, dy if ctx.passing else torch.empty_like(x)
        if passing:
            owe(passing, dy, how.spread, others)
        if not (passing and how.share_whole(dy, *saved, *sums)):
            for dyi, xi, dxi, *rest in how.walk(dy, x, dx, *others, *sums):
                how.share(torch.empty_like(xi) if passing else dxi, dyi, xi, *rest)
                if how.late and not passing:
                    how.spread(dyi, *rest[: len(others)], out=dxi)
        return None, dx, *(total.to(x.dtype) for total in sums)


def _sum_type(gate: Tensor) -> torch.dtype:
    """Return the type in which the pieces' shares of a gate's gradient are added."""
    return torch.promote_types(gate.dtype, torch.float32)


def _sum_positions(product: Tensor, out: Tensor) -> None:
    out += product.sum((2, 3), keepdim=True)


def _sum_channels(product: Tensor, weight: Tensor, out: Tensor) -> None:
    """Add the sum over channels of ``weight * product``: one product with a row."""
    row = weight.transpose(1, 2).squeeze(-1)  # (n, 1, c)
    with torch.autocast(out.device.type, enabled=False):
        out += (row @ product.flatten(2)).view(out.shape)


def _share_out(lead: Tensor) -> Tensor:
    """Return 1 where the channel gate leads and decides, 0 where the spatial one, half in ties."""
    return lead.sign_().add_(1).mul_(0.5)


class _Scale(_How):
    @staticmethod
    def plain(x: Tensor, gate: Tensor) -> Tensor:
        return x * gate

    forward = plain

    @staticmethod
    def share(spare: Tensor, dy: Tensor, x: Tensor, gate: Tensor, dgate: Tensor) -> None:
        torch.mul(dy, x, out=spare)
        dgate += spare.sum_to_size(gate.shape)

    @classmethod
    def share_whole(cls, dy: Tensor, x: Tensor, *rest: Tensor) -> bool:
        gate, dgate = rest
        affine = is_affine(gate, dy, x)
        if affine:
            sum_products(dy, x, out=dgate)
        return affine

    spread = torch.mul
    walk = cut_finely


class _Shift(_How):
    @staticmethod
    def plain(x: Tensor, shift: Tensor) -> Tensor:
        return x + shift

    forward = plain

    @staticmethod
    def share(_spare: Tensor, dy: Tensor, _x: Tensor, _shift: Tensor, dshift: Tensor) -> None:
        _sum_positions(dy, dshift)

    @staticmethod
    def spread(dy: Tensor, _shift: Tensor, *, out: Tensor) -> None:
        out.copy_(dy)


class _Product(_How):
    @staticmethod
    def plain(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return x * c * s

    @staticmethod
    def forward(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return _scale_mixed(x, c, s, torch.mul)

    @staticmethod
    def share(
        spare: Tensor, dy: Tensor, x: Tensor, c: Tensor, s: Tensor, dc: Tensor, ds: Tensor
    ) -> None:
        torch.mul(dy, x, out=spare)
        _sum_channels(spare, c, ds)
        _sum_positions(spare.mul_(s), dc)

    @staticmethod
    def spread(dy: Tensor, c: Tensor, s: Tensor, *, out: Tensor) -> None:
        torch.mul(dy, c, out=out).mul_(s)


class _Sum(_How):
    @staticmethod
    def plain(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return x * (c + s)

    @staticmethod
    def forward(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return _scale_mixed(x, c, s, torch.add)

    @staticmethod
    def share(
        spare: Tensor, dy: Tensor, x: Tensor, c: Tensor, _s: Tensor, dc: Tensor, ds: Tensor
    ) -> None:
        torch.mul(dy, x, out=spare)
        _sum_channels(spare, torch.ones_like(c), ds)
        _sum_positions(spare, dc)

    @staticmethod
    def spread(dy: Tensor, c: Tensor, s: Tensor, *, out: Tensor) -> None:
        torch.add(c, s, out=out).mul_(dy)


class _Max(_How):
    late = False  # which gate decides takes the map to tell, and more than to read a gradient
    walk = cut_finely  # of all rules it makes the most maps beside the result

    @staticmethod
    def plain(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return torch.maximum(x * c, x * s)

    @staticmethod
    def forward(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for yi, xi, ci, si in cut_finely(y, x, c, s):
            torch.maximum(torch.mul(xi, ci, out=yi), xi * si, out=yi)
        return y

    @staticmethod
    def share(
        dx: Tensor, dy: Tensor, x: Tensor, c: Tensor, s: Tensor, dc: Tensor, ds: Tensor
    ) -> None:
        share = _share_out(torch.mul(x, c).sub_(x * s))
        torch.mul(dy, x, out=dx)
        total = dx.sum(1, keepdim=True)
        dx.mul_(share)
        _sum_positions(dx, dc)
        ds += total.sub_(dx.sum(1, keepdim=True))
        torch.lerp(s, c, share, out=dx).mul_(dy)


class _Residual(_How):
    """The gate is kept for the way back: to make a sigmoid again costs more than to read it."""

    mix: ClassVar[Callable[..., Tensor]]
    """How the two make one number, and how its gradient is shared."""

    @classmethod
    def plain(cls, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return torch.addcmul(x, x, cls.mix(c, s).sigmoid())

    @classmethod
    def forward(cls, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        y = torch.empty_like(x)
        return cls._write(x, c, s, y, y)

    @classmethod
    def learn(cls, x: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        c, s = gates
        y, gate = torch.empty_like(x), torch.empty_like(x)
        return cls._write(x, c, s, y, gate), gate

    @classmethod
    def _write(cls, x: Tensor, c: Tensor, s: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        for yi, xi, ci, si, gi in cut(y, x, c, s, gate):
            torch.addcmul(xi, xi, cls.mix(ci, si, out=gi).sigmoid_(), out=yi)
        return y

    @classmethod
    def share(
        cls, spare: Tensor, dy: Tensor, x: Tensor, c: Tensor, s: Tensor, gate: Tensor, *sums: Tensor
    ) -> None:
        torch.mul(dy, x, out=spare)
        torch.ops.aten.sigmoid_backward.grad_input(spare, gate, grad_input=spare)
        cls.divide(spare, c, s, *sums)

    @staticmethod
    def spread(dy: Tensor, _c: Tensor, _s: Tensor, gate: Tensor, *, out: Tensor) -> None:
        torch.addcmul(dy, dy, gate, out=out)

    @staticmethod
    def divide(slope: Tensor, c: Tensor, s: Tensor, dc: Tensor, ds: Tensor) -> None:
        """Add to the gates' gradients from that of what the sigmoid was made of."""
        raise NotImplementedError


class _ResidualProduct(_Residual):
    mix = torch.mul

    @classmethod
    def fused(cls, x: Tensor, *gates: Tensor) -> Tensor:
        c, s = gates
        return _add_sigmoid(x, -_LOG2E * c * s)

    @staticmethod
    def divide(slope: Tensor, c: Tensor, s: Tensor, dc: Tensor, ds: Tensor) -> None:
        _sum_channels(slope, c, ds)
        dc += sum_positions(slope, s)


class _ResidualSum(_Residual):
    mix = torch.add

    @classmethod
    def fused(cls, x: Tensor, *gates: Tensor) -> Tensor:
        c, s = gates
        return _add_sigmoid(x, -_LOG2E * c - _LOG2E * s)

    @staticmethod
    def divide(slope: Tensor, c: Tensor, _s: Tensor, dc: Tensor, ds: Tensor) -> None:
        _sum_channels(slope, torch.ones_like(c), ds)
        _sum_positions(slope, dc)


class _ResidualMax(_Residual):
    mix = torch.maximum

    @staticmethod
    def divide(slope: Tensor, c: Tensor, s: Tensor, dc: Tensor, ds: Tensor) -> None:
        share = _share_out(torch.sub(c, s)).mul_(slope)
        _sum_positions(share, dc)
        _sum_channels(slope.sub_(share), torch.ones_like(c), ds)


def _add_sigmoid(x: Tensor, z: Tensor) -> Tensor:
    """Return ``x + x sigmoid(-z ln 2)``: by a power of two, cheaper than the sigmoid."""
    return x + x / (1 + exp2(z))


def _scale_mixed(x: Tensor, c: Tensor, s: Tensor, mix: Callable[..., Tensor]) -> Tensor:
    y = torch.empty_like(x)
    for yi, xi, ci, si in cut(y, x, c, s):
        mix(ci, si, out=yi).mul_(xi)
    return y


_RULES: dict[Rule, type[_How]] = {
    "product": _Product,
    "sum": _Sum,
    "max": _Max,
    "residual_product": _ResidualProduct,
    "residual_sum": _ResidualSum,
    "residual_max": _ResidualMax,
}
