"""Spatial pyramid pooling of detectors: every position sees maxima of windows of several sizes.

Equation (YOLOv3-SPP, after He et al., section 2.2), with x the map and k the side of a window::

    h = act(BN(W1 x))
    y = act(BN(W2 [h, max_5(h), max_9(h), max_13(h)]))          at stride 1: the map keeps its size

A maximum over 9 positions is a maximum over 5 of maxima over 5, and a square window is a column of
rows: the three pools are one chain of short one-dimensional pools, 30 comparisons for an output
instead of 275. The outside of the map counts as minus infinity, so the border is exact too.

Compared with darknet's own C code and the yolov3-spp definition (pjreddie/darknet, commit
f6afaabc), ultralytics 8.4.190 and YOLOX (commit 6ddff482). Deviations:

- He et al. pool to a fixed number of values for a classifier; a detector's SPP keeps the map.
- where a window holds its maximum twice, the gradient may go to the other of the two.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.errors import explain
from torchplug.nn import (
    ActLayer,
    ConvNormAct,
    NormLayer,
    check_choice,
    check_odd,
    check_positive,
    check_several,
    hidden_width,
    reset_layers,
)

Order = Literal["map_first", "map_last"]


class SpatialPyramidPooling(nn.Module):
    """Spatial pyramid pooling between two 1x1 convolutions.

    Args:
        in_channels: width of the map.
        out_channels: width of the result; ``None`` stops at the concatenation.
        kernel_sizes: sides of the windows, odd and rising.
        reduction: divisor that gives the width of the first convolution; 2 in ultralytics and
            YOLOX. ``None`` leaves it out and pools the map itself, as YOLOv3-SPP does.
        hidden_channels: that width itself; overrides ``reduction``.
        order: of the concatenation: ``"map_first"`` and rising windows, or ``"map_last"`` after
            falling windows, as in darknet. Trained weights need their own.
        norm_layer: norm of both convolutions, or ``None``: then they have a bias.
        act_layer: activation of both; SiLU in YOLOv5 and later, a leaky ReLU of 0.1 before:
            ``functools.partial(torch.nn.LeakyReLU, 0.1)``.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C_in, H, W) -> (N, C_out, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if there is no window, or the sides are not odd and rising.

    Source:
        Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition,
        arXiv 1406.4729; pjreddie/darknet, cfg/yolov3-spp.cfg.

    >>> SpatialPyramidPooling(64, 32)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 32, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        *,
        kernel_sizes: Sequence[int] = (5, 9, 13),
        reduction: int | None = 2,
        hidden_channels: int | None = None,
        order: Order = "map_first",
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer = nn.SiLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("order", order, ("map_first", "map_last"))
        _check_windows(kernel_sizes)
        reduces = reduction is not None or hidden_channels is not None
        divisor = 1 if reduction is None else reduction
        check_positive({"in_channels": in_channels})
        hidden = hidden_width(in_channels, reduction=divisor, hidden_channels=hidden_channels)
        self.in_channels, self.hidden_channels = in_channels, hidden
        self.kernel_sizes, self.order = tuple(kernel_sizes), order
        self.out_channels = (1 + len(kernel_sizes)) * hidden
        layers: dict[str, Any] = {
            "norm_layer": norm_layer,
            "act_layer": act_layer,
            "device": device,
            "dtype": dtype,
        }
        self.reduce = ConvNormAct(in_channels, hidden, **layers) if reduces else None
        self.project: ConvNormAct | None = None
        if out_channels is not None:
            check_positive({"out_channels": out_channels})
            concatenated, self.out_channels = self.out_channels, out_channels
            self.project = ConvNormAct(concatenated, out_channels, **layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default, as ultralytics and YOLOX do."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the map and its maxima say together."""
        maps = [x if self.reduce is None else self.reduce(x)]
        for smaller, larger in pairwise((1, *self.kernel_sizes)):
            maps.append(_pool(maps[-1], larger - smaller + 1))
        y = torch.cat(maps if self.order == "map_first" else maps[::-1], 1)
        return y if self.project is None else self.project(y)

    def extra_repr(self) -> str:
        """Name the resolved widths and windows."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, kernel_sizes={self.kernel_sizes}, "
            f"order={self.order!r}"
        )


def _check_windows(kernel_sizes: Sequence[int]) -> None:
    check_several("kernel_sizes", kernel_sizes)
    for index, size in enumerate(kernel_sizes):
        check_odd(f"kernel_sizes[{index}]", size)
    if not kernel_sizes or any(a >= b for a, b in pairwise((1, *kernel_sizes))):
        rule = "kernel_sizes rise from more than 1"
        raise ValueError(explain(rule, f"kernel_sizes={kernel_sizes}", "pass (5, 9, 13)"))


def _pool(x: Tensor, size: int) -> Tensor:
    """Return the maximum over a square window around each position: rows, then columns."""
    rows = F.max_pool2d(x, (1, size), stride=1, padding=(0, size // 2))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(size // 2, 0))


def _flops(module: SpatialPyramidPooling, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    layers = [layer for layer in (module.reduce, module.project) if layer is not None]
    return 2 * batch * height * width * sum(layer.conv.weight.numel() for layer in layers)


def _count(width: int, out: int, *, hidden: int, windows: int = 3) -> int:
    return width * hidden + 2 * hidden + (1 + windows) * hidden * out + 2 * out


CARD = Card(
    key="spp",
    factory=SpatialPyramidPooling,
    title="Spatial Pyramid Pooling",
    summary="Join the map with the maxima of windows of 5, 9 and 13 around each position.",
    equation="y = act(BN(W2 [h, max_5(h), max_9(h), max_13(h)])), h = act(BN(W1 x))",
    paper=Paper(
        title="Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
        authors="He, Zhang, Ren, Sun",
        venue="ECCV",
        year=2014,
        arxiv="1406.4729",
        code="https://github.com/pjreddie/darknet",
    ),
    kind="context",
    place=Place(
        role="backbone_end",
        note="on the map of stride 32, where YOLOv3-SPP has it at the start of its neck",
    ),
    identity_at_start=False,
    min_channels=2,
    flops=_flops,
    samples=(
        Sample(args=(12, 7), shape=(2, 12, 9, 13), parameters=_count(12, 7, hidden=6)),
        Sample(
            args=(8, 5),
            options={"kernel_sizes": (3, 7), "hidden_channels": 3, "order": "map_last"},
            shape=(2, 8, 6, 5),
            parameters=_count(8, 5, hidden=3, windows=2),
        ),
        Sample(
            args=(6, 4),
            options={"reduction": None, "act_layer": nn.ReLU, "norm_layer": None},
            shape=(2, 6, 8, 7),
            parameters=4 * 6 * 4 + 4,
        ),
        Sample(
            args=(9, None),
            options={"reduction": 3},
            shape=(2, 9, 5, 6),
            parameters=9 * 3 + 2 * 3,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="darknet", options={"reduction": None, "order": "map_last"}, rename={}
        ),
        CheckpointFormat(
            source="ultralytics",
            rename={
                "cv1.conv": "reduce.conv",
                "cv1.bn": "reduce.norm",
                "cv2.conv": "project.conv",
                "cv2.bn": "project.norm",
            },
        ),
        CheckpointFormat(
            source="yolox",
            rename={
                "conv1.conv": "reduce.conv",
                "conv1.bn": "reduce.norm",
                "conv2.conv": "project.conv",
                "conv2.bn": "project.norm",
            },
        ),
    ),
    deviations=(
        "the map keeps its size, as in detectors; the paper pools to a fixed number of values.",
        "where a window holds its maximum twice, the gradient may go to the other of the two.",
    ),
)
