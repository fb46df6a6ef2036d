"""A scale and a shift for every channel of every sample in one pass, and the scale's derivative.

Batch norm with fixed statistics is ``scale * x + shift``, and its backward pass sums products: each
reads a map once, where PyTorch's products, sums and broadcasts read and write it again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_LAYOUTS = (torch.contiguous_format, torch.channels_last)
_TYPES = (torch.float32, torch.float64)
"""In half precision a batch norm has parameters of another type than the map's."""


def is_affine(scale: Tensor, *maps: Tensor) -> bool:
    """Tell whether ``scale`` is a number a channel, and the maps have one layout and full type."""
    if maps[0].dtype not in _TYPES or scale.shape != (*maps[0].shape[:2], 1, 1):
        return False
    return any(all(t.is_contiguous(memory_format=form) for t in maps) for form in _LAYOUTS)


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor, *, out: Tensor) -> Tensor:
    """Write ``x * scale + shift`` into ``out``.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> x = torch.ones(1, 2, 3, 3)
    >>> scale_and_shift(x, 2 * one, one, out=torch.empty_like(x)).unique()
    tensor([3.])
    """
    kept = {name: x.new_empty(0) for name in ("save_mean", "save_invstd")}
    for xi, yi, ai, bi, *statistics in _walk(x, out, scale.contiguous(), shift.contiguous()):
        parameters = ai.view(-1), bi.view(-1), *statistics
        torch.ops.aten.native_batch_norm.out(xi, *parameters, False, 0.0, 0.0, out=yi, **kept)
    return out


def sum_products(x: Tensor, y: Tensor, *, out: Tensor) -> Tensor:
    """Write the sum over positions of ``x * y`` into ``out``, ``(N, C, 1, 1)``.

    >>> x = torch.ones(1, 2, 3, 3)
    >>> sum_products(x, 2 * x, out=torch.empty(1, 2, 1, 1)).flatten().tolist()
    [18.0, 18.0]
    """
    differentiate = torch.ops.aten.native_batch_norm_backward
    for xi, yi, total, zeros, ones in _walk(x, y, out):
        of_scale = [False, True, False]
        parameters = ones, zeros, ones, None, None
        total.view(-1).copy_(differentiate(xi, yi, *parameters, False, 0.0, of_scale)[1])
    return out


def _walk(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the samples, or all as one of many channels, and statistics that change nothing."""
    n, c = tensors[0].shape[:2]
    if all(tensor.is_contiguous() for tensor in tensors):
        yield (
            *(tensor.flatten(0, 1)[None] for tensor in tensors),
            tensors[0].new_zeros(n * c),
            tensors[0].new_ones(n * c),
        )
        return
    statistics = tensors[0].new_zeros(c), tensors[0].new_ones(c)
    for i in range(n):
        yield *(tensor[i : i + 1] for tensor in tensors), *statistics
