"""Asymmetric convolution: a square kernel, a row and a column, added; one kernel afterwards.

Equation (Ding et al., section 3), with K the kernel size and no bias in any convolution::

    y = BN(conv_KxK(x)) + BN(conv_1xK(x)) + BN(conv_Kx1(x))

In evaluation the sum is one KxK convolution (figure 2): each norm moves into its kernel, the row
is added to the middle row of the square and the column to its middle column.

Compared with the authors' code (DingXiaoH/ACNet, commit 748fb0c7), in both forms.

Deviations: dilation works, where the authors' code raises because the padding of its row and
column ignores it; a norm without weights can be merged, which their code cannot.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.errors import explain
from torchplug.nn import (
    affine_of,
    build_norm,
    check_choice,
    check_divisible,
    check_natural,
    check_odd,
    check_positive,
    check_several,
    replace_weights,
    reset_layers,
)

NormLayer = Callable[..., nn.Module]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class AsymmetricConv(nn.Module):
    """Asymmetric convolution block, in the place of a convolution and its norm.

    Three convolutions see the same positions: the row and the column lie on the skeleton of the
    square kernel and strengthen it. The activation of the replaced convolution stays after it.
    Train this form, then :meth:`merge` it: the network that ships has the size and speed that it
    had before, and biases.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: K, odd; the authors leave 1x1 and kernels from 7x7 as they are.
        stride: of all three.
        padding: of the square kernel; by default what keeps the size at stride 1.
        dilation: of all three.
        groups: of all three; must divide both widths.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        norm_layer: norm of each convolution. Set eps with a partial:
            ``functools.partial(torch.nn.BatchNorm2d, eps=1e-3)``.
        gammas: what the norms of the square, the row and the column multiply by at the start. The
            authors take ``(1/3, 1/3, 1/3)`` for CIFAR; ``(1, 0, 0)`` starts as the plain
            convolution.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H', W')`` with the H' and W' of a convolution
        with these arguments: ``ceil(H / stride)`` by default.

    Raises:
        ValueError: if ``kernel_size`` is even or ``groups`` does not divide a width.

    Source:
        ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
        Blocks, arXiv 1908.03930; DingXiaoH/ACNet.

    >>> block = AsymmetricConv(16, 32).eval()
    >>> block(torch.randn(2, 16, 7, 9)).shape
    torch.Size([2, 32, 7, 9])
    >>> block.merge()
    Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        norm_layer: NormLayer = nn.BatchNorm2d,
        gammas: Sequence[float] = (1.0, 1.0, 1.0),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        widths = {"in_channels": in_channels, "out_channels": out_channels}
        check_divisible(widths, groups, "groups")
        check_positive({"stride": stride, "dilation": dilation})
        check_choice("padding_mode", padding_mode, get_args(PaddingMode))
        _check_gammas(gammas)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.gammas = kernel_size, tuple(gammas)
        reach = dilation * (kernel_size // 2)
        padding = reach if padding is None else padding
        check_natural({"padding": padding})
        # The middle row of the square kernel starts `reach` below its top. If the padding is less,
        # the row's first position lies inside the map: rows are cut off instead.
        margin, self.crop = max(padding - reach, 0), max(reach - padding, 0)
        factory = {"device": device, "dtype": dtype}

        def convolve(size: tuple[int, int], border: tuple[int, int]) -> nn.Conv2d:
            return nn.Conv2d(
                in_channels,
                out_channels,
                size,
                stride=stride,
                padding=border,
                dilation=dilation,
                groups=groups,
                bias=False,
                padding_mode=padding_mode,
                **factory,
            )

        self.square = convolve((kernel_size, kernel_size), (padding, padding))
        self.square_norm = build_norm(norm_layer, out_channels, **factory)
        self.horizontal = convolve((1, kernel_size), (margin, padding))
        self.horizontal_norm = build_norm(norm_layer, out_channels, **factory)
        self.vertical = convolve((kernel_size, 1), (padding, margin))
        self.vertical_norm = build_norm(norm_layer, out_channels, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels from PyTorch's default, as the authors do, and set the gammas."""
        reset_layers(self)
        norms = (self.square_norm, self.horizontal_norm, self.vertical_norm)
        for norm, gamma in zip(norms, self.gammas, strict=True):
            weight = getattr(norm, "weight", None)
            if isinstance(weight, Tensor):
                nn.init.constant_(weight, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the three normalized convolutions."""
        rows = columns = x
        if self.crop:
            rows = x[:, :, self.crop : -self.crop]
            columns = x[..., self.crop : -self.crop]
        y = self.square_norm(self.square(x))
        y = y + self.horizontal_norm(self.horizontal(rows))
        return y + self.vertical_norm(self.vertical(columns))

    @torch.no_grad()
    def merge(self) -> nn.Conv2d:
        """Return the one convolution that computes the same in evaluation mode.

        Raises:
            UsageError: if a norm is in training mode or is not a batch norm with running
                statistics.
        """
        middle = self.kernel_size // 2
        weight, bias = _fold(self.square, self.square_norm)
        row, row_bias = _fold(self.horizontal, self.horizontal_norm)
        column, column_bias = _fold(self.vertical, self.vertical_norm)
        weight = weight + F.pad(row, (0, 0, middle, middle)) + F.pad(column, (middle, middle))
        merged = copy.deepcopy(self.square)
        return replace_weights(merged, weight, bias + row_bias + column_bias)

    def extra_repr(self) -> str:
        """Name the widths."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size={self.kernel_size}"
        )


def _fold(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale, shift = affine_of(norm)
    return conv.weight * scale[:, None, None, None], shift


def _check_gammas(gammas: Sequence[float]) -> None:
    check_several("gammas", gammas)
    if len(gammas) != 3:
        rule = "each of three norms has a gamma to start from"
        raise ValueError(explain(rule, f"gammas={gammas}", "pass three numbers"))


def _flops(module: AsymmetricConv, shape: tuple[int, ...]) -> int:
    kernels = (module.square, module.horizontal, module.vertical)
    positions = 1
    for size in shape[2:]:
        rows = size - 2 * module.crop + 2 * int(module.horizontal.padding[0])
        positions *= (rows - 1) // module.square.stride[0] + 1
    return 2 * shape[0] * positions * sum(conv.weight.numel() for conv in kernels)


def _count(before: int, after: int, *, kernel: int = 3, groups: int = 1) -> int:
    return before * after * (kernel**2 + 2 * kernel) // groups + 6 * after


CARD = Card(
    key="acnet",
    factory=AsymmetricConv,
    title="Asymmetric Convolution",
    summary="Add a row and a column kernel to a square one in training; merge them afterwards.",
    equation="y = BN(conv_KxK(x)) + BN(conv_1xK(x)) + BN(conv_Kx1(x))",
    paper=Paper(
        title=(
            "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric "
            "Convolution Blocks"
        ),
        authors="Ding, Guo, Ding, Han",
        venue="ICCV",
        year=2019,
        arxiv="1908.03930",
        code="https://github.com/DingXiaoH/ACNet",
    ),
    kind="conv",
    place=Place(
        role="conv3x3",
        note="in the place of every 3x3 convolution and its norm",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(args=(8, 12), shape=(2, 8, 9, 7), parameters=_count(8, 12)),
        Sample(
            args=(6, 10),
            options={
                "kernel_size": 5,
                "stride": 2,
                "groups": 2,
                "padding_mode": "replicate",
                "gammas": (1 / 3, 1 / 3, 1 / 3),
            },
            shape=(2, 6, 8, 11),
            parameters=_count(6, 10, kernel=5, groups=2),
        ),
        Sample(
            args=(4, 4),
            options={
                "dilation": 2,
                "padding": 3,
                "norm_layer": partial(nn.BatchNorm2d, eps=1e-3),
            },
            shape=(2, 4, 6, 9),
            parameters=_count(4, 4),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={
                "square_conv": "square",
                "square_bn": "square_norm",
                "hor_conv": "horizontal",
                "hor_bn": "horizontal_norm",
                "ver_conv": "vertical",
                "ver_bn": "vertical_norm",
            },
        ),
    ),
    deviations=(
        "dilation works; the authors' code raises, its padding of row and column ignores it.",
        "norms without weights can be merged; the authors' code needs them.",
    ),
)
