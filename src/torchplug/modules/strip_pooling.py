"""Strip pooling: scale each element by a gate computed from its whole row and its whole column.

Equation (Hou et al., sections 3.1 and 3.2), with h and v spread over the whole map::

    h = BN(conv3x1(mean of x over each row))           horizontal strips, (N, C, H, 1)
    v = BN(conv1x3(mean of x over each column))        vertical strips, (N, C, 1, W)
    y = x * sigmoid(f(relu(h + v))),  f a 1x1 convolution

The paper's second module, mixed pooling, and its segmentation head are in ``mixed_pooling.py``; the
card of this file reads the weights of all three.

Compared with the authors' code (Andrew-Qibin/SPNet, commit 5e97da3d), where this module is called
SPBlock and returns the gate. A batch norm after each strip's convolution and the ReLU are in the
code and not in the paper's formula.

Deviations: none from the code.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.kernels import add_strips, pool_strips
from torchplug.nn import (
    ActLayer,
    NormLayer,
    build_act,
    build_gate,
    check_batch,
    check_odd,
    conv_norm_act,
    hidden_width,
    reset_layers,
)


class Strips(nn.Module):
    """Row and column averages, each convolved and normalized, summed: ``(N, C, H, W)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm_layer: NormLayer | None,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.horizontal, self.vertical = (
            conv_norm_act(
                in_channels,
                out_channels,
                kernel,
                norm_layer=norm_layer,
                act_layer=None,
                device=device,
                dtype=dtype,
            )
            for kernel in ((kernel_size, 1), (1, kernel_size))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the strips' sum at every position."""
        rows, columns = pool_strips(x)
        check_batch(rows, getattr(self.horizontal, "norm", None), owner="strip pooling")
        check_batch(columns, getattr(self.vertical, "norm", None), owner="strip pooling")
        return add_strips(self.horizontal(rows), self.vertical(columns))


class StripPooling(nn.Module):
    """Strip pooling module (SPM).

    At initialization the gate is near 0.5 everywhere, so in a trained network start it as the
    identity (``plug`` does).

    Args:
        channels: width of the map.
        reduction: divisor that gives the width of the strips, rounded down; 1 in the paper.
        hidden_channels: that width itself; overrides ``reduction``.
        kernel_size: length of the strips' convolutions, odd; 3 in the paper.
        norm_layer: norm of the strips, or ``None``, as in the paper's formula.
        act_layer: activation of the strips' sum.
        gate_layer: gate, between 0 and 1; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the strips would have no channel or the kernel is even; in training, if batch
            norm sees a strip of one position and one image.

    Source:
        Strip Pooling: Rethinking Spatial Pooling for Scene Parsing, arXiv 2003.13328;
        Andrew-Qibin/SPNet.

    >>> StripPooling(8)(torch.randn(2, 8, 7, 9)).shape
    torch.Size([2, 8, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 1,
        hidden_channels: int | None = None,
        kernel_size: int = 3,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        hidden = hidden_width(channels, reduction=reduction, hidden_channels=hidden_channels)
        self.channels, self.hidden_channels = channels, hidden
        self.strips = Strips(channels, hidden, kernel_size, norm_layer, device, dtype)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.expand = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.gate = build_gate(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels as He et al. by what they give (fan out), as the authors do."""
        reset_layers(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def find_gate(self, x: Tensor) -> Tensor:
        """Return the gate of every element, ``(N, C, H, W)``, between 0 and 1."""
        return self.gate(self.expand(self.act(self.strips(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with every element scaled by its gate."""
        return x * self.find_gate(x)

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return f"channels={self.channels}, hidden_channels={self.hidden_channels}"


def _flops(module: StripPooling, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    pairs = channels * module.hidden_channels
    kernel = module.strips.kernel_size
    return 2 * batch * pairs * (kernel * (height + width) + height * width)


def _count(channels: int, hidden: int, *, kernel: int = 3) -> int:
    strips = 2 * (kernel * channels * hidden + 2 * hidden)
    return strips + hidden * channels + channels


_STEMS = re.compile(r"(^|\.)stems\.0\.")


def _join_stems(state: State) -> State:
    """Lay the authors' two stems of mixed pooling side by side in one layer."""
    joined: State = {}
    for name, tensor in state.items():
        if _STEMS.search(name):
            other = state[_STEMS.sub(r"\1stems.1.", name)]
            count = tensor.ndim == 0  # of batches, which both have seen
            joined[_STEMS.sub(r"\1stem.", name)] = tensor if count else torch.cat([tensor, other])
        elif not re.search(r"(^|\.)stems\.1\.", name):
            joined[name] = tensor
    return joined


def _name_layers(prefix: str, ours: str, theirs: str) -> dict[str, str]:
    """Rename a convolution and its norm, numbered 0 and 1 by the authors."""
    return {f"{theirs}.0": f"{prefix}{ours}.conv", f"{theirs}.1": f"{prefix}{ours}.norm"}


_MIXED = {
    "stems.0": "conv1_1",
    "stems.1": "conv1_2",
    "local": "conv2_0",
    "grids.0": "conv2_1",
    "grids.1": "conv2_2",
    "strips.vertical": "conv2_3",
    "strips.horizontal": "conv2_4",
    "near": "conv2_5",
    "far": "conv2_6",
    "expand": "conv3",
}


def _rename_mixed(prefix: str = "", theirs: str = "") -> dict[str, str | None]:
    names: dict[str, str | None] = {}
    for ours, layer in _MIXED.items():
        names |= _name_layers(prefix, ours, theirs + layer)
    return names


CARD = Card(
    key="strippool",
    factory=StripPooling,
    title="Strip Pooling",
    summary="Scale each element by a gate computed from its whole row and its whole column.",
    equation="y = x * sigmoid(f(relu(BN(conv3x1(mean_w x)) + BN(conv1x3(mean_h x)))))",
    paper=Paper(
        title="Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        authors="Hou, Zhang, Cheng, Feng",
        venue="CVPR",
        year=2020,
        arxiv="2003.13328",
        code="https://github.com/Andrew-Qibin/SPNet",
    ),
    kind="refine",
    place=Place(
        role="backbone_end",
        note="on the last map of the backbone; in the authors' network inside the blocks, after "
        "the 3x3 convolution, its norm and its activation, in all of the last stage and in the "
        "last block of each earlier one",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(args=(12,), shape=(2, 12, 9, 7), parameters=_count(12, 12)),
        Sample(
            args=(8,),
            options={"reduction": 2, "kernel_size": 5, "act_layer": nn.SiLU},
            shape=(2, 8, 6, 8),
            parameters=_count(8, 4, kernel=5),
        ),
        Sample(
            args=(5,),
            options={"hidden_channels": 7, "kernel_size": 1, "gate_layer": nn.Hardsigmoid},
            shape=(2, 5, 7, 6),
            parameters=_count(5, 7, kernel=1),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={
                "conv1": "strips.horizontal.conv",
                "bn1": "strips.horizontal.norm",
                "conv2": "strips.vertical.conv",
                "bn2": "strips.vertical.norm",
                "conv3": "expand",
            },
        ),
        CheckpointFormat(source="official_mixed", rename=_rename_mixed(), transform=_join_stems),
        CheckpointFormat(
            source="official_head",
            rename={
                **_name_layers("", "reduce", "trans_layer"),
                **_rename_mixed("context.0.", "strip_pool1."),
                **_rename_mixed("context.1.", "strip_pool2."),
                **_name_layers("", "mix", "score_layer"),
                "score_layer.4": "classify",
            },
            transform=_join_stems,
        ),
        CheckpointFormat(
            source="official_pyramid",
            rename={
                name: ours
                for i in range(4)
                for name, ours in _name_layers("", f"branches.{i}", f"conv{i + 1}").items()
            },
        ),
    ),
    deviations=(
        "batch norms after the strips' convolutions and a ReLU before f, as in the authors' code; "
        "the paper's formula has neither.",
    ),
)
