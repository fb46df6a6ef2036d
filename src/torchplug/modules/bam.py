"""BAM: one gate for every channel and position, from a channel branch and a spatial branch.

Equation (Park et al., section 3, equations 1 to 4), with x the map::

    Mc = W2 relu(BN(W1 mean_hw(x) + b1)) + b2                          (N, C, 1, 1)
    Ms = conv1x1(dilated conv3x3(dilated conv3x3(conv1x1(x))))         (N, 1, H, W)
    y  = x * (1 + sigmoid(Mc * Ms))

Compared with the authors' code (Jongchan/attention-module, commit 459efad0), with its undefined
name repaired. Deviations:

- the released code multiplies the two branches and the paper adds them; the code decides, its
  published weights need the product; ``combine="sum"`` is the paper's.
- the released code averages over a square window, which is wrong or fails on maps that are not
  square; here the average is over the whole map, the same on square ones.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.kernels import Rule, apply_gates, pool_and_project, project
from torchplug.nn import (
    build_norm,
    check_batch,
    check_choice,
    check_natural,
    check_positive,
    hidden_width,
    linear_to_conv,
    rename_matches,
)

Combine = Literal["product", "sum", "max"]
NormLayer = Callable[..., nn.Module]
_RULES: dict[Combine, Rule] = {
    "product": "residual_product",
    "sum": "residual_sum",
    "max": "residual_max",
}


def _conv_norm_act(
    in_channels: int,
    out_channels: int,
    norm_layer: NormLayer,
    *,
    kernel_size: int = 1,
    dilation: int = 1,
    device: Any = None,
    dtype: Any = None,
) -> nn.Sequential:
    factory = {"device": device, "dtype": dtype}
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, **factory
    )
    return nn.Sequential(conv, build_norm(norm_layer, out_channels, **factory), nn.ReLU())


class BAM(nn.Module):
    """Bottleneck attention module.

    At initialization the factor is near 1.5 everywhere, so in a trained network start it as the
    identity (``plug`` does).

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width of both branches, rounded down; 16 in the
            paper.
        hidden_channels: the hidden width itself; overrides ``reduction``.
        channel_layers: hidden layers of the channel branch; 1 in the paper.
        spatial_layers: dilated 3x3 convolutions of the spatial branch; 2 in the paper.
        dilation: of those convolutions; 4 in the paper.
        combine: ``"product"`` of the branches as in the released code, or their ``"sum"`` or
            ``"max"``, which the paper compares.
        norm_layer: norm of the hidden layers. Batch norm in the channel branch cannot train on one
            image a device; ``torch.nn.InstanceNorm2d`` cannot either, but a group norm of one
            group can: ``functools.partial(torch.nn.GroupNorm, 1)``.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the bottleneck would have no channel; in training, if batch norm sees one
            image.

    Source:
        BAM: Bottleneck Attention Module, arXiv 1807.06514; Jongchan/attention-module.

    >>> import torch
    >>> BAM(32)(torch.randn(2, 32, 7, 9)).shape
    torch.Size([2, 32, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_channels: int | None = None,
        channel_layers: int = 1,
        spatial_layers: int = 2,
        dilation: int = 4,
        combine: Combine = "product",
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("combine", combine, tuple(_RULES))
        check_natural({"channel_layers": channel_layers, "spatial_layers": spatial_layers})
        if channel_layers < 1 or spatial_layers < 0:
            got = f"channel_layers={channel_layers}, spatial_layers={spatial_layers}"
            raise ValueError(explain("BAM needs a channel layer", got, "pass 1 and 2"))
        check_positive({"dilation": dilation})
        hidden = hidden_width(channels, reduction=reduction, hidden_channels=hidden_channels)
        self.channels, self.hidden_channels, self.combine = channels, hidden, combine
        factory = {"device": device, "dtype": dtype}
        widths = [channels] + [hidden] * channel_layers
        self.channel = nn.Sequential(
            *(_conv_norm_act(a, hidden, norm_layer, **factory) for a in widths[:-1]),
            nn.Conv2d(hidden, channels, 1, **factory),
        )
        self.spatial = nn.Sequential(
            _conv_norm_act(channels, hidden, norm_layer, **factory),
            *(
                _conv_norm_act(
                    hidden, hidden, norm_layer, kernel_size=3, dilation=dilation, **factory
                )
                for _ in range(spatial_layers)
            ),
            nn.Conv2d(hidden, 1, 1, **factory),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw spatial kernels as He et al., the rest from PyTorch's default, biases zero."""
        for module in [*self.channel.modules(), *self.spatial.modules()]:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.spatial.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times one plus its gate."""
        first, *rest = chain.from_iterable(block.children() for block in self.spatial[:-1])
        x, pooled, spatial = pool_and_project(first, x)
        for norm in (layer[1] for layer in self.channel if isinstance(layer, nn.Sequential)):
            check_batch(pooled, norm, owner="BAM")
        for layer in rest:
            spatial = layer(spatial)
        _, spatial = project(self.spatial[-1], spatial)
        return apply_gates(x, self.channel(pooled), spatial, _RULES[self.combine])

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"combine={self.combine!r}"
        )


def _flops(module: BAM, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape

    def cost(branch: nn.Sequential, positions: int) -> int:
        convolutions = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
        return sum(2 * conv.weight.numel() * positions for conv in convolutions)

    return batch * (cost(module.channel, 1) + cost(module.spatial, height * width))


def _count(channels: int, hidden: int, *, channel_layers: int = 1, spatial_layers: int = 2) -> int:
    norm = 2 * hidden
    first = channels * hidden + hidden + norm
    channel = first + (channel_layers - 1) * (hidden * hidden + hidden + norm)
    spatial = first + spatial_layers * (9 * hidden * hidden + hidden + norm)
    return channel + hidden * channels + channels + spatial + hidden + 1


def _read_official(state: State) -> State:
    """Number layers from zero, where the authors' norms count from one, and the last ends them."""
    names = {
        r"^channel_att\.gate_c\.gate_c_fc_(\d+)\.": r"channel.\1.0.",
        r"^spatial_att\.gate_s\.gate_s_conv_reduce0\.": "spatial.0.0.",
        r"^spatial_att\.gate_s\.gate_s_bn_reduce0\.": "spatial.0.1.",
    }
    depth = sum(bool(re.search(r"gate_c_fc_\d+\.weight$", name)) for name in state)
    length = sum(bool(re.search(r"gate_s_conv_di_\d+\.weight$", name)) for name in state)
    for layer in range(depth):
        names[rf"^channel_att\.gate_c\.gate_c_bn_{layer + 1}\."] = f"channel.{layer}.1."
    for layer in range(length):
        names[rf"^spatial_att\.gate_s\.gate_s_conv_di_{layer}\."] = f"spatial.{layer + 1}.0."
        names[rf"^spatial_att\.gate_s\.gate_s_bn_di_{layer}\."] = f"spatial.{layer + 1}.1."
    names[r"^channel_att\.gate_c\.gate_c_fc_final\."] = f"channel.{depth}."
    names[r"^spatial_att\.gate_s\.gate_s_conv_final\."] = f"spatial.{length + 1}."
    return linear_to_conv(rename_matches(names)(state))


CARD = Card(
    key="bam",
    factory=BAM,
    title="Bottleneck Attention Module",
    summary="Scale every element by one plus a gate made of a channel and a spatial branch.",
    equation="y = x * (1 + sigmoid(Mc(x) * Ms(x)))",
    paper=Paper(
        title="BAM: Bottleneck Attention Module",
        authors="Park, Woo, Lee, Kweon",
        venue="BMVC",
        year=2018,
        arxiv="1807.06514",
        code="https://github.com/Jongchan/attention-module",
    ),
    kind="refine",
    place=Place(
        role="stage",
        stages=(1, 2, 3),
        note="on the output of stages 1 to 3, before the next stage shrinks the map",
    ),
    identity_at_start=False,
    min_channels=16,
    flops=_flops,
    samples=(
        Sample(args=(32,), shape=(2, 32, 9, 7), parameters=_count(32, 2)),
        Sample(
            args=(12,),
            options={"reduction": 4, "combine": "sum", "dilation": 1, "channel_layers": 3},
            shape=(2, 12, 6, 8),
            parameters=_count(12, 3, channel_layers=3),
        ),
        Sample(
            args=(10,),
            options={"hidden_channels": 4, "spatial_layers": 1, "dilation": 2},
            shape=(2, 10, 5, 6),
            parameters=_count(10, 4, spatial_layers=1),
        ),
        Sample(
            args=(12,),
            options={"combine": "max", "reduction": 3},
            shape=(2, 12, 7, 5),
            parameters=_count(12, 4),
        ),
    ),
    formats=(
        CheckpointFormat(source="official", rename={}, transform=_read_official),
        CheckpointFormat(
            source="pytorchcv",
            rename={
                "ch_att.init_fc.fc": "channel.0.0",
                "ch_att.init_fc.bn": "channel.0.1",
                "ch_att.final_fc": "channel.1",
                "sp_att.init_conv.conv": "spatial.0.0",
                "sp_att.init_conv.bn": "spatial.0.1",
                "sp_att.dil_convs.conv1.conv": "spatial.1.0",
                "sp_att.dil_convs.conv1.bn": "spatial.1.1",
                "sp_att.dil_convs.conv2.conv": "spatial.2.0",
                "sp_att.dil_convs.conv2.bn": "spatial.2.1",
                "sp_att.final_conv": "spatial.3",
            },
            transform=linear_to_conv,
        ),
        CheckpointFormat(
            source="xmu",
            options={"channel_layers": 3, "spatial_layers": 3, "dilation": 1, "combine": "sum"},
            rename={
                **{f"ca.ca.fc{i}": f"channel.{i}.0" for i in range(3)},
                **{f"ca.ca.bn{i}": f"channel.{i}.1" for i in range(3)},
                "ca.ca.last_fc": "channel.3",
                "sa.sa.conv_reduce1": "spatial.0.0",
                "sa.sa.bn_reduce1": "spatial.0.1",
                **{f"sa.sa.conv_{i}": f"spatial.{i + 1}.0" for i in range(3)},
                **{f"sa.sa.bn_{i}": f"spatial.{i + 1}.1" for i in range(3)},
                "sa.sa.last_conv": "spatial.4",
            },
            transform=linear_to_conv,
        ),
    ),
    deviations=(
        "the branches are multiplied, as in the released code; combine='sum' is the paper's.",
        "the average is over the whole map; the released code takes a square window of it.",
    ),
)
