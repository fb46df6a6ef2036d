"""Split-Attention: one grouped convolution makes several maps, chosen between for each channel.

Equation (Zhang et al., section 3.1), with radix R splits in each of K cardinal groups::

    [U_1 … U_R] = relu(BN(conv(x)))             one convolution in K R groups
    s   = mean_hw(U_1 + … + U_R)
    z   = relu(BN(W1 s + b1))                   in K groups
    a_r = exp(g_r(z)) / sum_j exp(g_j(z))       g = W2 z + b2 in K groups; sigmoid if R = 1
    y   = a_1 * U_1 + … + a_R * U_R

Compared with the authors' code (zhanghang1989/ResNeSt, commit 1dfb3e88) and with timm.

Deviations: none from the code, whose hidden layer has a bias although a norm follows; the mean of
the sum is taken as the sum of the means, so the summed map is never built.
"""

from typing import Any, Literal

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.kernels import pool_positions
from torchplug.nn import (
    ActLayer,
    NormLayer,
    build_act,
    build_norm,
    check_batch,
    check_choice,
    check_divisible,
    check_natural,
    check_odd,
    check_positive,
    hidden_width,
    reset_layers,
    weighted_sum,
)

Downsample = Literal["conv", "pool_before", "pool_after"]


class SplitAttention(nn.Module):
    """Split-attention convolution, in the place of a 3x3 convolution.

    A softmax over the splits, computed from the global averages of all of them, weighs each channel
    of each split. Norm and activation are inside: nothing follows the sum.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, which is that of one split.
        kernel_size: of the convolution, odd; 3 in the paper.
        stride: of the convolution, or of the pool that ``downsample`` names.
        padding: of the convolution; by default what keeps the map's size.
        dilation: of the convolution.
        radix: number R of splits; 2 in the paper. With 1 each channel gets a sigmoid gate.
        cardinality: number K of groups in all three layers; 1 in the paper.
        reduction: divisor of ``radix * in_channels`` that gives the hidden width, rounded down.
        min_hidden: the least hidden width that the division gives.
        hidden_channels: the hidden width itself; overrides ``reduction`` and ``min_hidden``.
        downsample: what a stride shrinks the map with: the ``"conv"`` itself, or a 3x3 average pool
            ``"pool_before"`` it (the authors' fast networks) or ``"pool_after"`` the module (their
            others).
        norm_layer: norm of the splits and of the hidden layer. Batch norm in the hidden layer
            cannot train on one image a device; a group norm of one group can:
            ``functools.partial(torch.nn.GroupNorm, 1)``.
        act_layer: activation of the splits and of the hidden layer.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H', W')``, where H' and W' are those of the
        convolution; with the default padding ``ceil(H / stride)`` and ``ceil(W / stride)``.

    Raises:
        ValueError: if ``radix * cardinality`` does not divide ``in_channels``, or ``cardinality``
            another width; in training, if batch norm sees one image.

    Source:
        ResNeSt: Split-Attention Networks, arXiv 2004.08955; zhanghang1989/ResNeSt.

    >>> import torch
    >>> SplitAttention(64, 64, stride=2)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 64, 4, 5])
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
        radix: int = 2,
        cardinality: int = 1,
        reduction: int = 4,
        min_hidden: int = 32,
        hidden_channels: int | None = None,
        downsample: Downsample = "conv",
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("downsample", downsample, ("conv", "pool_before", "pool_after"))
        check_positive({"stride": stride, "radix": radix, "cardinality": cardinality})
        padding = _resolve_padding(padding, kernel_size, dilation)
        check_divisible({"in_channels": in_channels}, radix * cardinality, "radix * cardinality")
        hidden = hidden_width(
            in_channels * radix,
            reduction=reduction,
            hidden_channels=hidden_channels,
            floor=min_hidden,
        )
        inner = {"out_channels": out_channels, "hidden_channels": hidden}
        check_divisible(inner, cardinality, "cardinality")
        self.in_channels, self.out_channels, self.hidden_channels = in_channels, *inner.values()
        self.radix, self.cardinality = radix, cardinality
        self.stride, self.downsample = stride, downsample
        factory = {"device": device, "dtype": dtype}
        splits = radix * out_channels
        pools = downsample != "conv" and stride > 1
        self.pool = nn.AvgPool2d(3, stride, padding=1) if pools else None
        self.conv = nn.Conv2d(
            in_channels,
            splits,
            kernel_size,
            stride=1 if pools else stride,
            padding=padding,
            dilation=dilation,
            groups=radix * cardinality,
            bias=False,
            **factory,
        )
        self.norm = build_norm(norm_layer, splits, **factory)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.reduce = nn.Conv2d(out_channels, hidden, 1, groups=cardinality, **factory)
        self.hidden_norm = build_norm(norm_layer, hidden, **factory)
        self.select = nn.Conv2d(hidden, splits, 1, groups=cardinality, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels as He et al. by what they give (fan out), as the authors do."""
        reset_layers(self)
        for conv in (self.conv, self.reduce, self.select):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def find_weights(self, means: Tensor) -> tuple[Tensor, ...]:
        """Return the weight of every channel for each split: R tensors ``(N, C, 1, 1)``.

        Args:
            means: of all splits' maps over their positions, ``(N, R * C, 1, 1)``.
        """
        first, *others = means.chunk(self.radix, dim=1)
        hidden = self.reduce(sum(others, start=first))
        check_batch(hidden, self.hidden_norm, owner="SplitAttention")
        scores = self.select(self.act(self.hidden_norm(hidden)))
        scores = scores.unflatten(1, (self.cardinality, self.radix, -1))
        weights = scores.softmax(2) if self.radix > 1 else scores.sigmoid()
        return weights.transpose(1, 2).flatten(2, 3).unbind(1)  # (n, radix, c, 1, 1), unbound

    def forward(self, x: Tensor) -> Tensor:
        """Return the splits' maps, summed with their weights."""
        if self.pool is not None and self.downsample == "pool_before":
            x = self.pool(x)
        maps, means = pool_positions(self.act(self.norm(self.conv(x))))
        y = weighted_sum(maps.chunk(self.radix, dim=1), self.find_weights(means))
        if self.pool is not None and self.downsample == "pool_after":
            y = self.pool(y)
        return y

    def extra_repr(self) -> str:
        """Name the resolved widths and splits."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, radix={self.radix}, "
            f"cardinality={self.cardinality}"
        )


def _resolve_padding(padding: int | None, kernel_size: int, dilation: int) -> int:
    check_positive({"dilation": dilation})
    if padding is None:
        check_odd("kernel_size", kernel_size)
        return dilation * (kernel_size // 2)
    check_natural({"padding": padding})
    return padding


def _flops(module: SplitAttention, shape: tuple[int, ...]) -> int:
    batch, _, *sides = shape
    if module.pool is not None and module.downsample == "pool_before":
        sides = [-(-side // module.stride) for side in sides]
    conv = module.conv
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    sides = [(side + 2 * int(conv.padding[0]) - reach - 1) // conv.stride[0] + 1 for side in sides]
    dense = module.reduce.weight.numel() + module.select.weight.numel()
    return 2 * batch * (conv.weight.numel() * sides[0] * sides[1] + dense)


def _count(
    channels: tuple[int, int], hidden: int, *, radix: int = 2, cardinality: int = 1, kernel: int = 3
) -> int:
    before, after = channels
    conv = before * after * kernel**2 // cardinality + 2 * radix * after
    reduce = after * hidden // cardinality + hidden + 2 * hidden
    return conv + reduce + hidden * radix * after // cardinality + radix * after


_FORMAT = {
    "conv": "conv",
    "bn0": "norm",
    "fc1": "reduce",
    "bn1": "hidden_norm",
    "fc2": "select",
}

CARD = Card(
    key="splat",
    factory=SplitAttention,
    title="Split-Attention",
    summary="Split a grouped convolution's maps and weigh the splits for each channel.",
    equation=(
        "[U_1 … U_R] = relu(BN(conv x)); z = relu(BN(W1 mean_hw(sum_r U_r) + b1)); "
        "y = sum_r softmax_r(W2 z + b2) * U_r"
    ),
    paper=Paper(
        title="ResNeSt: Split-Attention Networks",
        authors="Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li, Smola",
        venue="CVPR Workshops",
        year=2022,
        arxiv="2004.08955",
        code="https://github.com/zhanghang1989/ResNeSt",
    ),
    kind="conv",
    place=Place(
        role="conv3x3",
        note="in the place of the 3x3 convolution of every bottleneck, with its norm and "
        "activation; the paper's networks shrink maps by an average pool after it "
        "(downsample='pool_after'), and have ResNet-D's stem and shortcuts",
    ),
    identity_at_start=False,
    min_channels=2,
    flops=_flops,
    samples=(
        Sample(args=(16, 12), shape=(2, 16, 9, 7), parameters=_count((16, 12), 32)),
        Sample(
            args=(12, 6),
            options={"radix": 1, "cardinality": 3, "reduction": 2, "min_hidden": 1},
            shape=(2, 12, 8, 6),
            parameters=_count((12, 6), 6, radix=1, cardinality=3),
        ),
        Sample(
            args=(12, 8),
            options={
                "radix": 3,
                "cardinality": 2,
                "hidden_channels": 4,
                "stride": 2,
                "downsample": "pool_after",
                "act_layer": nn.SiLU,
            },
            shape=(2, 12, 7, 8),
            parameters=_count((12, 8), 4, radix=3, cardinality=2),
        ),
        Sample(
            args=(8, 5),
            options={
                "kernel_size": 5,
                "dilation": 2,
                "padding": 5,
                "stride": 2,
                "downsample": "pool_before",
                "hidden_channels": 3,
            },
            shape=(2, 8, 9, 10),
            parameters=_count((8, 5), 3, kernel=5),
        ),
        Sample(
            args=(4, 6),
            options={"stride": 2, "hidden_channels": 3},
            shape=(2, 4, 7, 6),
            parameters=_count((4, 6), 3),
        ),
    ),
    formats=(
        CheckpointFormat(source="official", rename=_FORMAT),
        CheckpointFormat(source="timm", rename=_FORMAT),
    ),
)
