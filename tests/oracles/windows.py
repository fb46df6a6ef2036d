"""Convolution as a sum over windows of a framed sample ``(C, H, W)``, and frames for it."""

import torch
from torch import Tensor


def zero_pad(sample: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """``sample`` in a frame of zeros: (above, below) and (left, right)."""
    channels, height, width = sample.shape
    framed = torch.zeros(channels, height + sum(rows), width + sum(columns), dtype=sample.dtype)
    framed[:, rows[0] : rows[0] + height, columns[0] : columns[0] + width] = sample
    return framed


def same_border(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME, from its documentation: ceil(size / stride) windows, rest at the end."""
    windows = -(-size // stride)
    total = max((windows - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def sum_windows(
    framed: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """A convolution without padding or bias, one channel and one tap at a time."""
    outer, inner, rows, columns = weight.shape
    height = (framed.shape[1] - dilation * (rows - 1) - 1) // stride + 1
    width = (framed.shape[2] - dilation * (columns - 1) - 1) // stride + 1
    result = torch.zeros(outer, height, width, dtype=framed.dtype)
    for out in range(outer):
        first = out // (outer // groups) * inner
        for channel in range(inner):
            for row in range(rows):
                for column in range(columns):
                    top, left = row * dilation, column * dilation
                    window = framed[
                        first + channel,
                        top : top + (height - 1) * stride + 1 : stride,
                        left : left + (width - 1) * stride + 1 : stride,
                    ]
                    result[out] += weight[out, channel, row, column] * window
    return result
