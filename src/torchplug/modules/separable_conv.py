"""Depthwise separable convolution: one kernel for each channel, then a 1x1 mix of the channels.

Equation (Howard et al., section 3.1 and figure 3), no bias in either convolution::

    y = relu(BN(conv_1x1(relu(BN(depthwise_KxK(x))))))

The authors' code is for TensorFlow (tensorflow/models, mobilenet_v1); compared with the same layer
in mmcv (commit a8073c74) and in RFBNet's MobileNet (commit 0f1d836d), and with the variant of
timm 1.0.31 that EfficientNet uses: no activation at the end, and the input added.

Deviations: padding is symmetric, TensorFlow's differs at stride 2.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.errors import explain
from torchplug.nn import (
    SamePad2d,
    build_norm,
    check_choice,
    check_natural,
    check_odd,
    check_positive,
    make_act,
    reset_layers,
)

After = Literal["both", "depthwise", "pointwise", "none"]
NormLayer = Callable[..., nn.Module]

_CONVS: dict[After, tuple[str, ...]] = {
    "both": ("depthwise", "pointwise"),
    "depthwise": ("depthwise",),
    "pointwise": ("pointwise",),
    "none": (),
}


class SeparableConv(nn.Module):
    """Depthwise separable convolution, in the place of a convolution with its norm and activation.

    A dense convolution of K·K·C·C' weights becomes one of K·K·C and one of C·C': 8 to 9 times
    fewer at 3x3. Where the network's own norm and activation follow, leave them out here with
    ``norm_after="depthwise"`` and ``act_after="depthwise"``.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: K, odd, of the depthwise convolution.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution; by default what keeps the size at stride 1.
            ``"same"`` is TensorFlow's, which differs with a stride.
        dilation: of the depthwise convolution.
        multiplier: kernels for each channel of the input; 1 in the paper.
        norm_after: which convolutions a norm follows: ``"both"`` as in MobileNet; ``"pointwise"``
            in Keras' Xception; ``"none"``, where both are in effect one linear layer.
        act_after: which convolutions an activation follows, after the norm; EfficientNet's
            separable block takes ``"depthwise"``.
        bias: whether a convolution that no norm follows has a bias.
        residual: whether the input is added to the output, which must have its shape.
        norm_layer: the norm. Set eps with a partial, for TensorFlow's weights
            ``functools.partial(torch.nn.BatchNorm2d, eps=1e-3)``.
        act_layer: the activation.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H', W')`` with the H' and W' of a convolution
        with these arguments: ``ceil(H / stride)`` by default.

    Raises:
        ValueError: if ``kernel_size`` is even, a width is not positive, a choice is unknown, or
            ``residual`` is asked for and the shape changes.

    Source:
        MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
        arXiv 1704.04861; tensorflow/models.

    >>> import torch
    >>> SeparableConv(16, 32, stride=2)(torch.randn(2, 16, 7, 9)).shape
    torch.Size([2, 32, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        dilation: int = 1,
        multiplier: int = 1,
        norm_after: After = "both",
        act_after: After = "both",
        bias: bool = True,
        residual: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("norm_after", norm_after, tuple(_CONVS))
        check_choice("act_after", act_after, tuple(_CONVS))
        check_odd("kernel_size", kernel_size)
        widths = {"in_channels": in_channels, "out_channels": out_channels}
        check_positive({**widths, "multiplier": multiplier, "stride": stride, "dilation": dilation})
        reach = dilation * (kernel_size // 2)
        border = _border(padding, stride, reach)
        self.pad = SamePad2d(kernel_size, stride, dilation) if border is None else None
        if residual and (in_channels != out_channels or stride != 1 or border != reach):
            rule = "a residual needs an output of the input's shape"
            got = f"{in_channels} to {out_channels} channels, stride={stride}, padding={border}"
            raise ValueError(explain(rule, got, "pass residual=False"))
        self.in_channels, self.out_channels, self.residual = *widths.values(), residual
        norms, acts = _CONVS[norm_after], _CONVS[act_after]
        hidden, factory = in_channels * multiplier, {"device": device, "dtype": dtype}
        self.depthwise = nn.Conv2d(
            in_channels,
            hidden,
            kernel_size,
            stride=stride,
            padding=border or 0,
            dilation=dilation,
            groups=in_channels,
            bias=bias and "depthwise" not in norms,
            **factory,
        )
        self.depthwise_norm = (
            build_norm(norm_layer, hidden, **factory) if "depthwise" in norms else None
        )
        self.depthwise_act = make_act(act_layer, **factory) if "depthwise" in acts else None
        self.pointwise = nn.Conv2d(
            hidden, out_channels, 1, bias=bias and "pointwise" not in norms, **factory
        )
        self.pointwise_norm = (
            build_norm(norm_layer, out_channels, **factory) if "pointwise" in norms else None
        )
        self.pointwise_act = make_act(act_layer, **factory) if "pointwise" in acts else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels from PyTorch's default; the paper names no other."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels of ``x``, each filtered by itself, mixed."""
        y = self.depthwise(x if self.pad is None else self.pad(x))
        y = y if self.depthwise_norm is None else self.depthwise_norm(y)
        y = y if self.depthwise_act is None else self.depthwise_act(y)
        y = self.pointwise(y)
        y = y if self.pointwise_norm is None else self.pointwise_norm(y)
        y = y if self.pointwise_act is None else self.pointwise_act(y)
        return x + y if self.residual else y

    def extra_repr(self) -> str:
        """Name the widths."""
        residual = ", residual=True" if self.residual else ""
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}{residual}"


def _border(padding: int | str | None, stride: int, reach: int) -> int | None:
    """Return what the convolution pads itself; nothing where TensorFlow's padding differs."""
    if isinstance(padding, str):
        check_choice("padding", padding, ("same",))
        return reach if stride == 1 else None
    padding = reach if padding is None else padding
    check_natural({"padding": padding})
    return padding


def _flops(module: SeparableConv, shape: tuple[int, ...]) -> int:
    conv, stride = module.depthwise, module.depthwise.stride[0]
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    lost = reach - 2 * int(conv.padding[0]) if module.pad is None else 0
    positions = math.prod((size - lost - 1) // stride + 1 for size in shape[2:])
    return 2 * shape[0] * positions * (conv.weight.numel() + module.pointwise.weight.numel())


CARD = Card(
    key="dwconv",
    factory=SeparableConv,
    title="Depthwise Separable Convolution",
    summary="Filter every channel by itself, then mix the channels position by position.",
    equation="y = relu(BN(conv_1x1(relu(BN(depthwise_KxK(x))))))",
    paper=Paper(
        title=(
            "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"
        ),
        authors="Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam",
        venue="arXiv",
        year=2017,
        arxiv="1704.04861",
        code="https://github.com/tensorflow/models",
    ),
    kind="conv",
    place=Place(
        role="conv3x3",
        note="in the place of every dense 3x3 convolution but the first, with norm and activation",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(
            args=(6, 10),
            shape=(2, 6, 9, 7),
            parameters=9 * 6 + 2 * 6 + 6 * 10 + 2 * 10,
        ),
        Sample(
            args=(5, 8),
            options={
                "kernel_size": 5,
                "stride": 2,
                "multiplier": 2,
                "norm_after": "pointwise",
                "act_after": "none",
                "bias": False,
            },
            shape=(2, 5, 8, 11),
            parameters=25 * 10 + 10 * 8 + 2 * 8,
        ),
        Sample(
            args=(7, 7),
            options={
                "dilation": 2,
                "norm_after": "none",
                "act_after": "depthwise",
                "act_layer": nn.SiLU,
                "residual": True,
            },
            shape=(2, 7, 6, 9),
            parameters=9 * 7 + 7 + 7 * 7 + 7,
        ),
        Sample(
            args=(4, 6),
            options={
                "padding": 2,
                "norm_after": "depthwise",
                "act_after": "pointwise",
                "norm_layer": partial(nn.BatchNorm2d, eps=1e-3),
            },
            shape=(2, 4, 5, 6),
            parameters=9 * 4 + 2 * 4 + 4 * 6 + 6,
        ),
        Sample(
            args=(4, 6),
            options={"padding": "same", "stride": 2},
            shape=(2, 4, 8, 7),
            parameters=9 * 4 + 2 * 4 + 4 * 6 + 2 * 6,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="mmcv",
            rename={
                "depthwise_conv.conv": "depthwise",
                "depthwise_conv.bn": "depthwise_norm",
                "pointwise_conv.conv": "pointwise",
                "pointwise_conv.bn": "pointwise_norm",
            },
        ),
        CheckpointFormat(
            source="rfbnet",
            rename={
                "0": "depthwise",
                "1": "depthwise_norm",
                "3": "pointwise",
                "4": "pointwise_norm",
            },
        ),
        CheckpointFormat(
            source="timm",
            options={"act_after": "depthwise"},
            rename={
                "conv_dw": "depthwise",
                "bn1": "depthwise_norm",
                "conv_pw": "pointwise",
                "bn2": "pointwise_norm",
            },
        ),
    ),
    deviations=(
        "padding is symmetric unless padding='same', TensorFlow's, which differs at stride 2.",
    ),
)
