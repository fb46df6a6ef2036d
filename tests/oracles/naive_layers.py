"""Layers written out as sums and comparisons, for oracles: one sample ``(C, H, W)`` at a time."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def convolve(conv: nn.Conv2d, sample: Tensor) -> Tensor:
    """One tap and one group at a time, with stride, dilation and zero padding."""
    (top, left), (stride, _), (step, _) = conv.padding, conv.stride, conv.dilation
    channels, height, width = sample.shape
    rows, columns = conv.kernel_size
    padded = torch.zeros(channels, height + 2 * top, width + 2 * left, dtype=sample.dtype)
    padded[:, top : top + height, left : left + width] = sample
    out_height = (padded.shape[1] - step * (rows - 1) - 1) // stride + 1
    out_width = (padded.shape[2] - step * (columns - 1) - 1) // stride + 1
    groups = []
    for own, weight in zip(padded.chunk(conv.groups), conv.weight.chunk(conv.groups), strict=True):
        total = torch.zeros(len(weight), out_height, out_width, dtype=sample.dtype)
        for row in range(rows):
            for column in range(columns):
                window = own[:, row * step :: stride, column * step :: stride]
                window = window[:, :out_height, :out_width]
                total += torch.einsum("oc,chw->ohw", weight[:, :, row, column], window)
        groups.append(total)
    result = torch.cat(groups)
    return result if conv.bias is None else result + conv.bias[:, None, None]


def normalize(norm: nn.BatchNorm2d, sample: Tensor) -> Tensor:
    centered = sample - norm.running_mean[:, None, None]
    scaled = centered / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def run(layers: nn.Module, sample: Tensor) -> Tensor:
    """Pass ``sample`` through convolutions, batch norms and activations in their order."""
    if isinstance(layers, nn.Conv2d):
        return convolve(layers, sample)
    if isinstance(layers, nn.BatchNorm2d):
        return normalize(layers, sample)
    if isinstance(layers, nn.ReLU):
        return sample.clamp(min=0)
    if isinstance(layers, nn.LeakyReLU):
        return torch.where(sample > 0, sample, sample * layers.negative_slope)
    if isinstance(layers, nn.SiLU):
        return sample / (1 + torch.exp(-sample))
    if isinstance(layers, (nn.Dropout, nn.Dropout2d, nn.Identity)):
        return sample
    for layer in layers.children():
        sample = run(layer, sample)
    return sample


def average(sample: Tensor, bins: int) -> Tensor:
    """Average cells whose borders are rounded outwards, so that neighbors may overlap."""
    return pool(sample, bins, lambda cell: cell.sum(1) / cell.shape[1])


def pool(sample: Tensor, bins: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    height, width = sample.shape[1:]
    result = torch.empty(len(sample), bins, bins, dtype=sample.dtype)
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, math.ceil((i + 1) * height / bins))
            columns = slice(j * width // bins, math.ceil((j + 1) * width / bins))
            result[:, i, j] = reduce(sample[:, rows, columns].flatten(1))
    return result


def upsample(sample: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Mix the four nearest cells of every position."""
    result = torch.empty(len(sample), *size, dtype=sample.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            top, bottom, y = locate(i, size[0], sample.shape[1], align_corners)
            left, right, x = locate(j, size[1], sample.shape[2], align_corners)
            above = (1 - x) * sample[:, top, left] + x * sample[:, top, right]
            below = (1 - x) * sample[:, bottom, left] + x * sample[:, bottom, right]
            result[:, i, j] = (1 - y) * above + y * below
    return result


def locate(i: int, size: int, cells: int, align_corners: bool) -> tuple[int, int, float]:
    """Return the cells before and after position ``i``, and the share of the second."""
    if align_corners:
        source = i * (cells - 1) / (size - 1) if size > 1 else 0.0
    else:
        source = max((i + 0.5) * cells / size - 0.5, 0.0)
    before = min(int(source), cells - 1)
    return before, min(before + 1, cells - 1), source - before
