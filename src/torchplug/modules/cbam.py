"""CBAM: gate the channels by pooled descriptors, then the positions by channel statistics.

Equation (Woo et al., section 3, equations 1 to 3), with x the map and MLP shared by the pools::

    x' = x  * sigmoid(MLP(mean_hw(x)) + MLP(max_hw(x)))
    y  = x' * sigmoid(BN(conv7x7([max_c(x'); mean_c(x')])))

Compared with the authors' code (Jongchan/attention-module, commit 459efad0). The batch norm after
the 7x7 convolution is in the code and not in the paper's formula.

Deviations: none from the code; the pooled values of all pools pass the MLP in one call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.kernels import apply_gate, pool_positions, scale_in_turn, see_around
from torchplug.nn import (
    build_gate,
    build_norm,
    check_choice,
    check_odd,
    check_several,
    hidden_width,
    linear_to_conv,
)

NormLayer = Callable[..., nn.Module]
Pool = Literal["avg", "max", "lp", "lse"]
Order = Literal["channel_first", "spatial_first"]
_POOLS = ("avg", "max", "lp", "lse")


class ChannelGate(nn.Module):
    """The channel gate: a bottleneck shared by several global pools, summed before the sigmoid.

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width, rounded down.
        hidden_channels: the hidden width itself; overrides ``reduction``.
        bias: whether both layers have a bias; timm's has none.
        pools: any of ``"avg"``, ``"max"``, ``"lp"`` (the L2 norm over all positions) and ``"lse"``
            (log-sum-exp).
        gate_layer: gate, between 0 and 1; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)``.

    >>> ChannelGate(32)(torch.randn(1, 32, 3, 5)).shape
    torch.Size([1, 32, 3, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_channels: int | None = None,
        bias: bool = True,
        pools: tuple[Pool, ...] = ("avg", "max"),
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_several("pools", pools)
        for pool in pools:
            check_choice("pools", pool, _POOLS)
        if not pools:
            raise ValueError(explain("a channel gate needs a pool", "none", "pass ('avg', 'max')"))
        self.pools = tuple(pools)
        self.hidden_channels = hidden_width(
            channels, reduction=reduction, hidden_channels=hidden_channels
        )
        factory = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, self.hidden_channels, 1, bias=bias, **factory)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(self.hidden_channels, channels, 1, bias=bias, **factory)
        self.gate = build_gate(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from PyTorch's default and set biases to zero, as the authors do."""
        for layer in (self.reduce, self.expand):
            layer.reset_parameters()
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def find_gate(self, x: Tensor) -> Tensor:
        """Return the gate of each channel, ``(N, C, 1, 1)``."""
        return self.pass_with_gate(x)[1]

    def pass_with_gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x``, to be scaled by operators of ``torchplug.kernels``, and its gate."""
        x, mean, *largest = pool_positions(x, maximum="max" in self.pools)
        known = {"avg": mean, **({"max": largest[0]} if largest else {})}
        pooled = [known[pool] if pool in known else _pool(x, pool) for pool in self.pools]
        scores = self.expand(self.act(self.reduce(torch.cat(pooled, dim=2))))  # (n, c, pools, 1)
        return x, self.gate(scores.sum(2, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with every channel scaled by its gate."""
        return apply_gate(*self.pass_with_gate(x))


def _pool(x: Tensor, pool: Pool) -> Tensor:
    """Pool every channel over all positions, ``(N, C, 1, 1)``."""
    if pool == "lp":
        return torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return x.logsumexp((2, 3), keepdim=True)


class SpatialGate(nn.Module):
    """The spatial gate: a wide convolution over the maximum and the mean of the channels.

    Args:
        kernel_size: odd; 7 in the paper.
        norm_layer: norm of the one-channel result, or ``None``. The released code has a batch norm
            with momentum 0.01 whose weight starts at 0, so the gate starts at 0.5 everywhere.
            A batch norm class gets that momentum; a ``functools.partial`` keeps its own.
        gate_layer: gate, between 0 and 1; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any width.

    >>> SpatialGate()(torch.ones(1, 8, 3, 5)).unique()
    tensor([0.5000], grad_fn=<Unique2Backward0>)
    """

    def __init__(
        self,
        *,
        kernel_size: int = 7,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        factory = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **factory)
        self.norm = (
            build_norm(norm_layer, 1, **factory) if norm_layer is not None else nn.Identity()
        )
        if isinstance(self.norm, _BatchNorm) and isinstance(norm_layer, type):
            self.norm.momentum = 0.01
        self.gate = build_gate(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel as He et al. and set the norm's weight to zero, as the authors do."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        reset = getattr(self.norm, "reset_parameters", None)
        if callable(reset):
            reset()
        weight = getattr(self.norm, "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)

    def find_gate(self, x: Tensor) -> Tensor:
        """Return the gate of each position, ``(N, 1, H, W)``."""
        return self.find_gate_of([x.amax(1, keepdim=True), x.mean(1, keepdim=True)])

    def find_gate_of(self, statistics: Sequence[Tensor]) -> Tensor:
        """Return the gate made of maximum and mean over the channels, ``(N, 1, H, W)`` each."""
        return self.gate(self.norm(see_around(self.conv, statistics)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with every position scaled by its gate."""
        return apply_gate(x, self.find_gate(x))


class CBAM(nn.Module):
    """Convolutional block attention module: the channel gate, then the spatial gate.

    At initialization both gates are near 0.5, so in a trained network start it as the identity
    (``plug`` does).

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width of the channel gate, rounded down; 16 in
            the paper.
        hidden_channels: the hidden width itself; overrides ``reduction``.
        bias: whether the layers of the channel gate have a bias; timm's have none.
        pools: global pools of the channel gate.
        spatial: whether there is a spatial gate; the paper's ablation leaves it out.
        order: which gate comes first: ``"channel_first"``, or ``"spatial_first"`` as in the paper's
            ablation, which found it a little worse.
        kernel_size: of the spatial gate, odd.
        norm_layer: norm of the spatial gate, or ``None``, as in the paper's formula.
        gate_layer: gate of both; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``. On a map of 1 x 1 a batch of one
        cannot be trained with batch norm.

    Raises:
        ValueError: if the bottleneck would have no channel or the kernel is even.

    Source:
        CBAM: Convolutional Block Attention Module, arXiv 1807.06521; Jongchan/attention-module.

    >>> CBAM(32)(torch.randn(2, 32, 7, 9)).shape
    torch.Size([2, 32, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_channels: int | None = None,
        bias: bool = True,
        pools: tuple[Pool, ...] = ("avg", "max"),
        spatial: bool = True,
        order: Order = "channel_first",
        kernel_size: int = 7,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("order", order, ("channel_first", "spatial_first"))
        factory = {"device": device, "dtype": dtype}
        self.channel = ChannelGate(
            channels,
            reduction=reduction,
            hidden_channels=hidden_channels,
            bias=bias,
            pools=pools,
            gate_layer=gate_layer,
            **factory,
        )
        self.spatial = (
            SpatialGate(
                kernel_size=kernel_size, norm_layer=norm_layer, gate_layer=gate_layer, **factory
            )
            if spatial
            else None
        )
        self.channels, self.hidden_channels = channels, self.channel.hidden_channels
        self.order = order
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start both gates as the authors do."""
        self.channel.reset_parameters()
        if self.spatial is not None:
            self.spatial.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled by one gate, then by the other."""
        if self.spatial is None or self.order == "spatial_first":
            return self.channel(x if self.spatial is None else self.spatial(x))
        x, channel = self.channel.pass_with_gate(x)
        return scale_in_turn(x, channel, self.spatial.find_gate_of)

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        order = "" if self.order == "channel_first" else f", order={self.order!r}"
        return f"channels={self.channels}, hidden_channels={self.hidden_channels}{order}"


def _flops(module: CBAM, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    flops = 4 * len(module.channel.pools) * channels * module.hidden_channels
    if module.spatial is not None:
        kernel = module.spatial.conv.kernel_size[0]
        flops += 4 * kernel * kernel * height * width
    return batch * flops


def _count(channels: int, hidden: int, *, kernel: int, norm: bool, bias: bool = True) -> int:
    mlp = 2 * channels * hidden + (channels + hidden if bias else 0)
    return mlp + 2 * kernel * kernel + (2 if norm else 0)


def _swap_statistics(state: State) -> State:
    """Timm concatenates mean and maximum in the other order."""
    name = "spatial.conv.weight"
    return {**state, name: state[name].flip(1)} if name in state else state


CARD = Card(
    key="cbam",
    factory=CBAM,
    title="Convolutional Block Attention Module",
    summary="Scale each channel by a gate from pooled descriptors, then each position by another.",
    equation=(
        "x' = x * sigmoid(MLP(avg x) + MLP(max x)); "
        "y = x' * sigmoid(BN(conv7x7([max_c x'; mean_c x'])))"
    ),
    paper=Paper(
        title="CBAM: Convolutional Block Attention Module",
        authors="Woo, Park, Lee, Kweon",
        venue="ECCV",
        year=2018,
        arxiv="1807.06521",
        code="https://github.com/Jongchan/attention-module",
    ),
    kind="refine",
    place=Place(
        role="bottleneck",
        note="on the output of every residual branch, after its last norm and before the add",
    ),
    identity_at_start=False,
    min_channels=16,
    flops=_flops,
    samples=(
        Sample(
            args=(32,),
            shape=(2, 32, 9, 7),
            parameters=_count(32, 2, kernel=7, norm=True),
        ),
        Sample(
            args=(12,),
            options={
                "reduction": 4,
                "bias": False,
                "pools": ("avg", "max", "lp", "lse"),
                "kernel_size": 3,
                "norm_layer": None,
                "gate_layer": nn.Hardsigmoid,
            },
            shape=(2, 12, 6, 8),
            parameters=_count(12, 3, kernel=3, norm=False, bias=False),
        ),
        Sample(
            args=(10,),
            options={"hidden_channels": 4, "pools": ("max",), "spatial": False},
            shape=(2, 10, 5, 6),
            parameters=_count(10, 4, kernel=0, norm=False),
        ),
        Sample(
            args=(16,),
            options={"order": "spatial_first", "kernel_size": 5},
            shape=(2, 16, 7, 9),
            parameters=_count(16, 1, kernel=5, norm=True),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={
                "ChannelGate.mlp.1": "channel.reduce",
                "ChannelGate.mlp.3": "channel.expand",
                "SpatialGate.spatial.conv": "spatial.conv",
                "SpatialGate.spatial.bn": "spatial.norm",
            },
            transform=linear_to_conv,
        ),
        CheckpointFormat(
            source="pytorchcv",
            rename={
                "ch_gate.mlp.fc1": "channel.reduce",
                "ch_gate.mlp.fc2": "channel.expand",
                "sp_gate.conv.conv": "spatial.conv",
                "sp_gate.conv.bn": "spatial.norm",
            },
            transform=linear_to_conv,
        ),
        CheckpointFormat(
            source="timm",
            options={"bias": False},
            rename={
                "channel.fc1": "channel.reduce",
                "channel.fc2": "channel.expand",
                "spatial.conv.conv": "spatial.conv",
                "spatial.conv.bn": "spatial.norm",
            },
            transform=_swap_statistics,
        ),
    ),
    deviations=(
        "the spatial gate has the batch norm of the released code, which the paper's formula "
        "leaves out; norm_layer=None is the formula.",
    ),
)
