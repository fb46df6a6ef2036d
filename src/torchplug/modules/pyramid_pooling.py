"""Pyramid pooling: every position sees averages of the map over grids of several sizes.

Equation (Zhao et al., section 3.2 and figure 3), with x the map and b the side of a grid::

    p_b = relu(BN(W_b average_b(x)))                    at b x b positions
    y   = relu(BN(W * [x, up(p_1), up(p_2), up(p_3), up(p_6)]))

The module is the concatenation; W, a 3x3 convolution, opens the authors' head and is part of this
class because a concatenation fits no place of a network. Upsampling is linear and W is linear, so
W's taps meet each p_b at its own b x b positions and no upsampled map is ever made: the same
numbers for half the work of the head at 60 x 60 positions.

Compared with the authors' successor code (hszhao/semseg, commit 4f274c3f), with mmsegmentation
1.2.2, and with Lextal/pspnet-pytorch (commit 4eb6ab61), a popular copy without norms, without
reduction, with another order of concatenation and with a 1x1 kernel for W.

Deviations: none from that code. The original Caffe definition concatenates x, 6, 3, 2, 1.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.nn import (
    ActLayer,
    ConvNormAct,
    NormLayer,
    check_batch,
    check_choice,
    check_fraction,
    check_odd,
    check_positive,
    check_several,
    conv_upsampled,
    hidden_width,
    pool_to,
    rename_matches,
    reset_layers,
)

Pool = Literal["average", "max"]


class PyramidPooling(nn.Module):
    """Pyramid pooling module of PSPNet, with the convolution that follows it.

    Args:
        in_channels: width of the map.
        out_channels: width of the result, 512 in the paper. ``None`` stops at the concatenation
            of the map and its upsampled averages, which is what the authors call the module.
        bins: sides of the grids, in the order of concatenation.
        pool: ``"average"`` of each cell as in the paper's networks, or its ``"max"``, which the
            paper compares.
        reduction: divisor that gives the width of each pooled branch; the number of bins if not
            given, so that all branches together are as wide as the map.
        hidden_channels: that width itself; overrides ``reduction``. mmsegmentation takes 512.
        kernel_size: of the last convolution; 3 in the authors' head, 1 in many copies.
        align_corners: whether upsampling puts the corner cells on the corner positions. The authors
            do; mmsegmentation and PyTorch's default do not. Trained weights need their own.
        norm_layer: norm of every convolution, or ``None``: then they have a bias. Batch norm after
            the grid of one cell cannot train on one image a device; a group norm can.
        branch_act_layer: activation of the pooled branches, or ``None``.
        act_layer: activation of the result.
        dropout: share of the result's channels that training sets to zero.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C_in, H, W) -> (N, C_out, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if there is no bin, or a branch would have no channel; in training, if batch
            norm sees one image.

    Source:
        Pyramid Scene Parsing Network, arXiv 1612.01105; hszhao/semseg.

    >>> import torch
    >>> PyramidPooling(64, 32)(torch.randn(2, 64, 9, 13)).shape
    torch.Size([2, 32, 9, 13])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        pool: Pool = "average",
        reduction: int | None = None,
        hidden_channels: int | None = None,
        kernel_size: int = 3,
        align_corners: bool = True,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        branch_act_layer: ActLayer | None = nn.ReLU,
        act_layer: ActLayer = nn.ReLU,
        dropout: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        check_several("bins", bins)
        if not bins or min(bins) < 1:
            fix = "pass (1, 2, 3, 6)"
            raise ValueError(explain("bins are sides of one grid or more", f"bins={bins}", fix))
        check_choice("pool", pool, ("average", "max"))
        check_fraction("dropout", dropout)
        divisor = len(bins) if reduction is None else reduction
        check_positive({"in_channels": in_channels})
        hidden = hidden_width(in_channels, reduction=divisor, hidden_channels=hidden_channels)
        self.in_channels, self.hidden_channels = in_channels, hidden
        self.bins, self.pool, self.align_corners = tuple(bins), pool, align_corners
        self.out_channels = in_channels + len(bins) * hidden
        layers: dict[str, Any] = {"norm_layer": norm_layer, "device": device, "dtype": dtype}
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, hidden, act_layer=branch_act_layer, **layers) for _ in bins
        )
        self.project: ConvNormAct | None = None
        if out_channels is not None:
            check_positive({"out_channels": out_channels})
            concatenated, self.out_channels = self.out_channels, out_channels
            self.project = ConvNormAct(
                concatenated, out_channels, kernel_size, act_layer=act_layer, **layers
            )
        self.dropout = nn.Dropout2d(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default, as the authors' code does."""
        reset_layers(self)

    def find_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the pooled branches, ``(N, hidden, b, b)`` for each bin ``b``."""
        pyramid = []
        for bins, branch in zip(self.bins, self.branches, strict=True):
            pooled = pool_to(x, bins, maximum=self.pool == "max")
            for layer in branch.children():
                check_batch(pooled, layer, owner="PyramidPooling")
            pyramid.append(branch(pooled))
        return pyramid

    def forward(self, x: Tensor) -> Tensor:
        """Return what the map and its averages say together."""
        size, pyramid = x.shape[2:], self.find_pyramid(x)
        if self.project is None or not self.project.is_bare():
            upsampled = [
                F.interpolate(p, size=size, mode="bilinear", align_corners=self.align_corners)
                for p in pyramid
            ]
            y = torch.cat([x, *upsampled], 1)
            return y if self.project is None else self.dropout(self.project(y))
        conv = self.project.conv
        own, pooled = conv.weight.tensor_split([self.in_channels], 1)
        y = F.conv2d(x, own, conv.bias, padding=conv.kernel_size[0] // 2)
        y = y + conv_upsampled(pyramid, pooled, size, align_corners=self.align_corners)
        return self.dropout(self.project.finish(y))

    def extra_repr(self) -> str:
        """Name the resolved widths and choices."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, bins={self.bins}, pool={self.pool!r}, "
            f"align_corners={self.align_corners}"
        )


