"""Receptive field block: branches whose kernels and dilations grow together, as in human vision.

Equation (Liu et al., section 3.2 and figure 4), with x the map and r the rate of a branch::

    b_r = BN(W_r *_r relu(BN(... relu(BN(W x)))))          1x1, plain kernels, then a dilated 3x3
    y   = relu(scale * BN(W [b_2, b_3, b_5]) + BN(W_s x))

Seven forms, as the authors' detectors use them: the block, its small form for maps with fine detail
(RFB-s), both with depthwise dilated kernels for MobileNet, and those of RFBNet-E: the block with a
fourth branch of 1x7 and 7x1 kernels, or with it as its third, and a small form of seven branches.

Compared with the authors' code (ruinmessi/RFBNet, commits 0f1d836d and, for the first two of
RFBNet-E, 0f5d9aaf). Deviations:

- rates are 2, 3, 5 and the scale is 1, as in the authors' detectors; figure 4 draws rates 1, 3, 5,
  and the class in their code defaults to a scale of 0.1.
- small forms take a stride; in the authors' code some branches ignore it and the block fails.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.nn import (
    ActLayer,
    ConvNormAct,
    NormLayer,
    build_act,
    check_choice,
    check_number,
    check_positive,
    check_several,
    hidden_width,
    rename_matches,
    reset_layers,
)

Variant = Literal[
    "standard", "small", "mobile", "mobile_small", "extended", "extended_c", "extended_small"
]
Step = tuple[int, int, str]
"""Height and width of a kernel, and its output's width in terms of i, the hidden width."""

_POINT: Step = (1, 1, "i")
# A branch ends in a dilated 3x3 of the width before it; the stride is that of the step before.
_STANDARD: tuple[tuple[Step, ...], ...] = (
    ((1, 1, "2i"),),
    (_POINT, (3, 3, "2i")),
    (_POINT, (3, 3, "3(i/2)"), (3, 3, "2i")),
)
_SMALL: tuple[tuple[Step, ...], ...] = (
    (_POINT,),
    (_POINT, (3, 1, "i")),
    (_POINT, (1, 3, "i")),
    ((1, 1, "i/2"), (1, 3, "3(i/4)"), (3, 1, "i")),
)
_MOBILE: tuple[tuple[Step, ...], ...] = (
    (_POINT, (1, 3, "3(i/2)"), (3, 1, "3(i/2)")),
    (_POINT, (3, 3, "3(i/2)"), (3, 3, "3(i/2)")),
)
_LONG: tuple[Step, ...] = (_POINT, (1, 7, "3(i/2)"), (7, 1, "2i"))
_EXTENDED_SMALL: tuple[tuple[Step, ...], ...] = (
    *_SMALL[:3],
    *_SMALL[1:],
    ((1, 1, "i/2"), (3, 1, "3(i/4)"), (1, 3, "i")),
)
_BRANCHES = {
    "standard": _STANDARD,
    "small": _SMALL,
    "mobile": _MOBILE,
    "mobile_small": _SMALL,
    "extended": (*_STANDARD, _LONG),
    "extended_c": (*_STANDARD[:2], _LONG),
    "extended_small": _EXTENDED_SMALL,
}
_RATES = {
    "standard": (2, 3, 5),
    "small": (1, 3, 3, 5),
    "mobile": (3, 5),
    "mobile_small": (1, 3, 3, 5),
    "extended": (1, 3, 5, 7),
    "extended_c": (1, 3, 7),
    "extended_small": (1, 3, 3, 5, 5, 7, 7),
}
_REDUCTIONS = {"small": 4, "mobile_small": 4}  # 8 in the others
_BatchNorm = partial(nn.BatchNorm2d, momentum=0.01)  # the authors' momentum


