"""Squeeze-and-Excitation: scale each channel by a gate computed from all channels' averages.

Equation (Hu et al., section 3)::

    z = mean of x over height and width            squeeze, eq. 2
    s = sigmoid(W2 relu(W1 z + b1) + b2)           excitation, eq. 3
    y = s * x                                      scale, eq. 4

Compared with the authors' released network definitions (hujie-frank/SENet, commit 0262d43d),
in which both layers have a bias.
"""

from typing import Any

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.kernels import apply_gate, pool_positions
from torchplug.nn import (
    build_act,
    build_gate,
    hidden_width,
    linear_to_conv,
    reset_layers,
)


class SqueezeExcite(nn.Module):
    """Squeeze-and-Excitation block.

    A global average of every channel passes through a two-layer bottleneck; the result, between
    0 and 1, scales the channels. At initialization the gate is near 0.5 everywhere, so in a
    trained network start it as the identity (``plug`` does).

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width, rounded down; 16 in the paper.
        hidden_channels: the hidden width itself; overrides ``reduction``.
        bias: whether both layers have a bias, as in the released networks. Popular copies
            leave it out, which costs 16,048 parameters in ResNet-50 and lets narrow
            bottlenecks die.
        act_layer: activation of the bottleneck, δ in eq. 3.
        gate_layer: gate, σ in eq. 3; MobileNetV3 takes ``nn.Hardsigmoid``.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the bottleneck would have no channel.

    Source:
        Squeeze-and-Excitation Networks, arXiv 1709.01507; hujie-frank/SENet.

    >>> import torch
    >>> SqueezeExcite(64)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_channels: int | None = None,
        bias: bool = True,
        act_layer: type[nn.Module] = nn.ReLU,
        gate_layer: type[nn.Module] = nn.Sigmoid,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.hidden_channels = hidden_width(
            channels, reduction=reduction, hidden_channels=hidden_channels
        )
        factory = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, self.hidden_channels, 1, bias=bias, **factory)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.expand = nn.Conv2d(self.hidden_channels, channels, 1, bias=bias, **factory)
        self.gate = build_gate(gate_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default; the paper names no other."""
        reset_layers(self)

    def find_gate(self, x: Tensor) -> Tensor:
        """Return the gate of each channel, ``(N, C, 1, 1)``, between 0 and 1."""
        return self.find_gate_of(pool_positions(x)[1])

    def find_gate_of(self, mean: Tensor) -> Tensor:
        """Return the gate that follows from the mean of each channel, both ``(N, C, 1, 1)``."""
        return self.gate(self.expand(self.act(self.reduce(mean))))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with every channel scaled by its gate."""
        x, mean = pool_positions(x)
        return apply_gate(x, self.find_gate_of(mean))

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return f"channels={self.channels}, hidden_channels={self.hidden_channels}"


def _flops(module: SqueezeExcite, shape: tuple[int, ...]) -> int:
    return 4 * shape[0] * module.channels * module.hidden_channels


CARD = Card(
    key="se",
    factory=SqueezeExcite,
    title="Squeeze-and-Excitation",
    summary="Scale each channel by a gate computed from all channels' averages.",
    equation="y = x * sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)",
    paper=Paper(
        title="Squeeze-and-Excitation Networks",
        authors="Hu, Shen, Albanie, Sun, Wu",
        venue="CVPR",
        year=2018,
        arxiv="1709.01507",
        code="https://github.com/hujie-frank/SENet",
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
        Sample(args=(32,), shape=(2, 32, 9, 7), parameters=32 * 2 + 2 + 2 * 32 + 32),
        Sample(
            args=(20,),
            options={"reduction": 4, "bias": False},
            shape=(2, 20, 6, 6),
            parameters=2 * 20 * 5,
        ),
        Sample(
            args=(12,),
            options={"hidden_channels": 5, "gate_layer": nn.Hardsigmoid},
            shape=(2, 12, 5, 8),
            parameters=12 * 5 + 5 + 5 * 12 + 12,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="timm",
            rename={
                "fc1": "reduce",
                "fc2": "expand",
                "conv_reduce": "reduce",  # in EfficientNet and its kin
                "conv_expand": "expand",
            },
        ),
        CheckpointFormat(source="torchvision", rename={"fc1": "reduce", "fc2": "expand"}),
        CheckpointFormat(
            source="moskomule",
            options={"bias": False},
            rename={"fc.0": "reduce", "fc.2": "expand"},
            transform=linear_to_conv,
        ),
        CheckpointFormat(
            source="official",
            rename={"down": "reduce", "up": "expand"},
        ),
    ),
)