def _flops(module: PyramidPooling, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    hidden = module.hidden_channels
    branches = sum(bins**2 * channels * hidden for bins in module.bins)
    if module.project is None:
        return 2 * batch * branches
    kernel, out = module.project.conv.kernel_size[0], module.out_channels
    own = height * width * channels * out * kernel**2
    pooled = sum(bins**2 * hidden * out * kernel**2 for bins in module.bins)
    cells = [kernel * bins for bins in module.bins]
    spread = out * height * (sum(side**2 for side in cells) + sum(cells) * width)
    return 2 * batch * (branches + own + pooled + spread)


def _put_map_first(state: State) -> State:
    """Reorder W's input from grids, map to map, grids, and add the biases that are zero."""
    state = dict(state)
    branches = [name for name in state if name.startswith("branches.")]
    for name in branches:
        weight = state[name]
        state[name.replace("weight", "bias")] = weight.new_zeros(weight.shape[0])
    if "project.conv.weight" in state and branches:
        weight, width = state["project.conv.weight"], state[branches[0]].shape[1]
        state["project.conv.weight"] = torch.cat([weight[:, -width:], weight[:, :-width]], 1)
    return state


def _read_copy(state: State) -> State:
    return _put_map_first(_RENAME_COPY(state))


_RENAME_COPY = rename_matches(
    {r"^stages\.(\d+)\.1\.": r"branches.\1.conv.", r"^bottleneck\.": "project.conv."}
)


def _count(width: int, out: int | None, *, hidden: int, bins: int = 4, taps: int = 9) -> int:
    branches = bins * (width * hidden + 2 * hidden)
    if out is None:
        return branches
    return branches + taps * (width + bins * hidden) * out + 2 * out


CARD = Card(
    key="ppm",
    factory=PyramidPooling,
    title="Pyramid Pooling Module",
    summary="Join the map with its averages over grids of 1, 4, 9 and 36 cells.",
    equation="y = relu(BN(W * [x, up(p_1), up(p_2), up(p_3), up(p_6)]))",
    paper=Paper(
        title="Pyramid Scene Parsing Network",
        authors="Zhao, Shi, Qi, Wang, Jia",
        venue="CVPR",
        year=2017,
        arxiv="1612.01105",
        code="https://github.com/hszhao/semseg",
    ),
    kind="context",
    place=Place(
        role="backbone_end",
        note="on the last map of a backbone that keeps an eighth of the resolution",
    ),
    identity_at_start=False,
    min_channels=4,
    flops=_flops,
    samples=(
        Sample(args=(12, 7), shape=(2, 12, 9, 13), parameters=_count(12, 7, hidden=3)),
        Sample(
            args=(9, 6),
            options={
                "bins": (1, 5),
                "hidden_channels": 4,
                "kernel_size": 1,
                "align_corners": False,
                "branch_act_layer": None,
            },
            shape=(2, 9, 7, 8),
            parameters=_count(9, 6, hidden=4, bins=2, taps=1),
        ),
        Sample(
            args=(10, None),
            options={"bins": (2, 3), "reduction": 5, "norm_layer": None},
            shape=(2, 10, 6, 9),
            parameters=2 * (10 * 2 + 2),
        ),
        Sample(
            args=(8, 5),
            options={"pool": "max", "bins": (1, 2, 5), "hidden_channels": 4},
            shape=(2, 8, 7, 9),
            parameters=_count(8, 5, hidden=4, bins=3),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={"cls.0": "project.conv", "cls.1": "project.norm", "cls.4": None},
            transform=rename_matches(
                {
                    r"^(ppm\.)?features\.(\d+)\.1\.": r"branches.\2.conv.",
                    r"^(ppm\.)?features\.(\d+)\.2\.": r"branches.\2.norm.",
                }
            ),
        ),
        CheckpointFormat(
            source="mmseg",
            options={"align_corners": False},
            rename={
                "bottleneck.conv": "project.conv",
                "bottleneck.bn": "project.norm",
                "conv_seg": None,
            },
            transform=rename_matches(
                {
                    r"^(psp_modules\.)?(\d+)\.1\.conv\.": r"branches.\2.conv.",
                    r"^(psp_modules\.)?(\d+)\.1\.bn\.": r"branches.\2.norm.",
                }
            ),
        ),
        CheckpointFormat(
            source="lextal",
            options={
                "kernel_size": 1,
                "align_corners": False,
                "norm_layer": None,
                "branch_act_layer": None,
            },
            rename={},
            transform=_read_copy,
        ),
    ),
)
