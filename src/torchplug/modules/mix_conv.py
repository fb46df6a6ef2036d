"""Mixed convolution: kernels of several sizes in one layer, each on its share of the channels.

Equation (Tan and Le, section 3.1), with the channels cut into shares i = 1 … g::

    y = concat_i(depthwise_KixKi(x_i))

The authors' code is for TensorFlow (tensorflow/tpu, models/official/mnasnet/mixnet); compared with
timm 1.0.31, which repeats it, and with the variant of ultralytics/yolov3 (commit 97b87b13), in
which every kernel sees the whole input.

Deviations: even kernels are refused, they would move the map by half a position; shares by
parameters are rounded so that they add up to the width, where the published rounding of each by
itself loses or gains channels for many widths; where a width is not a multiple of the number of
kernels, the rest goes to the first, as in the authors' code, and ultralytics deals it out
otherwise.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.errors import explain
from torchplug.nn import (
    SamePad2d,
    affine_of,
    build_act,
    build_norm,
    check_choice,
    check_odd,
    check_positive,
    check_several,
    rename_matches,
    replace_weights,
    reset_layers,
)

Wiring = Literal["depthwise", "split", "gcd", "dense"]
Split = Literal["equal", "spread", "parameters", "exponential"]
Padding = Literal["symmetric", "same"]
NormLayer = Callable[..., nn.Module]


class MixConv(nn.Module):
    """Mixed depthwise convolution, in the place of a depthwise convolution.

    Large kernels see far, small ones are cheap and sharp; the layer has both. Norm and activation
    follow the concatenation and are left to the network, unless named here.

    Args:
        in_channels: width of the input.
        out_channels: width of the output; by default that of the input. With depthwise wiring a
            multiple of it.
        kernel_sizes: one odd size for each share; the paper's networks use 3 to 11.
        stride: of every convolution.
        dilation: of every convolution.
        wiring: what a kernel sees. ``"depthwise"``: one channel of its share, as in the paper.
            ``"split"``: all of its share. ``"gcd"``: all of the input, in as many groups as the
            widths allow, as ultralytics does. ``"dense"``: all of the input.
        split: widths of the shares. ``"equal"`` as in the authors' code, the rest to the first;
            ``"spread"``: equal, the rest dealt out from both ends, as ultralytics does;
            ``"parameters"``: alike in parameters, so inverse to the squared size;
            ``"exponential"``: a half, a quarter, …, the paper's other choice.
        dilated: whether sizes above 3 are 3x3 kernels spread to that size, as in the paper's
            comparison; at stride 1 only, as there.
        padding: ``"symmetric"`` or TensorFlow's ``"same"``; they differ only with a stride.
        bias: whether the convolutions have a bias.
        norm_layer: norm after the concatenation.
        act_layer: activation after it.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: if a kernel size is even or gets no channel, if depthwise wiring has no whole
            number of outputs for an input, or if a choice is unknown.

    Source:
        MixConv: Mixed Depthwise Convolutional Kernels, arXiv 1907.09595; tensorflow/tpu.

    >>> MixConv(12, stride=2)(torch.randn(2, 12, 7, 9)).shape
    torch.Size([2, 12, 4, 5])
    >>> MixConv(12).merge()
    Conv2d(12, 12, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3), groups=12, bias=False)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7),
        stride: int = 1,
        dilation: int = 1,
        wiring: Wiring = "depthwise",
        split: Split = "equal",
        dilated: bool = False,
        padding: Padding = "symmetric",
        bias: bool = False,
        norm_layer: NormLayer | None = None,
        act_layer: type[nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("wiring", wiring, ("depthwise", "split", "gcd", "dense"))
        check_choice("padding", padding, ("symmetric", "same"))
        check_positive({"stride": stride, "dilation": dilation})
        check_several("kernel_sizes", kernel_sizes)
        for index, size in enumerate(kernel_sizes):
            check_odd(f"kernel_sizes[{index}]", size)
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        check_positive({"in_channels": in_channels, "out_channels": self.out_channels})
        self.kernel_sizes, self.wiring = tuple(kernel_sizes), wiring
        self.splits_input = wiring in ("depthwise", "split")
        self.stride, self.dilation = stride, dilation
        self.pads_before = padding == "same" and stride > 1
        self.in_shares, out_shares = _share_out(
            self.in_channels, self.out_channels, self.kernel_sizes, wiring, split
        )
        factory = {"device": device, "dtype": dtype}
        self.branches, self.pads = nn.ModuleList(), nn.ModuleList()
        for size, inner, outer in zip(kernel_sizes, self.in_shares, out_shares, strict=True):
            is_spread = dilated and stride == 1 and size > 3
            taps, step = (3, dilation * (size // 2)) if is_spread else (size, dilation)
            conv = nn.Conv2d(
                inner,
                outer,
                taps,
                stride=stride,
                padding=0 if self.pads_before else step * (taps // 2),
                dilation=step,
                groups={"depthwise": inner, "gcd": math.gcd(inner, outer)}.get(wiring, 1),
                bias=bias,
                **factory,
            )
            self.branches.append(conv)
            if self.pads_before:
                self.pads.append(SamePad2d(taps, stride, step))
        self.norm = build_norm(norm_layer, self.out_channels, **factory) if norm_layer else None
        self.act = build_act(act_layer, device=device, dtype=dtype) if act_layer else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each kernel from N(0, 2 / (K² · outputs of a group)), as the authors do."""
        reset_layers(self)
        for conv in self._convs():
            fan_out = conv.weight[0, 0].numel() * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the kernels make of their shares, side by side."""
        copies = [x] * len(self.in_shares)
        parts = x.split_with_sizes(self.in_shares, 1) if self.splits_input else copies
        if self.pads_before:
            parts = [pad(part) for pad, part in zip(self.pads, parts, strict=True)]
        pairs = zip(self.branches, parts, strict=True)
        y = torch.cat([branch(part) for branch, part in pairs], 1)
        y = y if self.norm is None else self.norm(y)
        return y if self.act is None else self.act(y)

    def _convs(self) -> list[nn.Conv2d]:
        return [branch for branch in self.branches if isinstance(branch, nn.Conv2d)]

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Return one convolution that computes the same, each kernel in a frame of the largest.

        It makes more multiply-adds in one step instead of fewer in several; shares of unlike
        groups become one dense kernel with zeros. A batch norm moves into it in evaluation mode.
        TensorFlow's padding with a stride comes before it in a sequence, an activation after it.

        Raises:
            ValueError: if TensorFlow's padding puts the kernels at other places than the largest:
                with a stride larger than a kernel it does, at some sizes of the map.
            UsageError: if there is a norm and it is in training mode or is not a batch norm with
                running statistics.
        """
        reach = self.dilation * (min(self.kernel_sizes) - 1) + 1
        if self.pads_before and reach < self.stride and len(set(self.kernel_sizes)) > 1:
            rule = "a merge needs kernels at least as large as a stride with padding='same'"
            got = f"kernel_sizes={self.kernel_sizes}, stride={self.stride}"
            raise ValueError(explain(rule, got, "keep the branches, or use padding='symmetric'"))
        convs, largest, groups = self._convs(), max(self.kernel_sizes), self._merged_groups()
        kernels = [_frame(conv, largest, self.dilation) for conv in convs]
        if groups == 1:
            kernels = [
                _widen(kernel, conv.groups, start, self.in_channels)
                for kernel, conv, start in zip(kernels, convs, self._starts(), strict=True)
            ]
        weight, bias = torch.cat(kernels), None
        if convs[0].bias is not None:
            bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        if self.norm is not None:
            scale, shift = affine_of(self.norm)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        merged = replace_weights(self._make_merged(largest, groups), weight, bias)
        pad = SamePad2d(largest, self.stride, self.dilation) if self.pads_before else None
        layers = [layer for layer in (pad, merged, self.act) if layer is not None]
        return merged if len(layers) == 1 else nn.Sequential(*layers)

    def _merged_groups(self) -> int:
        """All groups of all branches if they have the same widths, otherwise one."""
        convs = self._convs()
        widths = {(c.in_channels // c.groups, c.out_channels // c.groups) for c in convs}
        alike = self.splits_input and len(widths) == 1
        return sum(conv.groups for conv in convs) if alike else 1

    def _starts(self) -> list[int]:
        """The first channel of the input that each branch sees."""
        if not self.splits_input:
            return [0] * len(self.in_shares)
        return list(accumulate(self.in_shares[:-1], initial=0))

    def _make_merged(self, kernel_size: int, groups: int) -> nn.Conv2d:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            kernel_size,
            stride=self.stride,
            padding=0 if self.pads_before else self.dilation * (kernel_size // 2),
            dilation=self.dilation,
            groups=groups,
            bias=False,
            device="meta",  # its weights are replaced
            dtype=self._convs()[0].weight.dtype,
        )

    def extra_repr(self) -> str:
        """Name the widths and choices."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_sizes={self.kernel_sizes}, wiring={self.wiring!r}"
        )


def _share_out(
    before: int, after: int, kernel_sizes: tuple[int, ...], wiring: Wiring, split: Split
) -> tuple[list[int], list[int]]:
    """The inputs and the outputs of every branch."""
    if wiring in ("gcd", "dense"):
        return [before] * len(kernel_sizes), _cut(after, kernel_sizes, split)
    inner = _cut(before, kernel_sizes, split)
    if wiring == "split":
        return inner, _cut(after, kernel_sizes, split)
    if after < 1 or after % before:
        rule = "depthwise wiring makes a whole number of outputs from each input"
        got = f"in_channels={before} and out_channels={after}"
        fix = f"pass out_channels={before} and mix the channels afterwards, or wiring='dense'"
        raise ValueError(explain(rule, got, fix))
    return inner, [width * (after // before) for width in inner]


def _cut(channels: int, kernel_sizes: tuple[int, ...], split: Split) -> list[int]:
    """Cut ``channels`` into one share for each kernel size."""
    check_choice("split", split, ("equal", "spread", "parameters", "exponential"))
    count = len(kernel_sizes)
    if split == "equal":
        shares = [channels // count] * count if count else []
        left = channels - sum(shares)
        shares = [share + left * (first == 0) for first, share in enumerate(shares)]
    elif split == "spread":
        owners = [max(index * count - 1, 0) // max(channels - 1, 1) for index in range(channels)]
        shares = [owners.count(owner) for owner in range(count)]
    elif split == "exponential":
        shares = [channels >> halvings for halvings in range(1, count)]
        shares.append(channels - sum(shares))
    else:
        weights = [1 / size**2 for size in kernel_sizes]
        exact = [channels * weight / sum(weights) for weight in weights]
        shares = [int(share) for share in exact]
        by_loss = sorted(range(count), key=lambda i: shares[i] - exact[i])
        for i in by_loss[: channels - sum(shares)]:
            shares[i] += 1
    if not shares or min(shares) < 1:
        got = f"{channels} channels in shares {shares} for kernel_sizes={kernel_sizes}"
        fix = "pass more channels, or fewer kernel sizes"
        raise ValueError(explain("each kernel size needs a channel", got, fix))
    return shares


def _frame(conv: nn.Conv2d, size: int, dilation: int) -> Tensor:
    """The kernel of ``conv`` in the middle of a kernel of ``size`` with this dilation."""
    step = conv.dilation[0] // dilation
    span = step * (conv.kernel_size[0] - 1) + 1
    taps = slice((size - span) // 2, (size + span) // 2, step)
    framed = conv.weight.new_zeros(*conv.weight.shape[:2], size, size)
    framed[..., taps, taps] = conv.weight
    return framed


def _widen(kernel: Tensor, groups: int, start: int, in_channels: int) -> Tensor:
    """A grouped kernel as one over the whole input, zero where it does not look."""
    inner, outer = kernel.shape[1], len(kernel) // groups
    wide = kernel.new_zeros(len(kernel), in_channels, *kernel.shape[2:])
    for group in range(groups):
        rows = slice(group * outer, (group + 1) * outer)
        first = start + group * inner
        wide[rows, first : first + inner] = kernel[rows]
    return wide


def _flops(module: MixConv, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    positions = -(-height // module.stride) * -(-width // module.stride)
    return 2 * batch * positions * sum(conv.weight.numel() for conv in module._convs())


CARD = Card(
    key="mixconv",
    factory=MixConv,
    title="Mixed Depthwise Convolution",
    summary="Convolve shares of the channels with kernels of different sizes.",
    equation="y = concat_i(depthwise_KixKi(x_i))",
    paper=Paper(
        title="MixConv: Mixed Depthwise Convolutional Kernels",
        authors="Tan, Le",
        venue="BMVC",
        year=2019,
        arxiv="1907.09595",
        code="https://github.com/tensorflow/tpu",
    ),
    kind="conv",
    place=Place(
        role="conv3x3",
        note="in the place of every depthwise convolution of a mobile network",
    ),
    identity_at_start=False,
    min_channels=3,
    flops=_flops,
    samples=(
        Sample(args=(8,), shape=(2, 8, 9, 7), parameters=4 * 9 + 2 * 25 + 2 * 49),
        Sample(
            args=(12, 24),
            options={"split": "exponential", "stride": 2, "padding": "same", "bias": True},
            shape=(2, 12, 8, 11),
            parameters=12 * 9 + 6 * 25 + 6 * 49 + 24,
        ),
        Sample(
            args=(7, 10),
            options={"wiring": "split", "dilation": 2, "act_layer": nn.SiLU},
            shape=(2, 7, 9, 6),
            parameters=4 * 3 * 9 + 3 * 2 * 25 + 3 * 2 * 49,
        ),
        Sample(
            args=(8, 20),
            options={"wiring": "gcd", "split": "parameters", "norm_layer": nn.BatchNorm2d},
            shape=(2, 8, 6, 7),
            parameters=13 * 8 * 9 + 5 * 8 * 25 + 2 * 4 * 49 + 2 * 20,
        ),
        Sample(
            args=(4, 6),
            options={"wiring": "dense", "dilated": True, "kernel_sizes": (3, 5, 9)},
            shape=(2, 4, 8, 7),
            parameters=3 * 2 * 4 * 9,
        ),
        Sample(
            args=(8,),
            options={"kernel_sizes": (1, 3, 5), "stride": 3, "padding": "same", "split": "spread"},
            shape=(2, 8, 9, 7),
            parameters=1 * 3 + 9 * 2 + 25 * 3,
        ),
    ),
    formats=(
        CheckpointFormat(
            source="timm",
            rename={},
            transform=rename_matches({r"^(\d+)\.(weight|bias)$": r"branches.\1.\2"}),
        ),
        CheckpointFormat(
            source="ultralytics",
            options={
                "norm_layer": nn.BatchNorm2d,
                "act_layer": nn.SiLU,
                "wiring": "gcd",
                "split": "spread",
            },
            rename={"m": "branches", "bn": "norm"},
        ),
    ),
    deviations=(
        "even kernel sizes are refused.",
        "shares by parameters always add up to the width.",
        "a rest of equal shares goes to the first kernel size, as in the authors' code; "
        "split='spread' deals it out as ultralytics does.",
    ),
)