class RFB(nn.Module):
    """Receptive field block, in the seven forms of the authors' detectors.

    Args:
        in_channels: width of the map.
        out_channels: width of the result.
        stride: 2 halves the map, as where the authors' extra layers do; the step before each
            dilated kernel and the shortcut take it.
        variant: ``"standard"``; ``"small"``, RFB-s, of four branches with 1x3 and 3x1 kernels;
            ``"mobile"`` and ``"mobile_small"`` with depthwise dilated kernels and, where the map's
            shape stays, an identity shortcut; of RFBNet-E ``"extended"`` with a branch of 1x7 and
            7x1 kernels beside the three, ``"extended_c"`` with it as the last of three, for maps of
            256 channels, and ``"extended_small"`` of seven branches.
        rates: dilation of each branch; the authors' if not given. Their 512-pixel detector takes
            ``(1, 2, 3)`` for one standard block.
        scale: of what the branches add to the shortcut; 1 in the authors' detectors.
        reduction: divisor that gives the hidden width i; the authors' if not given: 8, and 4 in
            the small forms of four branches.
        hidden_channels: that width itself; overrides ``reduction``.
        norm_layer: norm of every convolution, or ``None``: then they have a bias. The authors' is
            batch norm with a momentum of 0.01.
        act_layer: activation of every convolution but the last of a branch, and of the result.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride))`` for any
        ``H, W >= 1``.

    Raises:
        ValueError: if a width or rate is too small, a choice is unknown, or the number of rates is
            not that of the branches.

    Source:
        Receptive Field Block Net for Accurate and Fast Object Detection, arXiv 1711.07767;
        ruinmessi/RFBNet.

    >>> RFB(64, 32, stride=2)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 32, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        variant: Variant = "standard",
        rates: Sequence[int] | None = None,
        scale: float = 1.0,
        reduction: int | None = None,
        hidden_channels: int | None = None,
        norm_layer: NormLayer | None = _BatchNorm,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, tuple(_BRANCHES))
        check_positive({"in_channels": in_channels, "out_channels": out_channels, "stride": stride})
        hidden = hidden_width(
            in_channels,
            reduction=_REDUCTIONS.get(variant, 8) if reduction is None else reduction,
            hidden_channels=hidden_channels,
            at_least=4 if variant.endswith("small") else 2,
        )
        self.in_channels, self.out_channels, self.hidden_channels = (
            in_channels,
            out_channels,
            hidden,
        )
        check_number("scale", scale)
        self.stride, self.variant, self.scale = stride, variant, scale
        self.rates = _check_rates(variant, rates)
        layers: dict[str, Any] = {"norm_layer": norm_layer, "device": device, "dtype": dtype}
        mobile = variant.startswith("mobile")
        self.branches = nn.ModuleList(
            _make_branch(
                [in_channels, *_widths(steps, hidden)],
                steps,
                rate,
                stride,
                depthwise=mobile,
                act_layer=act_layer,
                layers=layers,
            )
            for steps, rate in zip(_BRANCHES[variant], self.rates, strict=True)
        )
        joined = sum(_widths(steps, hidden)[-1] for steps in _BRANCHES[variant])
        self.project = ConvNormAct(joined, out_channels, act_layer=None, **layers)
        self.shortcut: ConvNormAct | None = None
        if not (mobile and stride == 1 and in_channels == out_channels):
            self.shortcut = ConvNormAct(
                in_channels, out_channels, stride=stride, act_layer=None, **layers
            )
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels as He et al. by their outputs, as the authors do; norms as the identity."""
        reset_layers(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut plus what the branches find."""
        found = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.act(torch.add(shortcut, found, alpha=self.scale))

    def extra_repr(self) -> str:
        """Name the resolved widths and choices."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, stride={self.stride}, "
            f"variant={self.variant!r}, rates={self.rates}, scale={self.scale}"
        )


def _check_rates(variant: Variant, rates: Sequence[int] | None) -> tuple[int, ...]:
    if rates is not None:
        check_several("rates", rates)
    chosen = _RATES[variant] if rates is None else tuple(rates)
    if len(chosen) != len(_RATES[variant]):
        rule = f"the {variant} form has {len(_RATES[variant])} branches and needs a rate for each"
        raise ValueError(explain(rule, f"rates={chosen}", f"pass {_RATES[variant]}"))
    check_positive({f"rates[{index}]": rate for index, rate in enumerate(chosen)})
    return chosen


