"""Convolution, padding and batch norm as sums, for oracles: one sample ``(C, H, W)`` at a time."""

import math

import torch
from torch import Tensor, nn


def convolve(
    sample: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """One group and one tap at a time, without padding and without bias."""
    rows, columns = weight.shape[2:]
    height = (sample.shape[1] - dilation * (rows - 1) - 1) // stride + 1
    width = (sample.shape[2] - dilation * (columns - 1) - 1) // stride + 1
    results = []
    for own, kernel in zip(sample.chunk(groups), weight.chunk(groups), strict=True):
        total = torch.zeros(len(kernel), height, width, dtype=sample.dtype)
        for row in range(rows):
            for column in range(columns):
                window = own[:, row * dilation :: stride, column * dilation :: stride]
                window = window[:, :height, :width]
                total = total + torch.einsum("oc,chw->ohw", kernel[:, :, row, column], window)
        results.append(total)
    return torch.cat(results)


def zero_pad(sample: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Put zeros before and after the rows, and before and after the columns."""
    (top, bottom), (left, right) = rows, columns
    channels, height, width = sample.shape
    padded = torch.zeros(channels, top + height + bottom, left + width + right, dtype=sample.dtype)
    padded[:, top : top + height, left : left + width] = sample
    return padded


def same_border(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's border before and after a side: the result has ceil(size / stride) places."""
    reach = dilation * (kernel_size - 1) + 1
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def normalize(norm: nn.Module, sample: Tensor) -> Tensor:
    """Batch norm by its running statistics; anything else leaves the sample as it is."""
    if not isinstance(norm, nn.BatchNorm2d):
        return sample
    scaled = sample - norm.running_mean[:, None, None]
    scaled = scaled / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
