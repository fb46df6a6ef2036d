"""When to leave PyTorch's plain operators, and how to walk over a map in pieces.

In eager mode every operator reads its maps from memory and writes one back. The operators of this
package walk over the batch in pieces that stay in the processor's cache and write no map that
nobody asked for. Whatever transforms the program (compile, export, tracing, functorch, forward
derivatives) gets the plain operators, which it fuses or records itself, and so does a backward
pass that is to be differentiated again.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchplug.nn import is_exporting

SMALLEST = 1 << 18
"""Elements of a map below which pieces gain nothing (``python -m benchmarks.crossover``)."""

PIECE, FINE = 1 << 22, 1 << 20
"""Bytes of one piece: a few fit in the cache that the cores share, or in the core's own."""


def is_worthwhile(x: Tensor) -> bool:
    """Tell whether the pieces may stand in for the plain operators on ``x``.

    Measured on processors only; elsewhere the plain operators run, and ``torch.compile`` fuses.
    """
    return is_free(x) and x.numel() >= SMALLEST  # in this order: sizes may be symbols


def is_free(x: Tensor) -> bool:
    """Tell whether nothing transforms the program and ``x`` is a tensor of a processor."""
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not is_transformed()
    )


def is_transformed() -> bool:
    """Tell whether functorch or a forward derivative is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_compiled(x: Tensor) -> bool:
    """Tell whether a compiler is at work on a tensor of a processor, and nothing else is."""
    compiled = torch.compiler.is_compiling() and not is_exporting() and not is_transformed()
    return compiled and x.device.type == "cpu"


def is_fused(x: Tensor) -> bool:
    """Tell whether a compiler is at work on a map that is worth another form.

    What it fuses it writes itself; a convolution it leaves to a library, for which it lays the map
    out anew.
    """
    return is_compiled(x) and x.numel() >= SMALLEST


def to_fast_layout(x: Tensor, like: Tensor) -> Tensor:
    """Return a narrow map in the layout in which convolutions on processors are faster.

    A map of few channels that was made from the wide map ``like`` costs little to lay out anew.
    """
    if is_worthwhile(like) and x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def learns(*tensors: Tensor) -> bool:
    """Tell whether a gradient will be asked of any of ``tensors``."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def cut(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces of the batch of ``tensors``, about ``PIECE`` bytes of the first in each."""
    sample = max(tensors[0][:1].numel() * tensors[0].element_size(), 1)
    step = max(PIECE // sample, 1)
    return zip(*(torch.split(tensor, step) for tensor in tensors), strict=True)


def cut_finely(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces of maps, about ``FINE`` bytes of the first in each.

    Pieces of samples where those are larger: some channels of contiguous maps, some rows of
    others. A tensor that has one channel or one row is whole in each of these pieces.
    """
    first = tensors[0]
    dim = 1 if first.is_contiguous() else 2
    sample = max(first[:1].numel() * first.element_size(), 1)
    parts = min(math.ceil(sample / FINE), first.shape[dim])
    if parts <= 1:
        step = max(FINE // sample, 1)
        yield from zip(*(torch.split(tensor, step) for tensor in tensors), strict=True)
        return
    step = math.ceil(first.shape[dim] / parts)
    for one in zip(*(torch.split(tensor, 1) for tensor in tensors), strict=True):
        yield from zip(
            *(
                torch.split(part, step, dim) if part.shape[dim] > 1 else itertools.repeat(part)
                for part in one
            ),
            strict=False,
        )


def reduce_channels(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Return ``reduce(x, 1, keepdim=True)``, a sum or a maximum over the channels.

    In contiguous maps neighbors in a channel lie together and neighbors over channels far apart:
    a processor fetches ahead for few of them at a time, so groups of channels are reduced first.
    """
    if x.is_contiguous():
        for group in (16, 8):
            if x.shape[1] % group == 0:
                x = reduce(x.view(len(x), x.shape[1] // group, group, *x.shape[2:]), 2)
                break
    return reduce(x, 1, keepdim=True)


def reduce_positions(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Return ``reduce(x, (2, 3), keepdim=True)``, a mean, sum or maximum over the positions.

    In maps with channels last a compiler walks over all positions for a few channels at a time, so
    that every line of the cache comes in more than once; a row of them stays there meanwhile.
    """
    precise = x.dtype in (torch.float32, torch.float64)  # half precision would round between
    if is_fused(x) and precise and not x.is_contiguous():
        return reduce(reduce(x, 3, keepdim=True), 2, keepdim=True)
    return reduce(x, (2, 3), keepdim=True)


def differentiate(
    plain: Callable[..., Any], saved: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``plain(*saved)`` as a graph, for a second derivative."""
    inputs = [tensor.view_as(tensor) for tensor in saved]
    outputs = plain(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)


def sum_positions(x: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over positions of ``x * weights``, ``(n, c, 1, 1)``, for one piece.

    As a product of matrices where the map's layout makes it one.
    """
    if x.is_contiguous():
        with torch.autocast(x.device.type, enabled=False):
            return (x.flatten(2) @ weights.flatten(2).mT)[..., None]
    return (x * weights).sum((2, 3), keepdim=True)