def _widths(steps: Sequence[Step], i: int) -> list[int]:
    names = {"i": i, "2i": 2 * i, "i/2": i // 2, "3(i/2)": i // 2 * 3, "3(i/4)": i // 4 * 3}
    return [names[name] for _, _, name in steps]


def _make_branch(
    widths: Sequence[int],
    steps: Sequence[Step],
    rate: int,
    stride: int,
    *,
    depthwise: bool,
    act_layer: ActLayer,
    layers: dict[str, Any],
) -> nn.Sequential:
    """Return the steps from width to width, and the dilated kernel that follows them."""
    strides = [1] * (len(steps) - 1) + [stride]
    branch = nn.Sequential()
    for step, ends, pace in zip(steps, pairwise(widths), strides, strict=True):
        conv = ConvNormAct(*ends, step[:2], stride=pace, act_layer=act_layer, **layers)
        branch.append(conv)
    last = widths[-1]
    groups = last if depthwise else 1
    return branch.append(
        ConvNormAct(last, last, 3, dilation=rate, groups=groups, act_layer=None, **layers)
    )


def _flops(module: RFB, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    small = -(-height // module.stride) * -(-width // module.stride)

    def cost(layers: nn.Module) -> int:
        total, positions = 0, height * width
        for layer in layers.modules():
            if isinstance(layer, nn.Conv2d):
                positions = positions if layer.stride == (1, 1) else small
                total += layer.weight.numel() * positions
        return total

    ends = small * module.project.conv.weight.numel()
    shortcut = 0 if module.shortcut is None else cost(module.shortcut)
    return 2 * batch * (sum(cost(branch) for branch in module.branches) + ends + shortcut)


def _read_official(state: State) -> State:
    """Count branches from zero; the authors' mobile form counts from one."""
    found = [name.removeprefix("branch").split(".")[0] for name in state if "branch" in name]
    first = min(map(int, found), default=0)
    renames = {rf"^branch{index}\.": f"branches.{index - first}." for index in set(map(int, found))}
    return rename_matches({**renames, r"\.bn\.": ".norm."})(state)


def _conv(before: int, after: int, taps: int = 1) -> int:
    return taps * before * after + 2 * after


def _count(width: int, out: int, i: int, *, far: tuple[int, ...] = (9,)) -> int:
    """Count two near branches, and far ones with two kernels of so many taps each."""
    half = i // 2 * 3
    near = _conv(width, 2 * i) + _conv(width, i) + _conv(i, 2 * i, 9)
    more = sum(_conv(width, i) + _conv(i, half, taps) + _conv(half, 2 * i, taps) for taps in far)
    dilated = (2 + len(far)) * _conv(2 * i, 2 * i, 9)
    return near + more + dilated + _conv((4 + 2 * len(far)) * i, out) + _conv(width, out)


def _count_small(width: int, out: int, i: int, *, taps: int, shortcut: bool) -> int:
    """Count the small form; ``taps`` are those of a dilated kernel for each pair of channels."""
    half, most = i // 2, i // 4 * 3
    branches = 3 * _conv(width, i) + 2 * _conv(i, i, 3)
    branches += _conv(width, half) + _conv(half, most, 3) + _conv(most, i, 3)
    dilated = 4 * (taps + 2 * i)
    return branches + dilated + _conv(4 * i, out) + (_conv(width, out) if shortcut else 0)


def _count_extended_small(width: int, out: int, i: int) -> int:
    half, most = i // 2, i // 4 * 3
    branches = 5 * _conv(width, i) + 4 * _conv(i, i, 3)
    branches += 2 * (_conv(width, half) + _conv(half, most, 3) + _conv(most, i, 3))
    return branches + 7 * _conv(i, i, 9) + _conv(7 * i, out) + _conv(width, out)


def _count_mobile(width: int, out: int, i: int) -> int:
    half = i // 2 * 3
    branches = 2 * _conv(width, i) + _conv(i, half, 3) + _conv(half, half, 3)
    branches += _conv(i, half, 9) + _conv(half, half, 9) + 2 * (9 * half + 2 * half)
    return branches + _conv(2 * half, out)


CARD = Card(
    key="rfb",
    factory=RFB,
    title="Receptive Field Block",
    summary="Look at a map through branches whose kernels and dilations grow together.",
    equation="y = relu(scale * BN(W [b_2, b_3, b_5]) + BN(W_s x))",
    paper=Paper(
        title="Receptive Field Block Net for Accurate and Fast Object Detection",
        authors="Liu, Huang, Wang",
        venue="ECCV",
        year=2018,
        arxiv="1711.07767",
        code="https://github.com/ruinmessi/RFBNet",
    ),
    kind="context",
    place=Place(
        role="backbone_end",
        note="on the last map of the backbone and the extra maps of a detector that follow it",
    ),
    identity_at_start=False,
    min_channels=16,
    flops=_flops,
    samples=(
        Sample(args=(16, 12), shape=(2, 16, 9, 13), parameters=_count(16, 12, 2)),
        Sample(
            args=(12, 9),
            options={"stride": 2, "rates": (1, 2, 3), "scale": 0.1, "reduction": 4},
            shape=(2, 12, 6, 9),
            parameters=_count(12, 9, 3),
        ),
        Sample(
            args=(18, 10),
            options={"variant": "small", "stride": 2},
            shape=(2, 18, 7, 8),
            parameters=_count_small(18, 10, 4, taps=9 * 16, shortcut=True),
        ),
        Sample(
            args=(16, 16),
            options={"variant": "mobile", "act_layer": nn.SiLU},
            shape=(2, 16, 8, 7),
            parameters=_count_mobile(16, 16, 2),
        ),
        Sample(
            args=(10, 10),
            options={"variant": "mobile_small", "hidden_channels": 5},
            shape=(2, 10, 6, 5),
            parameters=_count_small(10, 10, 5, taps=9 * 5, shortcut=False),
        ),
        Sample(
            args=(32, 8),
            options={"variant": "extended_small"},
            shape=(2, 32, 6, 7),
            parameters=_count_extended_small(32, 8, 4),
        ),
        Sample(
            args=(32, 7),
            options={"variant": "extended", "stride": 2},
            shape=(2, 32, 7, 6),
            parameters=_count(32, 7, 4, far=(9, 7)),
        ),
        Sample(
            args=(18, 6),
            options={"variant": "extended_c", "scale": 0.1},
            shape=(2, 18, 6, 8),
            parameters=_count(18, 6, 2, far=(7,)),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={"ConvLinear": "project", "shortcut": "shortcut"},
            transform=_read_official,
        ),
    ),
    deviations=(
        "rates are 2, 3, 5 and the scale is 1, as in the authors' detectors; the paper's figure "
        "draws rates 1, 3, 5.",
        "small forms take a stride, which some branches of the authors' code ignore.",
    ),
)
