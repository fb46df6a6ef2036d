"""Pool a map to a small grid, and convolve a small grid as if it had been upsampled first.

Adaptive average pooling and bilinear upsampling are linear in each direction, so both are products
with two small matrices. The exporter to ONNX gives wrong numbers for an adaptive pool of a size
that is not fixed; the products are right for every size, and so are maxima over masked positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torchplug.nn.capture import is_exporting


def pool_to(x: Tensor, bins: int, *, maximum: bool = False) -> Tensor:
    """Return adaptive averages of ``x`` on a grid of ``bins x bins``, exact also when exported.

    Args:
        x: a map ``(N, C, H, W)`` of any size.
        bins: side of the grid; it need not divide ``H`` and ``W``.
        maximum: of every cell instead of its average.

    >>> pool_to(torch.arange(9.0).view(1, 1, 3, 3), 2)
    tensor([[[[2., 3.],
              [5., 6.]]]])
    """
    if not is_exporting():
        return F.adaptive_max_pool2d(x, bins) if maximum else F.adaptive_avg_pool2d(x, bins)
    rows, columns = (_find_cells(side, bins, x) for side in x.shape[2:])
    if maximum:
        return _find_maxima(_find_maxima(x, columns).mT, rows).mT
    rows, columns = (inside.to(x.dtype) / inside.sum(1, keepdim=True) for inside in (rows, columns))
    return rows @ (x @ columns.mT)


def _find_maxima(x: Tensor, cells: Tensor) -> Tensor:
    """Return the maximum of every cell of the last axis."""
    maxima = [x.masked_fill(~inside, -torch.inf).amax(-1) for inside in cells.unbind()]
    return torch.stack(maxima, -1)


def _find_cells(size: int, bins: int, like: Tensor) -> Tensor:
    """Return ``(bins, size)``: cell i is from ``floor(i size / bins)`` up to the next."""
    position = torch.arange(size, device=like.device)
    cell = torch.arange(bins, device=like.device)[:, None]
    start = (cell * size).div(bins, rounding_mode="floor")
    end = ((cell + 1) * size + bins - 1).div(bins, rounding_mode="floor")
    return (position >= start) & (position < end)


def conv_upsampled(
    maps: Sequence[Tensor], weight: Tensor, size: Sequence[int], *, align_corners: bool
) -> Tensor:
    """Convolve a concatenation of upsampled maps without upsampling them.

    The same as ``conv2d(cat([bilinear(m, size) for m in maps], 1), weight)`` with zero padding
    that keeps the size, but each tap of the kernel meets each map at the map's own resolution.

    Args:
        maps: ``(N, C_i, n_i, m_i)`` each.
        weight: ``(C_out, sum of C_i, k, k)`` with ``k`` odd.
        size: height and width to upsample to.
        align_corners: of the bilinear upsampling.

    Returns:
        ``(N, C_out, *size)``.

    >>> maps, weight = [torch.randn(2, 3, 1, 1), torch.randn(2, 4, 2, 2)], torch.randn(5, 7, 3, 3)
    >>> conv_upsampled(maps, weight, (9, 13), align_corners=True).shape
    torch.Size([2, 5, 9, 13])
    """
    kernel = weight.shape[-1]
    parts = weight.split_with_sizes([small.shape[1] for small in maps], 1)
    strips, taps = [], []
    for small, part in zip(maps, parts, strict=True):
        rows, columns = (
            _interpolated_taps(side, cells, kernel, small, align_corners)
            for side, cells in zip(size, small.shape[2:], strict=True)
        )
        # every tap of the kernel at every cell, laid out as one grid
        products = F.conv_transpose2d(small, part.transpose(0, 1), stride=kernel)
        strips.append(rows.to(products.dtype) @ products)
        taps.append(columns.to(products.dtype))
    return torch.cat(strips, -1) @ torch.cat(taps, -1).mT


def _interpolated_taps(
    size: int, cells: int, kernel: int, like: Tensor, align_corners: bool
) -> Tensor:
    """Return ``(size, cells * kernel)``: how each position sees each cell through each tap."""
    exact = torch.promote_types(like.dtype, torch.float32)
    step = torch.arange(kernel, device=like.device) - kernel // 2
    position = torch.arange(size, device=like.device)[:, None] + step
    inside = (position >= 0) & (position < size)
    if align_corners:
        source = position.to(exact) * ((cells - 1) / max(size - 1, 1))
    else:
        source = ((position.to(exact) + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)
    cell = torch.arange(cells, device=like.device, dtype=exact)[:, None]
    share = (1 - (source[:, None] - cell).abs()).relu() * inside[:, None]
    return share.reshape(size, cells * kernel)
