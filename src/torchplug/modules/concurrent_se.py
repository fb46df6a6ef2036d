"""Concurrent spatial and channel squeeze and excitation: one gate a channel, one a position.

Equation (Roy et al., sections 2.1 to 2.3), with u the map::

    cSE(u) = sigmoid(W2 relu(W1 mean_hw(u) + b1) + b2) * u      one gate a channel
    sSE(u) = sigmoid(w · u + b) * u                              one gate a position
    y = max(cSE(u), sSE(u))                                      or their sum

Compared with the authors' code (ai-med/squeeze_and_excitation, commit acdd26e7).

Deviations: the MICCAI paper adds the two maps, its journal version finds the maximum best and the
released code takes it; the maximum is the default here, ``fusion="add"`` is the other.
"""

from typing import Any, Literal

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.kernels import Rule, apply_gate, apply_gates, pool_and_project, project
from torchplug.modules.squeeze_excite import SqueezeExcite
from torchplug.nn import (
    build_gate,
    check_channels,
    check_choice,
    linear_to_conv,
)

Fusion = Literal["max", "add"]
_RULES: dict[Fusion, Rule] = {"max": "max", "add": "sum"}


class SpatialExcite(nn.Module):
    """The spatial branch: scale each position by a gate computed from its channels (sSE).

    Args:
        channels: width of the map.
        bias: whether the convolution has a bias, as in the released code.
        gate_layer: gate, between 0 and 1; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)``.

    >>> import torch
    >>> SpatialExcite(8)(torch.randn(1, 8, 3, 5)).shape
    torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        bias: bool = True,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_channels("channels", channels)
        self.squeeze = nn.Conv2d(channels, 1, 1, bias=bias, device=device, dtype=dtype)
        self.gate = build_gate(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default; the papers name no other."""
        self.squeeze.reset_parameters()

    def find_gate(self, x: Tensor) -> Tensor:
        """Return the gate, ``(N, 1, H, W)``, between 0 and 1."""
        return self.pass_with_gate(x)[1]

    def pass_with_gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x``, to be scaled by operators of ``torchplug.kernels``, and its gate."""
        x, scores = project(self.squeeze, x)
        return x, self.gate(scores)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with every position scaled by its gate."""
        return apply_gate(*self.pass_with_gate(x))


class ConcurrentSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation block (scSE).

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width of the channel branch, rounded down; 2 in
            the paper. segmentation_models_pytorch takes 16.
        hidden_channels: the hidden width itself; overrides ``reduction``.
        fusion: ``"max"`` takes the larger of the two refined maps at every element, ``"add"`` their
            sum.
        bias: whether all three layers have a bias, as in the released code.
        act_layer: activation of the channel branch's bottleneck.
        gate_layer: gate of both branches; the sigmoid in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the bottleneck would have no channel, or ``fusion`` is unknown.

    Source:
        arXiv 1803.02579 (MICCAI, sum) and 1808.08127 (TMI, maximum); ai-med/squeeze_and_excitation.

    >>> import torch
    >>> ConcurrentSE(8)(torch.randn(1, 8, 3, 5)).shape
    torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        hidden_channels: int | None = None,
        fusion: Fusion = "max",
        bias: bool = True,
        act_layer: type[nn.Module] = nn.ReLU,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("fusion", fusion, ("max", "add"))
        factory = {"device": device, "dtype": dtype}
        self.fusion = fusion
        self.channel = SqueezeExcite(
            channels,
            reduction=reduction,
            hidden_channels=hidden_channels,
            bias=bias,
            act_layer=act_layer,
            gate_layer=gate_layer,
            **factory,
        )
        self.spatial = SpatialExcite(channels, bias=bias, gate_layer=gate_layer, **factory)
        self.channels, self.hidden_channels = channels, self.channel.hidden_channels
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default; the papers name no other."""
        self.channel.reset_parameters()
        self.spatial.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled by both gates at once."""
        x, mean, scores = pool_and_project(self.spatial.squeeze, x)
        gates = self.channel.find_gate_of(mean), self.spatial.gate(scores)
        return apply_gates(x, *gates, _RULES[self.fusion])

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"fusion={self.fusion!r}"
        )


def _flops(module: ConcurrentSE, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    return batch * channels * (4 * module.hidden_channels + 2 * height * width)


def _count(channels: int, hidden: int) -> int:
    return (channels * hidden + hidden) + (hidden * channels + channels) + (channels + 1)


CARD = Card(
    key="scse",
    factory=ConcurrentSE,
    title="Concurrent Spatial and Channel Squeeze & Excitation",
    summary="Scale each channel by one gate and each position by another, and keep the larger.",
    equation="y = max(x * sigmoid(W2 relu(W1 mean_hw(x))), x * sigmoid(w x))",
    paper=Paper(
        title="Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks",
        authors="Roy, Navab, Wachinger",
        venue="MICCAI",
        year=2018,
        arxiv="1803.02579",
        code="https://github.com/ai-med/squeeze_and_excitation",
    ),
    kind="refine",
    place=Place(role="block", note="after each encoder and decoder block of a U-Net"),
    identity_at_start=False,
    min_channels=2,
    flops=_flops,
    samples=(
        Sample(args=(12,), shape=(2, 12, 9, 7), parameters=_count(12, 6)),
        Sample(
            args=(9,),
            options={"reduction": 3, "fusion": "add"},
            shape=(2, 9, 6, 8),
            parameters=_count(9, 3),
        ),
        Sample(
            args=(5,),
            options={
                "hidden_channels": 7,
                "bias": False,
                "act_layer": nn.SiLU,
                "gate_layer": nn.Hardsigmoid,
            },
            shape=(2, 5, 4, 7),
            parameters=2 * 5 * 7 + 5,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={
                "cSE.fc1": "channel.reduce",
                "cSE.fc2": "channel.expand",
                "sSE.conv": "spatial.squeeze",
            },
            transform=linear_to_conv,
        ),
        CheckpointFormat(
            source="official_channel",
            rename={"fc1": "reduce", "fc2": "expand"},
            transform=linear_to_conv,
        ),
        CheckpointFormat(source="official_spatial", rename={"conv": "squeeze"}),
        CheckpointFormat(
            source="smp",
            options={"fusion": "add"},
            rename={
                "cSE.1": "channel.reduce",
                "cSE.3": "channel.expand",
                "sSE.0": "spatial.squeeze",
            },
        ),
    ),
    deviations=(
        "the maximum of the two maps is the default, as in the released code and the journal "
        "paper; the conference paper adds them.",
    ),
)
