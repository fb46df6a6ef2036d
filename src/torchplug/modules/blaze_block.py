"""BlazeBlock: a residual block of depthwise separable convolutions with large kernels.

Equation (Bazarevsky et al., section 3.1 and figure 1), with h(x) = x, or its 2x2 maximum at
stride 2, and zeros for the channels that are new::

    single:  y = relu(h(x) + conv_1x1(depthwise_5x5(x)))
    double:  y = relu(h(x) + conv_1x1(depthwise_5x5(relu(conv_1x1(depthwise_5x5(x))))))

The authors released networks and no code; compared with the port that loads them
(hollance/BlazeFace-PyTorch, commit 852bfd8e: 3x3, single, norms folded) and with a port of the
paper's blocks (tkat0/PyTorch_BlazeFace, commit ea81d2e6).

Deviations: the paper does not say where the norms are; here one follows every convolution, as in
the second port, and a convolution with a norm has no bias (its port's move into the running
means, which is the same function). Maps of odd size, which the ports refuse at stride 2, give
``ceil(size / 2)``.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.nn import (
    SamePad2d,
    build_act,
    build_norm,
    check_choice,
    check_odd,
    check_positive,
    reset_layers,
)

Padding = Literal["same", "symmetric"]
NormLayer = Callable[..., nn.Module]


class BlazeBlock(nn.Module):
    """BlazeBlock, in the place of a residual block.

    Large depthwise kernels cost little next to the 1x1 convolutions, so the field of view grows
    with few layers. The shortcut has no weights.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, not less than that of the input.
        hidden_channels: width between the two halves of a double block, 24 in the paper; without
            it the block is single.
        kernel_size: of the depthwise convolutions, odd; 5 in the paper, 3 in the released networks.
        stride: of the first depthwise convolution, 1 or 2.
        padding: at stride 2. ``"same"`` as TensorFlow, which the released networks need;
            ``"symmetric"`` as most ports. Weights trained with one are not good for the other.
        norm_layer: norm after every convolution, which then has no bias; ``None`` for networks
            whose norms are folded.
        act_layer: activation after the sum, and between the halves.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: if the block would lose channels, or if the kernel size, the stride or the
            padding is none of those named.

    Source:
        BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs, arXiv 1907.05047.

    >>> import torch
    >>> BlazeBlock(24, 48, stride=2)(torch.randn(2, 24, 7, 9)).shape
    torch.Size([2, 48, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int | None = None,
        kernel_size: int = 5,
        stride: int = 1,
        padding: Padding = "same",
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("padding", padding, ("same", "symmetric"))
        check_odd("kernel_size", kernel_size)
        check_positive({"in_channels": in_channels, "out_channels": out_channels, "stride": stride})
        between = out_channels if hidden_channels is None else hidden_channels
        check_positive({"hidden_channels": between})
        if out_channels < in_channels:
            rule = "the shortcut of a BlazeBlock gains channels or keeps them"
            got = f"in_channels={in_channels} and out_channels={out_channels}"
            raise ValueError(explain(rule, got, f"pass out_channels={in_channels} or more"))
        if stride not in (1, 2):
            rule = "the stride of a BlazeBlock is 1 or 2"
            raise ValueError(explain(rule, f"stride={stride}", "pass 2, or chain blocks"))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.hidden_channels, self.stride = hidden_channels, stride
        halve = partial(
            _make_half,
            kernel_size=kernel_size,
            norm_layer=norm_layer,
            factory={"device": device, "dtype": dtype},
        )
        self.first = halve(in_channels, between, stride=stride, same=padding == "same")
        self.second = None if hidden_channels is None else halve(between, out_channels)
        self.middle_act = None
        if hidden_channels is not None:
            self.middle_act = build_act(act_layer, device=device, dtype=dtype)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.shortcut = _make_shortcut(stride, padding)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels from PyTorch's default; the authors name no other."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of the shortcut and the convolved ``x``."""
        y, shortcut = self.first(x), self.shortcut(x)
        if self.second is not None and self.middle_act is not None:
            y = self.second(self.middle_act(y))
        extra = self.out_channels - self.in_channels
        return self.act(y + (F.pad(shortcut, (0, 0, 0, 0, 0, extra)) if extra else shortcut))

    def extra_repr(self) -> str:
        """Name the widths."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}"
        )


def _make_half(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int,
    norm_layer: NormLayer | None,
    factory: dict[str, Any],
    stride: int = 1,
    same: bool = False,
) -> nn.Sequential:
    """A depthwise and a 1x1 convolution with their norms."""
    pads_before = same and stride > 1
    layers: dict[str, nn.Module] = {}
    if pads_before:
        layers["pad"] = SamePad2d(kernel_size, stride)
    layers["depthwise"] = nn.Conv2d(
        in_channels,
        in_channels,
        kernel_size,
        stride=stride,
        padding=0 if pads_before else kernel_size // 2,
        groups=in_channels,
        bias=norm_layer is None,
        **factory,
    )
    if norm_layer is not None:
        layers["depthwise_norm"] = build_norm(norm_layer, in_channels, **factory)
    layers["pointwise"] = nn.Conv2d(
        in_channels, out_channels, 1, bias=norm_layer is None, **factory
    )
    if norm_layer is not None:
        layers["pointwise_norm"] = build_norm(norm_layer, out_channels, **factory)
    return nn.Sequential(OrderedDict(layers))


def _make_shortcut(stride: int, padding: Padding) -> nn.Module:
    """The map, or the maximum of every 2x2 window, of what there is of it at the border."""
    if stride == 1:
        return nn.Identity()
    # The same border in two forms: export must see one size in the shortcut and in the sum.
    if padding == "same":
        return nn.Sequential(SamePad2d(2, 2, value=-math.inf), nn.MaxPool2d(2))
    return nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(2))


def _flops(module: BlazeBlock, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    positions = -(-height // module.stride) * -(-width // module.stride)
    kernels = [p.numel() for p in module.parameters() if p.ndim == 4]
    return 2 * batch * positions * sum(kernels)


def _move_bias_into_mean(state: State) -> State:
    """``norm(y + bias)`` is a norm with its mean less the bias."""
    moved = dict(state)
    for name in state:
        conv, _, last = name.rpartition(".")
        mean = f"{conv}_norm.running_mean"
        if last == "bias" and mean in state:
            moved[mean] = state[mean] - moved.pop(name)
    return moved


def _count_half(before: int, after: int, *, kernel: int = 5) -> int:
    return kernel**2 * before + 2 * before + before * after + 2 * after


CARD = Card(
    key="blazeblock",
    factory=BlazeBlock,
    title="BlazeBlock",
    summary="Add to a shortcut without weights one or two large-kernel separable convolutions.",
    equation="y = relu(h(x) + conv_1x1(depthwise_5x5(x)))",
    paper=Paper(
        title="BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs",
        authors="Bazarevsky, Kartynnik, Vakunov, Raveendran, Grundmann",
        venue="CVPR Workshops",
        year=2019,
        arxiv="1907.05047",
        code="https://github.com/google-ai-edge/mediapipe",
    ),
    kind="block",
    place=Place(
        role="block",
        note="in the place of the residual blocks of a small detector's backbone",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(args=(8, 8), shape=(2, 8, 9, 7), parameters=_count_half(8, 8)),
        Sample(
            args=(6, 10),
            options={"hidden_channels": 4, "stride": 2},
            shape=(2, 6, 8, 11),
            parameters=_count_half(6, 4) + _count_half(4, 10),
        ),
        Sample(
            args=(5, 9),
            options={
                "kernel_size": 3,
                "stride": 2,
                "padding": "symmetric",
                "norm_layer": None,
                "act_layer": nn.SiLU,
            },
            shape=(2, 5, 9, 6),
            parameters=9 * 5 + 5 + 5 * 9 + 9,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="mediapipe",
            options={"norm_layer": None},
            rename={"convs.0": "first.depthwise", "convs.1": "first.pointwise"},
        ),
        CheckpointFormat(
            source="tkat0",
            rename={
                "conv1.0": "first.depthwise",
                "conv1.1": "first.depthwise_norm",
                "conv1.2": "first.pointwise",
                "conv1.3": "first.pointwise_norm",
                "conv2.1": "second.depthwise",
                "conv2.2": "second.depthwise_norm",
                "conv2.3": "second.pointwise",
                "conv2.4": "second.pointwise_norm",
            },
            transform=_move_bias_into_mean,
        ),
    ),
    deviations=(
        "a norm follows every convolution, which the paper leaves open.",
        "a convolution with a norm has no bias; a port's biases move into the running means.",
        "maps of odd size work at stride 2 and give ceil(size / 2).",
    ),
)
